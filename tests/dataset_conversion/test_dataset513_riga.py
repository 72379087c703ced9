"""RIGA: discs and cups are recovered from contours drawn into photographs, or the annotation is left out."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from dataset_replicas import riga
from PIL import Image
from replica_files import colours, picture, ring, square

from nndiffseg.dataset_conversion.Dataset513_RIGA import RIGA, disc_and_cup
from nndiffseg.dataset_conversion.labels import UnusableAnnotationError
from nndiffseg.errors import UserError


def circle(image, radius, colour=(0, 0, 255), width=2):
    drawn = image.copy()
    y, x = np.ogrid[: image.shape[0], : image.shape[1]]
    distance = np.hypot(y - image.shape[0] / 2, x - image.shape[1] / 2)
    drawn[np.abs(distance - radius) < width] = colour
    return drawn, distance < radius + width


def photograph(side=120):
    """Smooth, as a fundus is: JPEG makes strong errors of noise only."""
    ramp = np.linspace(60, 200, side)
    return np.stack([np.tile(ramp, (side, 1)), np.tile(ramp, (side, 1)).T, np.full((side, side), 90)], -1).astype(np.uint8)


def test_the_larger_contour_is_the_disc_and_the_smaller_the_cup(tmp_path):
    image = photograph()
    drawn, disc = circle(image, 40)
    drawn, cup = circle(drawn, 18, (0, 0, 0))
    picture(tmp_path / "a.tif", drawn)
    np.testing.assert_array_equal(disc_and_cup((tmp_path / "a.tif",), image), disc.astype(np.uint8) + cup)


def test_jpeg_does_not_hide_the_contours(tmp_path):
    image = photograph(400)
    drawn, disc = circle(image, 140, width=3)
    drawn, cup = circle(drawn, 70, width=3)
    Image.fromarray(drawn).save(tmp_path / "a.jpg", quality=90)
    label = disc_and_cup((tmp_path / "a.jpg",), image)
    for found, true in ((label > 0, disc), (label == 2, cup)):
        assert 2 * (found & true).sum() / (found.sum() + true.sum()) > 0.97


@pytest.mark.parametrize(
    ("contours", "sentence"),
    [
        ([], "has 0 closed contours instead of two"),
        ([(2, 14)], "has 1 closed contours instead of two"),
        ([(2, 14), (2, 9)], "has 1 closed contours instead of two"),  # they touch
        ([(1, 7), (9, 14)], "has two contours beside each other"),
    ],
)
def test_what_is_no_disc_with_a_cup_is_not_guessed(contours, sentence, tmp_path):
    image = np.full((16, 16, 3), 120, np.uint8)
    drawn = image
    for start, stop in contours:
        drawn = ring(drawn, start, stop)
    picture(tmp_path / "a.tif", drawn)
    with pytest.raises(UnusableAnnotationError, match=sentence):
        disc_and_cup((tmp_path / "a.tif",), image)


def test_a_copy_of_another_size_is_refused(tmp_path):
    picture(tmp_path / "a.tif", colours(0, 12))
    with pytest.raises(UserError, match="differ in size"):
        disc_and_cup((tmp_path / "a.tif",), colours(0))


def test_an_unusable_annotation_is_left_out_and_named_and_the_others_stay(tmp_path):
    riga(tmp_path / "source")
    place = tmp_path / "source" / "MESSIDOR"
    picture(place / "image1-3.tif", np.full((16, 16, 3), 120, np.uint8))
    for rater in (2, 3, 4, 5, 6):
        picture(place / f"image2-{rater}.tif", np.full((16, 16, 3), 120, np.uint8))
    picture(place / "Image2-1.tif", np.full((16, 16, 3), 120, np.uint8))
    folder = RIGA.convert(tmp_path / "source", tmp_path / "raw", progress=False)
    with (folder / "cases.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [r["annotation"] for r in rows if r["image"] == "MESSIDOR_1"] == ["rater1", "rater2", "rater4", "rater5", "rater6"]
    assert not any(r["image"] == "MESSIDOR_2" for r in rows)
    assert len(list((folder / "imagesTr").iterdir())) == len(rows) == 4 * 6 + 5
    remarks = json.loads((folder / "dataset.json").read_text())["remarks"]
    assert remarks[-1] == "MESSIDOR/image1-3.tif has 0 closed contours instead of two (and 6 more like it)."
    expected = square(1, 2, 13) + square(1, 5, 10)
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "labelsTr" / "MagrabiFemale_1_a00.png")), expected)


def test_every_photograph_is_written_once_and_linked_for_each_rater(tmp_path):
    riga(tmp_path / "source")
    folder = RIGA.convert(tmp_path / "source", tmp_path / "raw", progress=False)
    files = sorted((folder / "imagesTr").glob("MESSIDOR_1_a0?_0000.png"))
    assert len(files) == 6
    assert len({f.stat().st_ino for f in files}) == 1
