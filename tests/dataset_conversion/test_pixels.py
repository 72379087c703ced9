"""Images are resized without aliasing and keep their bit depth, masks stay binary, and broken files are named."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from nndiffseg.dataset_conversion import pixels
from nndiffseg.errors import UserError


def test_area_resize_by_a_whole_factor_is_the_mean_of_blocks():
    image = np.random.default_rng(0).random((12, 8, 3))
    expected = image.reshape(4, 3, 4, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(pixels.area_resize(image, (4, 4)), expected, rtol=1e-12)


@pytest.mark.parametrize("shape", [(7, 5), (11, 13), (30, 40)])
def test_area_resize_keeps_the_mean_and_the_centre_of_mass(shape):
    image = np.random.default_rng(1).random((11, 13))
    small = pixels.area_resize(image, shape)
    assert small.shape == shape
    assert small.mean() == pytest.approx(image.mean(), rel=1e-12)

    def centre(a):  # in units of the side: pixel i covers (i, i + 1) / n
        return (a.sum(1) @ (np.arange(a.shape[0]) + 0.5)) / a.sum() / a.shape[0]

    # inside one new pixel the position is lost, so the centre can move by less than half of it
    assert abs(centre(small) - centre(image)) < 0.5 / shape[0]


def test_a_mask_is_kept_where_it_covers_half_of_the_new_pixel():
    mask = np.zeros((4, 6), np.uint8)
    mask[:2, 0] = 1  # half of the first new pixel
    mask[0, 2] = 1  # a quarter of the second
    mask[2:, 4:] = 1
    np.testing.assert_array_equal(pixels.resize_mask(mask, (2, 3)), [[1, 0, 0], [0, 0, 1]])


def test_half_covered_pixels_survive_rounding_at_odd_factors():
    mask = np.zeros((9, 7), np.uint8)
    mask[:, :] = np.arange(7) % 2 == 0
    coverage = pixels.area_resize(mask, (3, 2))  # 7 columns on 2: each new pixel is 4/7 or 3.5/7 covered
    expected = (np.round(coverage, 6) >= 0.5).astype(np.uint8)
    np.testing.assert_array_equal(pixels.resize_mask(mask, (3, 2)), expected)


def test_images_keep_their_bit_depth():
    image = np.full((10, 10), 3001, np.uint16)
    small = pixels.resize_image(image, (3, 3))
    assert small.dtype == np.uint16
    assert (small == 3001).all()


def test_masks_that_are_not_binary_are_refused(tmp_path):
    Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4)).save(tmp_path / "grey.png")
    with pytest.raises(UserError, match=r"grey\.png is not a binary mask"):
        pixels.read_mask(tmp_path / "grey.png")


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n broken"])
def test_broken_image_files_are_named(tmp_path, content):
    (tmp_path / "broken.png").write_bytes(content)
    with pytest.raises(UserError, match=r"broken\.png cannot be read as an image"):
        pixels.read_array(tmp_path / "broken.png")


def png_that_says(width, height):
    """A PNG of a few bytes whose header says any size."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("side", "sentence"), [(13_000, "has 13000x13000 pixels"), (100_000, "cannot be read as an image")])
def test_images_of_absurd_sizes_are_refused_before_they_are_unpacked(tmp_path, side, sentence):
    (tmp_path / "bomb.png").write_bytes(png_that_says(side, side))
    with pytest.raises(UserError, match=rf"bomb\.png {sentence}"):
        pixels.read_picture(tmp_path / "bomb.png", colour=False)


def test_pictures_of_every_kind_become_grey_or_colour(tmp_path):
    colour = np.random.default_rng(2).integers(0, 256, (6, 5, 3)).astype(np.uint8)
    grey = colour[..., 0]
    Image.fromarray(np.dstack([colour, grey])).save(tmp_path / "transparent.png")
    Image.fromarray(grey).save(tmp_path / "grey.gif")  # GIF has a palette
    Image.fromarray(grey.astype(np.uint16) * 200).save(tmp_path / "deep.png")
    Image.fromarray(grey > 100).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(pixels.read_picture(tmp_path / "transparent.png", colour=True), colour)
    np.testing.assert_array_equal(pixels.read_picture(tmp_path / "grey.gif", colour=False), grey)
    np.testing.assert_array_equal(pixels.read_picture(tmp_path / "grey.gif", colour=True), np.dstack([grey] * 3))
    deep = pixels.read_picture(tmp_path / "deep.png", colour=False)
    assert deep.dtype == np.uint16
    np.testing.assert_array_equal(deep, grey.astype(np.uint16) * 200)
    np.testing.assert_array_equal(pixels.read_picture(tmp_path / "bits.png", colour=False), np.where(grey > 100, 255, 0))
