"""LIDC-IDRI: nodules cut out of their scans, a case for each reader, patients together, outlines outside the nodule."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
from replica_files import lidc, lidc_xml

from nndiffseg.cli import plan_and_preprocess
from nndiffseg.data.check import check_dataset
from nndiffseg.dataset_conversion.Dataset512_LIDCIDRI import LIDC, reader_masks
from nndiffseg.errors import UserError


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lidc")
    lidc(folder)
    return folder


@pytest.fixture(scope="module")
def converted(source, tmp_path_factory):
    return LIDC.convert(source, tmp_path_factory.mktemp("raw"), progress=False)


def image(file):
    return sitk.ReadImage(str(file))


def test_every_nodule_is_four_cases_and_patients_stay_together(converted):
    assert check_dataset(converted, progress=False) == []
    with (converted / "cases.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 3 * 2 * 4
    assert {(r["image"][:17], r["group"]) for r in rows} == {
        ("LIDC-IDRI-0001_s1", "LIDC-IDRI-0001"),
        ("LIDC-IDRI-0001_s2", "LIDC-IDRI-0001"),
        ("LIDC-IDRI-0007_s1", "LIDC-IDRI-0007"),
    }
    assert len(json.loads((converted / "splits_final.json").read_text())) == 2
    (remark,) = json.loads((converted / "dataset.json").read_text())["remarks"]
    assert remark.startswith("LIDC-IDRI has here 3 scans (published: 1018)")


def test_a_nodule_that_some_readers_did_not_outline_has_empty_labels(converted):
    volumes = [
        sitk.GetArrayFromImage(image(f)).sum() for f in sorted((converted / "labelsTr").glob("LIDC-IDRI-0007_s1_n02_a*.nii.gz"))
    ]
    assert volumes == [0, 0, 25, 25]  # the outline of 6 pixels a side is outside


def test_the_box_has_its_place_in_the_scan_and_its_hounsfield_units(converted, source):
    box = image(converted / "imagesTr" / "LIDC-IDRI-0007_s1_n02_a00_0000.nii.gz")
    reader = sitk.ImageSeriesReader()
    (folder,) = source.glob("LIDC-IDRI-0007/*/*")
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    scan = reader.Execute()
    start = scan.TransformPhysicalPointToIndex(box.GetOrigin())
    # 16 mm are 23 pixels and 6 slices; columns 53 to 57 of 64, rows 11 to 15, slice 4 of 9
    assert start == (30, 0, 0)
    assert box.GetSize() == (34, 39, 9)
    assert box.GetSpacing() == pytest.approx(scan.GetSpacing())
    np.testing.assert_array_equal(sitk.GetArrayFromImage(box), sitk.GetArrayFromImage(scan)[:, 0:39, 30:64])
    label = sitk.GetArrayFromImage(image(converted / "labelsTr" / "LIDC-IDRI-0007_s1_n02_a02.nii.gz"))
    assert np.argwhere(label).min(0).tolist() == [4, 11, 23]


def test_outlines_lie_outside_and_exclusions_are_holes(tmp_path):
    (tmp_path / "a.xml").write_text(lidc_xml("1.2", [str(z) for z in range(9)]))
    masks = reader_masks(tmp_path / "a.xml", [str(z) for z in range(9)], (9, 64, 64))
    assert [m[4].sum() for m in masks] == [5 * 5, 6 * 6, 7 * 7 + 25, 8 * 8 + 25]
    assert masks[0][3].sum() == 5 * 5 - 3 * 3
    assert not np.any([m[6] for m in masks])  # a single point is a nodule below 3 mm


def test_scans_and_readings_that_do_not_belong_together_are_refused(source, tmp_path):
    half = shutil.copytree(source, tmp_path / "half")
    (lost,) = half.glob("LIDC-IDRI-0007/*/*/069.xml")
    text = lost.read_text()
    lost.unlink()
    with pytest.raises(UserError, match=r"has no XML file of its readers; complete the download"):
        LIDC.convert(half, tmp_path / "raw", progress=False)
    (half / "tcia-lidc-xml").mkdir()
    (half / "tcia-lidc-xml" / "158.xml").write_text(text.replace("1.2.3.4<", "1.2.99<"))  # lies elsewhere, and one id is wrong
    with pytest.raises(UserError, match=r"158\.xml has an outline that fits no image of its scan"):
        LIDC.convert(half, tmp_path / "raw", progress=False)
    (half / "tcia-lidc-xml" / "158.xml").write_text(text)
    assert LIDC.convert(half, tmp_path / "raw", progress=False).is_dir()


@pytest.mark.slow
def test_the_nodules_can_be_planned_and_preprocessed(converted, tmp_path):
    words = (
        f"-d 512 -c 3d_fullres -pl DiffSegPlannerS --verify_dataset_integrity --no_pbar -np 1 --raw {converted.parent} "
        f"--preprocessed {tmp_path} --results {tmp_path / 'results'}"
    )
    assert plan_and_preprocess.main(words.split()) == 0
    assert len(list((tmp_path / converted.name).glob("*/*.pkl"))) == 24


def test_a_folder_without_scans_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(UserError, match="holds no CT scan of LIDC-IDRI with its XML file, such as"):
        LIDC.convert(tmp_path, tmp_path / "raw", progress=False)
    assert not (tmp_path / "raw").exists()
