"""CAMUS: the official test patients are test images, and the four images of a patient stay together."""

from __future__ import annotations

import csv
import shutil

import SimpleITK as sitk
from dataset_replicas import camus

from nndiffseg.dataset_conversion.Dataset503_CAMUS import CAMUS


def test_patients_of_the_official_list_are_not_trained_on(tmp_path):
    camus(tmp_path / "source")
    folder = CAMUS.convert(tmp_path / "source", tmp_path / "raw", progress=False)
    assert {p.name[:11] for p in (folder / "imagesTs").iterdir()} == {"patient0006"}
    with (folder / "cases.csv").open(newline="") as stream:
        assert {(r["case"][:11], r["group"]) for r in csv.DictReader(stream)} == {(f"patient{n:04d}",) * 2 for n in range(1, 6)}
    shutil.rmtree(tmp_path / "source" / "database_split")
    folder = CAMUS.convert(tmp_path / "source", tmp_path / "all", progress=False)
    assert not (folder / "imagesTs").exists()
    assert len(list((folder / "imagesTr").iterdir())) == 24


def test_slices_keep_their_spacing(tmp_path):
    camus(tmp_path / "source")
    folder = CAMUS.convert(tmp_path / "source", tmp_path / "raw", progress=False)
    for file in ("imagesTr/patient0001_4CH_ES_0000.nii.gz", "labelsTr/patient0001_4CH_ES.nii.gz"):
        assert [round(s, 4) for s in sitk.ReadImage(str(folder / file)).GetSpacing()] == [0.3, 0.2]
