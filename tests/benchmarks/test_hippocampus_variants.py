"""Two data sets from another one: parts of a label, and regions."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk

from benchmarks.hippocampus_variants import BODY, HEAD, TAIL, main, parts_of


@pytest.mark.parametrize("towards", [1, -1])
def test_the_tail_is_the_half_of_the_posterior_part_that_lies_away_from_the_head(towards):
    label = np.zeros((3, 12, 4), dtype=np.uint8)
    label[1, 7:10, 1], label[1, 1:7, 1:3] = 1, 2  # head at the end, six rows of posterior
    parts = parts_of(label[:, ::towards])[:, ::towards]
    assert (parts[1, 7:10, 1] == HEAD).all() and (parts[1, 4:7, 1:3] == BODY).all() and (parts[1, 1:4, 1:3] == TAIL).all()
    assert np.array_equal(parts > 0, label > 0)


def test_images_and_folds_stay_and_labels_are_those_of_dataset_json(tmp_path, monkeypatch):
    source, raw = tmp_path / "Dataset004_Hippocampus", tmp_path / "raw"
    for name in ("imagesTr", "labelsTr"):
        (source / name).mkdir(parents=True)
    label = np.zeros((3, 12, 4), dtype=np.uint8)
    label[1, 7:10, 1], label[1, 1:7, 1:3] = 1, 2
    image = sitk.GetImageFromArray(label)
    image.SetSpacing((0.5, 1, 2))
    sitk.WriteImage(image, str(source / "labelsTr" / "a.nii.gz"))
    sitk.WriteImage(image, str(source / "imagesTr" / "a_0000.nii.gz"))
    (source / "splits_final.json").write_text('[{"train": ["b"], "val": ["a"]}]')
    (source / "dataset.json").write_text('{"labels": {"background": 0, "Anterior": 1, "Posterior": 2}, "numTraining": 1}')
    monkeypatch.setattr("sys.argv", ["x", str(source), str(raw)])
    main()
    found = {}
    for folder in raw.iterdir():
        assert (folder / "imagesTr" / "a_0000.nii.gz").is_file()
        assert (folder / "splits_final.json").read_text() == (source / "splits_final.json").read_text()
        made = sitk.ReadImage(str(folder / "labelsTr" / "a.nii.gz"))
        assert made.GetSpacing() == (0.5, 1, 2)
        values = set(np.unique(sitk.GetArrayFromImage(made)).tolist())
        found[folder.name] = (json.loads((folder / "dataset.json").read_text()), values)
    parts, regions = found["Dataset005_HippocampusParts"], found["Dataset006_HippocampusRegions"]
    assert parts[1] == {0, 1, 2, 3} == set(parts[0]["labels"].values())
    assert regions[1] == {0, 1, 2} and regions[0]["regions_class_order"] == [2, 1]
