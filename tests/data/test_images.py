"""Image files: the reader that nnU-Net would take, every defect in one sentence, geometries compared with tolerance."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_file_ending
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
from skimage import io

from nndiffseg.data.images import find_reader, geometry_mismatch, is_flat, read_image, voxel_volume
from nndiffseg.errors import UserError

SHAPE = (6, 8, 10)


@pytest.fixture
def nifti(tmp_path: Path) -> Path:
    """A float image, so that its voxels can be invalid."""
    image = sitk.GetImageFromArray(np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE))
    image.SetSpacing((1.0, 1.5, 2.0))
    sitk.WriteImage(image, str(tmp_path / "x.nii.gz"))
    return tmp_path / "x.nii.gz"


def refused(file: Path, *, label: bool = False) -> str:
    with pytest.raises(UserError) as error:
        read_image(SimpleITKIO(), file, label=label)
    assert "\n" not in str(error.value) and str(file) in str(error.value)
    return str(error.value)


# ---- readers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".nii.gz", ".png", ".tif"])
def test_the_reader_is_nnunets_choice(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"x{ending}"
    if ending == ".nii.gz":
        sitk.WriteImage(sitk.Image(4, 5, 6, sitk.sitkInt16), str(file))
    else:
        io.imsave(file, np.ones((8, 9), np.uint8), check_contrast=False)
    expected = determine_reader_writer_from_file_ending(ending, str(file), allow_nonmatching_filename=True, verbose=False)
    assert find_reader({"file_ending": ending}, file) is expected


def test_dataset_json_may_ask_for_a_reader(nifti: Path) -> None:
    asked = {"file_ending": ".nii.gz", "overwrite_image_reader_writer": "NibabelIO"}
    assert find_reader(asked, nifti) is NibabelIO
    with pytest.raises(UserError, match="unknown reader 'NoSuchIO'"):
        find_reader({**asked, "overwrite_image_reader_writer": "NoSuchIO"}, nifti)


def test_an_ending_that_no_reader_knows_is_told_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"file_ending \.jpg; nnU-Net reads .*\.nii\.gz"):
        find_reader({"file_ending": ".jpg"}, tmp_path / "x.jpg")


def test_a_broken_example_is_told_by_the_first_reader(tmp_path: Path) -> None:
    file = tmp_path / "x.nii.gz"
    file.write_bytes(b"not an image")
    with pytest.raises(UserError, match="cannot be read"):
        find_reader({"file_ending": ".nii.gz"}, file)


# ---- reading ----------------------------------------------------------------------------------------------------------


def test_an_image_is_read_as_nnunet_reads_it(nifti: Path) -> None:
    array, properties = read_image(SimpleITKIO(), nifti)
    expected, _ = SimpleITKIO().read_images([str(nifti)])
    np.testing.assert_array_equal(array, expected)
    assert array.shape == (1, *SHAPE)
    np.testing.assert_allclose(properties["spacing"], (2.0, 1.5, 1.0))


def test_a_label_has_one_channel(nifti: Path) -> None:
    assert read_image(SimpleITKIO(), nifti, label=True)[0].shape == (1, *SHAPE)


def test_colour_photographs_have_three_channels_and_one_slice(tmp_path: Path) -> None:
    io.imsave(tmp_path / "x.png", np.zeros((8, 9, 3), np.uint8), check_contrast=False)
    assert read_image(NaturalImage2DIO(), tmp_path / "x.png")[0].shape == (3, 1, 8, 9)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    assert "is missing" in refused(tmp_path / "nothing.nii.gz")


@pytest.mark.parametrize("kind", ["gzip stream", "image in a whole stream", "checksum", "empty", "text"])
@pytest.mark.parametrize("label", [False, True])
def test_damaged_files_are_told(nifti: Path, kind: str, label: bool) -> None:
    content = nifti.read_bytes()
    damaged = {
        "gzip stream": content[: len(content) // 2],
        "image in a whole stream": gzip.compress(gzip.decompress(content)[:-100]),
        "checksum": content[:-8] + b"\0\0\0\0" + content[-4:],
        "empty": b"",
        "text": b"not an image",
    }
    nifti.write_bytes(damaged[kind])
    what = "empty" if kind == "empty" else "truncated or not an image"
    assert f"cannot be read, it is {what}" in refused(nifti, label=label)


def test_a_damaged_tif_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.tif").write_bytes(b"II*\0 nothing")
    with pytest.raises(UserError, match="cannot be read"):
        read_image(Tiff3DIO(), tmp_path / "x.tif")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_invalid_voxels_are_counted_although_the_reader_hides_them(tmp_path: Path, value: float, ending: str) -> None:
    array = np.zeros(SHAPE, np.float32)
    array[1, 2, 3] = array[4, 5, 6] = value
    file = tmp_path / f"x{ending}"
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), file)
    assert "holds 2 NaN or infinite voxels" in refused(file)


# ---- geometry ---------------------------------------------------------------------------------------------------------


def geometry(**changes: Any) -> dict[str, Any]:
    stuff = {"origin": (0.0, 0.0, 0.0), "direction": (1.0, 0, 0, 0, 1, 0, 0, 0, 1)}
    spacing = changes.pop("spacing", [2.0, 1.0, 1.0])
    return {"spacing": spacing, "sitk_stuff": {**stuff, **changes}}


def mismatch(other: dict[str, Any], shape: tuple[int, ...] = SHAPE) -> str | None:
    return geometry_mismatch(geometry(), other, SHAPE, shape)


def test_equal_geometries_match() -> None:
    assert mismatch(geometry()) is None


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (geometry(spacing=[2.0, 1.0, 1.01]), "spacing 2x1x1 against 2x1x1.01"),
        (geometry(origin=(0.0, 0.11, 0.0)), "origin 0x0x0 against 0x0.11x0"),
        (geometry(direction=(-1.0, 0, 0, 0, 1, 0, 0, 0, 1)), "direction"),
    ],
)
def test_what_differs_is_told(other: dict[str, Any], words: str) -> None:
    assert (mismatch(other) or "").startswith(words)


def test_shapes_are_compared_first() -> None:
    assert mismatch(geometry(spacing=[9.0, 9.0, 9.0]), (6, 8, 11)) == "shape 6x8x10 against 6x8x11"


@pytest.mark.parametrize(
    "other",
    [
        geometry(spacing=[2.001, 1.0, 1.0]),
        geometry(origin=(0.0, 0.09, 0.0)),
        geometry(direction=(1.0, 0.009, 0, 0, 1, 0, 0, 0, 1)),
    ],
    ids=["spacing", "origin", "direction"],
)
def test_rounding_is_tolerated(other: dict[str, Any]) -> None:
    assert mismatch(other) is None


@pytest.mark.parametrize(("entry", "expected"), [((0, 3), "origin"), ((0, 1), "direction")], ids=["translation", "rotation"])
def test_affines_of_nibabel_are_compared(entry: tuple[int, int], expected: str) -> None:
    a, b = np.eye(4), np.eye(4)
    b[entry] = 0.2
    first, second = ({"spacing": [1.0, 1.0, 1.0], "nibabel_stuff": {"original_affine": m}} for m in (a, b))
    assert (geometry_mismatch(first, second, SHAPE, SHAPE) or "").startswith(expected)
    assert geometry_mismatch(first, first, SHAPE, SHAPE) is None


def test_one_thick_slice_is_a_2d_image_and_counts_as_1_mm_thick():
    assert is_flat((1, 8, 8), (999.0, 1.0, 1.0))
    assert not is_flat((1, 8, 8), (3.0, 1.0, 1.0)) and not is_flat((4, 8, 8), (999.0, 1.0, 1.0))
    assert voxel_volume((1, 8, 8), (999.0, 0.5, 0.5)) == pytest.approx(0.25)
    assert voxel_volume((4, 8, 8), (3.0, 0.5, 0.5)) == pytest.approx(0.75)
