"""CHASE_DB1: first observer as the label, split by child, both layouts of the source."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from nndiffseg.data.images import find_reader, read_image
from nndiffseg.dataset_conversion import Dataset111_CHASEDB1 as chase
from nndiffseg.errors import UserError


def pixels(file):
    return np.asarray(Image.open(file))


def test_the_first_observer_is_the_label_and_no_child_straddles(chase_source, tmp_path, check_converted):
    folder = chase.convert(chase_source, tmp_path, progress=False)
    assert folder.name == "Dataset111_CHASEDB1"
    rows = check_converted(folder)
    folds = {r["case"]: r["fold"] for r in rows}
    assert len(folds) == 10
    assert all(folds[f"Image_{child:02d}L"] == folds[f"Image_{child:02d}R"] for child in range(1, 6))
    for case in folds:
        label = pixels(folder / "labelsTr" / f"{case}.png")
        np.testing.assert_array_equal(label, pixels(chase_source / "labels_rater1" / f"{case}.png"))
        for i in (1, 2):
            observer = pixels(folder / "ratersTr" / case / f"observer{i}.png")
            np.testing.assert_array_equal(observer, pixels(chase_source / f"labels_rater{i}" / f"{case}.png"))


def test_nnunets_reader_finds_three_channels_in_one_file(chase_source, tmp_path):
    folder = chase.convert(chase_source, tmp_path, progress=False)
    file = folder / "imagesTr" / "Image_01L_0000.png"
    image, _ = read_image(find_reader({"file_ending": ".png"}, file)(), file)
    assert image.shape == (3, 1, 40, 44)
    np.testing.assert_array_equal(image[:, 0], pixels(chase_source / "images" / "Image_01L.jpg").transpose(2, 0, 1))


def test_size_is_that_of_the_shorter_side(chase_source, tmp_path, check_converted):
    folder = chase.convert(chase_source, tmp_path, size=20, dataset_id=113, progress=False)
    assert folder.name == "Dataset113_CHASEDB1_20px"
    check_converted(folder)
    assert pixels(folder / "imagesTr" / "Image_01L_0000.png").shape == (20, 22, 3)
    expected = np.zeros((20, 22), np.uint8)
    expected[:, 5:7] = 1
    np.testing.assert_array_equal(pixels(folder / "labelsTr" / "Image_01L.png"), expected)


def test_the_published_layout_gives_the_same_dataset(chase_source, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for photograph in (chase_source / "images").iterdir():
        shutil.copy(photograph, flat)
        for i, ending in ((1, "1stHO"), (2, "2ndHO")):
            mask = chase_source / f"labels_rater{i}" / f"{photograph.stem}.png"
            shutil.copy(mask, flat / f"{photograph.stem}_{ending}.png")
    a, b = (chase.convert(s, tmp_path / n, progress=False) for s, n in ((chase_source, "a"), (flat, "b")))
    files = sorted(p.relative_to(a) for p in a.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(b) for p in b.rglob("*") if p.is_file())
    assert len(files) == 10 * 4 + 3
    assert all((a / f).read_bytes() == (b / f).read_bytes() for f in files)


def test_wrong_folders_end_with_one_sentence(chase_source, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="holds no photographs"):
        chase.convert(empty, tmp_path / "raw", progress=False)
    source = shutil.copytree(chase_source, tmp_path / "source")
    (source / "labels_rater2" / "Image_03R.png").unlink()
    with pytest.raises(UserError, match=r"labels_rater2/Image_03R\.png is missing"):
        chase.convert(source, tmp_path / "raw", progress=False)
    for photograph in (source / "images").glob("Image_05*"):
        photograph.unlink()
    (source / "images" / "Image_03R.jpg").unlink()
    with pytest.raises(UserError, match="4 groups are too few for 5 folds"):
        chase.convert(source, tmp_path / "raw", progress=False)
    assert not (tmp_path / "raw").exists()


def test_the_real_photographs(shared_data, tmp_path, check_converted):
    source = shared_data / "chase_db1"
    if not source.is_dir():
        pytest.skip("needs chase_db1 in ../shared/data, which is absent")
    folder = chase.convert(source, tmp_path, size=120, progress=False)  # small, to be quick
    rows = check_converted(folder)
    assert sorted(int(r["fold"]) for r in rows) == sorted([0, 1, 2, 3, 4] * 4)
    assert pixels(folder / "imagesTr" / "Image_10R_0000.png").shape == (120, 125, 3)
