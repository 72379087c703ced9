"""Cells: one case for each annotation, blocks as folds, all annotations beside the validation cases."""

from __future__ import annotations

import json
import shutil
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from nndiffseg.cli import plan_and_preprocess
from nndiffseg.dataset_conversion import Dataset110_MultiraterCells as cells
from nndiffseg.dataset_conversion.pixels import area_resize
from nndiffseg.errors import UserError


@pytest.fixture(scope="module")
def converted(cells_source, tmp_path_factory):
    return cells.convert(cells_source, tmp_path_factory.mktemp("raw"), size=16, progress=False)


def pixels(file):
    return np.asarray(Image.open(file))


def test_each_annotation_is_a_case_and_no_group_straddles_training_and_validation(converted, check_converted):
    rows = check_converted(converted)
    assert len(rows) == 10 * (2 + 3 + 3)
    assert [r["case"] for r in rows if r["image"] == "p03"] == ["p03_a00", "p03_a01", "p03_a02"]
    assert [r["annotation"] for r in rows if r["image"] == "b03"] == ["Person1_Tool", "Person2_Tool"]
    rabbits = {r["fold"] for r in rows if r["group"] == "105"}  # the last five of them
    assert len(rabbits) == 1


def test_a_subset_in_one_inferred_group_is_cut_by_numbers(converted, check_converted):
    folds = {r["image"]: int(r["fold"]) for r in check_converted(converted) if r["image"].startswith("b")}
    assert [folds[name] for name in sorted(folds)] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_images_and_annotations_are_area_averages_of_the_sources(converted, cells_source):
    for subset, name, kind in (("ds1_rat_smc", "b07", np.uint8), ("ds3_fibroblast", "m07", np.uint16)):
        source = pixels(cells_source / subset / "images" / f"{name}.png")
        expected = np.rint(area_resize(source, (16, 16)))
        for a in range(2):
            image = pixels(converted / "imagesTr" / f"{name}_a{a:02d}_0000.png")
            assert image.dtype == kind
            np.testing.assert_array_equal(image, expected)
            mask = pixels(cells_source / subset / f"labels_Person{a + 1}_Tool" / f"{name}.png") > 0
            label = pixels(converted / "labelsTr" / f"{name}_a{a:02d}.png")
            assert set(np.unique(label)) == {0, 1}
            assert label.mean() == pytest.approx(mask.mean(), abs=0.05)


def test_the_raters_of_a_validation_case_are_the_labels_of_all_its_annotations(converted):
    for case in (converted / "ratersTr").iterdir():
        image = case.name.split("_")[0]
        raters = [pixels(p) for p in sorted(case.iterdir())]
        labels = [pixels(p) for p in sorted((converted / "labelsTr").glob(f"{image}_a*.png"))]
        assert len(raters) == (2 if image.startswith("b") else 3)
        np.testing.assert_array_equal(raters, labels)


def test_the_annotations_to_validate_on_are_drawn_once_for_all(cells_source, converted, tmp_path):
    splits = (converted / "splits_final.json").read_text()
    again = cells.convert(cells_source, tmp_path, size=24, dataset_id=120, progress=False)
    assert again.name == "Dataset120_MultiraterCells"
    assert (again / "splits_final.json").read_text() == splits
    drawn = Counter(case[-3:] for fold in json.loads(splits) for case in fold["val"])
    assert set(drawn) == {"a00", "a01", "a02"}  # not always the same annotator


def test_the_dataset_can_be_planned_and_preprocessed(converted, tmp_path):
    words = (
        f"-d 110 -c 2d -pl DiffSegPlannerS --verify_dataset_integrity --no_pbar -np 1 --raw {converted.parent} "
        f"--preprocessed {tmp_path} --results {tmp_path / 'results'}"
    )
    assert plan_and_preprocess.main(words.split()) == 0
    folder = tmp_path / converted.name
    assert len(list((folder / "nnUNetPlans_2d").glob("*.pkl"))) == 80
    assert (folder / "splits_final.json").read_text() == (converted / "splits_final.json").read_text()


def test_names_in_the_table_that_lead_elsewhere_are_refused(cells_source, tmp_path):
    source = shutil.copytree(cells_source, tmp_path / "source")
    table = source / "crops.csv"
    table.write_text(table.read_text().replace(",b03,", ",../b03,"))
    with pytest.raises(UserError, match=r"crops\.csv names a case '\.\./b03', which cannot be part of a file's name"):
        cells.convert(source, tmp_path / "raw", progress=False)
    assert not (tmp_path / "raw").exists()


def test_a_missing_annotation_is_named_before_anything_is_written(cells_source, tmp_path):
    source = shutil.copytree(cells_source, tmp_path / "source")
    gone = source / "ds2A_rabbit_smc" / "labels_Person2_Tool" / "p04.png"
    gone.unlink()
    with pytest.raises(UserError, match=r"labels_Person2_Tool/p04\.png is missing"):
        cells.convert(source, tmp_path / "raw", progress=False)
    assert not (tmp_path / "raw").exists()


def test_a_mask_of_another_size_is_refused_and_nothing_is_left(cells_source, tmp_path):
    source = shutil.copytree(cells_source, tmp_path / "source")
    Image.fromarray(np.zeros((5, 6), np.uint8)).save(source / "ds3_fibroblast" / "labels_Person1_Tool" / "m10.png")
    with pytest.raises(UserError, match=r"m10\.png and its image differ in size \(5x6 against 47x47\)"):
        cells.convert(source, tmp_path / "raw", progress=False)
    assert list((tmp_path / "raw").iterdir()) == []


def test_the_real_cells(shared_data, tmp_path, check_converted):
    source = shared_data / "multirater_cells"
    if not source.is_dir():
        pytest.skip("needs multirater_cells in ../shared/data, which is absent")
    folder = cells.convert(source, tmp_path, progress=False)
    rows = check_converted(folder)
    assert len(rows) == 35 * 9 + 32 * 10 + 47 * 10
    images = {r["image"]: (r["image"][0], int(r["fold"])) for r in rows}
    counts = Counter(images.values())
    for subset, expected in (("b", 7), ("p", 6.4), ("m", 9.4)):  # balanced over the three subsets
        assert all(abs(counts[subset, fold] - expected) <= 1 for fold in range(5))
    assert images["p26"] == images["p27"]  # inferred group 23
    overlaps = []
    for case in (folder / "ratersTr").iterdir():
        masks = [pixels(p) > 0 for p in case.iterdir()]
        overlaps += [2 * (a & b).sum() / (a.sum() + b.sum()) for i, a in enumerate(masks) for b in masks[i + 1 :]]
    assert np.mean(overlaps) == pytest.approx(0.862, abs=0.002)  # 0.861 at the full size, says crops.csv
