"""Chest radiographs: three collections in one dataset, both lungs in one label, JSRT's raw files."""

from __future__ import annotations

import json

import numpy as np
import pytest
from dataset_replicas import lungs
from PIL import Image
from replica_files import picture, square

from nndiffseg.dataset_conversion import Dataset505_ChestXrayLungs as module
from nndiffseg.errors import UserError

LUNGS = module.LUNGS


def pixels(file):
    return np.asarray(Image.open(file))


@pytest.fixture
def jsrt(tmp_path, monkeypatch):
    """A radiograph as the society publishes it, with the masks of SCR, 64 pixels a side instead of 2048."""
    monkeypatch.setattr(module, "JSRT_SIDE", 64)
    rng = np.random.default_rng(0)
    source = tmp_path / "source"
    for name in ("JPCLN001", "JPCNN001"):
        (source / "All247images").mkdir(parents=True, exist_ok=True)
        rng.integers(0, 4096, (64, 64)).astype(">u2").tofile(source / "All247images" / f"{name}.IMG")
        for side, start in (("left", 2), ("right", 20)):
            picture(source / f"scratch/fold1/masks/{side} lung/{name}.gif", square(255, start, start + 8, side=32))
    return source


def test_both_lungs_are_one_label_and_images_without_masks_are_left_out(tmp_path):
    lungs(tmp_path / "source")
    folder = LUNGS.convert(tmp_path / "source", tmp_path / "raw", progress=False)
    label = pixels(folder / "labelsTr" / "MCUCXR_0001_0.png")
    np.testing.assert_array_equal(label, square(1, 1, 5) + square(1, 8, 12))
    assert sorted(p.name for p in (folder / "labelsTr").glob("CHNCXR*")) == ["CHNCXR_0001_0.png", "CHNCXR_0002_0.png"]
    assert pixels(folder / "imagesTr" / "CHNCXR_0001_0_0000.png").shape == (16, 16)  # stored in colour
    (remark,) = json.loads((folder / "dataset.json").read_text())["remarks"]
    assert "JSRT" not in remark  # what is not there at all is not missed


def test_raw_radiographs_are_shown_as_the_others_and_their_masks_doubled(jsrt, tmp_path):
    folder = LUNGS.convert(jsrt, tmp_path / "raw", progress=False)
    stored = np.fromfile(jsrt / "All247images" / "JPCLN001.IMG", ">u2").reshape(64, 64)
    image = pixels(folder / "imagesTr" / "JPCLN001_0000.png")
    assert image.dtype == np.uint16
    np.testing.assert_array_equal(image, 4095 - stored)
    label = pixels(folder / "labelsTr" / "JPCLN001.png")
    np.testing.assert_array_equal(label, square(1, 4, 20, side=64) + square(1, 40, 56, side=64))


def test_a_raw_file_of_another_size_is_refused(jsrt, tmp_path):
    (jsrt / "All247images" / "JPCLN001.IMG").write_bytes(b"short")
    with pytest.raises(UserError, match=r"JPCLN001\.IMG has 5 bytes and a radiograph of JSRT 8192"):
        LUNGS.convert(jsrt, tmp_path / "raw", progress=False)
    assert list((tmp_path / "raw").iterdir()) == []


def test_one_lung_alone_is_refused(tmp_path):
    lungs(tmp_path / "source")
    (tmp_path / "source/MontgomerySet/ManualMask/rightMask/MCUCXR_0002_1.png").unlink()
    with pytest.raises(UserError, match=r"MCUCXR_0002_1\.png has 1 of the 2 files of a label"):
        LUNGS.convert(tmp_path / "source", tmp_path / "raw", progress=False)
