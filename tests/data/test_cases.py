"""Cases of an input folder, as real NIfTI files: found, checked by their headers, read and preprocessed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nndiffseg.data.cases import Case, check_headers, find_cases, preprocess, read_and_preprocess, read_case
from nndiffseg.errors import UserError

DATASET = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "x": 1}, "file_ending": ".nii.gz"}
SHAPE = (6, 8, 10)  # z, y, x


def write(file: Path, array: np.ndarray, spacing: tuple[float, ...] = (1.0, 1.0, 2.0), origin: float = 0.0) -> Path:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetOrigin((origin,) * len(spacing))
    sitk.WriteImage(image, str(file))
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two cases of two channels; channel c of case i is full of 1 + 2 i + c."""
    for i, name in enumerate(("b_2", "a")):
        for channel in range(2):
            write(tmp_path / f"{name}_{channel:04d}.nii.gz", np.full(SHAPE, 1 + 2 * i + channel, np.int16))
    return tmp_path


@pytest.fixture
def plans() -> dict[str, Any]:
    """Of one configuration ``c`` that resamples to 1 mm and leaves intensities as they are."""
    name = "resample_data_or_seg_to_shape"
    kwargs = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    configuration = {
        "preprocessor_name": "DefaultPreprocessor",
        "architecture": {},  # unused, but its absence means plans of nnU-Net 1
        "spacing": [1.0, 1.0, 1.0],
        "normalization_schemes": ["NoNormalization"] * 2,
        "use_mask_for_norm": [False] * 2,
        "resampling_fn_data": name,
        "resampling_fn_data_kwargs": kwargs,
        "resampling_fn_seg": name,
        "resampling_fn_seg_kwargs": {**kwargs, "is_seg": True},
    }
    return {
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "foreground_intensity_properties_per_channel": {"0": {}, "1": {}},
        "configurations": {"c": configuration},
    }


def refused(call: Callable[..., Any], *arguments: Any) -> str:
    with pytest.raises(UserError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def read(case: Case) -> tuple[np.ndarray, dict[str, Any]]:
    return read_case(SimpleITKIO(), case, 2)


# ---- finding ----------------------------------------------------------------------------------------------------------


def test_cases_are_sorted_by_id_with_their_channels_in_order(folder: Path) -> None:
    (folder / "notes.txt").touch()
    cases = find_cases(folder, DATASET)
    assert [c.id for c in cases] == ["a", "b_2"]
    assert [f.name for f in cases[1].files] == ["b_2_0000.nii.gz", "b_2_0001.nii.gz"]


def test_a_folder_that_is_missing_or_without_images_is_named(tmp_path: Path) -> None:
    assert f"no folder {tmp_path / 'nowhere'}" in refused(find_cases, tmp_path / "nowhere", DATASET)
    (tmp_path / "notes.txt").touch()
    assert "holds no images" in refused(find_cases, tmp_path, DATASET)


def test_a_missing_channel_is_named_before_anything_is_read(folder: Path) -> None:
    (folder / "a_0001.nii.gz").unlink()
    assert "The case a has no file a_0001.nii.gz; the model needs 2 channels" in refused(find_cases, folder, DATASET)


def test_a_channel_too_many_is_refused(folder: Path) -> None:
    shutil.copy(folder / "a_0000.nii.gz", folder / "a_0002.nii.gz")
    assert "The case a has 3 channels, but the model was trained with 2" in refused(find_cases, folder, DATASET)


def join(folder: Path, name: str, volumes: int = 2) -> Path:
    """A 4D NIfTI whose volume v is full of v + 1."""
    image = sitk.JoinSeries([sitk.GetImageFromArray(np.full(SHAPE, v + 1, np.int16)) for v in range(volumes)])
    image.SetSpacing((1.0, 1.0, 2.0, 1.0))
    sitk.WriteImage(image, str(folder / name))
    return folder / name


def test_one_file_may_hold_all_channels(tmp_path: Path) -> None:  # row 02
    join(tmp_path, "a_0000.nii.gz")
    (case,) = find_cases(tmp_path, DATASET)
    data, properties = read(case)
    assert data.shape == (2, *SHAPE)
    assert [c.mean() for c in data] == [1, 2]
    assert properties["spacing"] == [2.0, 1.0, 1.0]
    geometry = properties["sitk_stuff"]  # of three axes, or no segmentation can be written
    assert [len(geometry[k]) for k in ("spacing", "origin", "direction")] == [3, 3, 9]
    SimpleITKIO().write_seg(np.zeros(SHAPE, np.uint8), str(tmp_path / "a.nii.gz"), properties)
    assert sitk.ReadImage(str(tmp_path / "a.nii.gz")).GetSpacing() == (1.0, 1.0, 2.0)


# ---- headers ----------------------------------------------------------------------------------------------------------


def test_sound_headers_pass(folder: Path) -> None:
    check_headers(find_cases(folder, DATASET))


@pytest.mark.parametrize("content", [b"", b"not an image"])
def test_an_unreadable_header_is_named(folder: Path, content: bytes) -> None:
    file = folder / "b_2_0001.nii.gz"
    file.write_bytes(content)
    assert f"{file} cannot be read" in refused(check_headers, [Case("b_2", (folder / "b_2_0000.nii.gz", file))])


def test_channels_of_different_size_are_named(folder: Path) -> None:
    file = write(folder / "a_0001.nii.gz", np.zeros((6, 8, 9), np.int16))
    sentence = refused(check_headers, find_cases(folder, DATASET))
    assert f"{file} has (9, 8, 6) voxels, but a_0000.nii.gz has (10, 8, 6)" in sentence


def test_formats_without_a_cheap_header_are_left_to_the_reader(tmp_path: Path) -> None:
    file = tmp_path / "a_0000.png"
    file.write_bytes(b"not an image")
    check_headers([Case("a", (file,))])


# ---- reading ----------------------------------------------------------------------------------------------------------


def test_channels_are_stacked_with_the_properties_of_the_first(folder: Path) -> None:
    data, properties = read(find_cases(folder, DATASET)[0])
    assert data.dtype == np.float32 and data.shape == (2, *SHAPE)
    assert [c.mean() for c in data] == [3, 4]
    assert list(properties["spacing"]) == [2.0, 1.0, 1.0]


def test_channels_of_different_geometry_are_named(folder: Path) -> None:
    file = write(folder / "a_0001.nii.gz", np.zeros(SHAPE, np.int16), origin=3.0)
    sentence = refused(read, find_cases(folder, DATASET)[0])
    assert f"{file} and a_0000.nii.gz differ in geometry (origin" in sentence


def test_the_number_of_channels_must_be_the_models(folder: Path) -> None:
    sentence = refused(read, Case("a", (folder / "a_0000.nii.gz",)))
    assert "The case a has 1 channels, but the model was trained with 2" in sentence


# ---- preprocessing ----------------------------------------------------------------------------------------------------


def test_a_case_is_read_cropped_and_resampled_to_the_plans_spacing(folder: Path, plans: dict[str, Any]) -> None:
    inside = np.zeros(SHAPE, np.int16)
    inside[1:5, 2:8, 2:8] = 7
    for channel in range(2):
        write(folder / f"a_{channel:04d}.nii.gz", inside)
    data, properties = read_and_preprocess(find_cases(folder, DATASET)[0], plans, "c", DATASET)
    assert data.dtype == np.float32 and data.flags.c_contiguous
    assert data.shape == (2, 8, 6, 6)  # 4 slices of 2 mm
    assert properties["shape_before_cropping"] == SHAPE
    assert properties["bbox_used_for_cropping"] == [[1, 5], [2, 8], [2, 8]]
    np.testing.assert_allclose(data, 7)


def test_an_empty_image_is_refused_and_its_case_named(folder: Path, plans: dict[str, Any]) -> None:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    empty = np.zeros((2, *SHAPE), np.float32)
    assert "All voxels of the image are 0" in refused(preprocess, empty, {}, PlansManager(plans), "c", DATASET)
    for channel in range(2):
        write(folder / f"a_{channel:04d}.nii.gz", np.zeros(SHAPE, np.int16))
    sentence = refused(read_and_preprocess, find_cases(folder, DATASET)[0], plans, "c", DATASET)
    assert sentence.startswith("The case a cannot be used: All voxels")
