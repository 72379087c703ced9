"""Selection, cropping and resampling of training labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nndiffseg.planning.labels import Label, foreground_box, load_labels, load_preprocessed_labels, resample_label


@pytest.fixture
def files(make_dataset: Callable[..., Path], tmp_path: Path) -> list[str]:
    folder = make_dataset(tmp_path, cases=5, shape=(20, 24, 16), spacing=(2.0, 1.0, 0.5))
    return sorted(str(f) for f in (folder / "labelsTr").iterdir())


def test_labels_are_transposed_with_their_spacing(files: list[str]) -> None:
    (label,) = load_labels(files[:1], SimpleITKIO(), (2, 0, 1))
    original = SimpleITKIO().read_seg(files[0])[0][0]
    assert label.spacing == (0.5, 2.0, 1.0)
    assert label.array.shape == (16, 20, 24)  # the margin reaches the edges
    np.testing.assert_array_equal(label.array, original.transpose(2, 0, 1))


def test_the_selection_is_seeded_and_bounded(files: list[str]) -> None:
    first = load_labels(files, SimpleITKIO(), (0, 1, 2), max_cases=3)
    again = load_labels(files, SimpleITKIO(), (0, 1, 2), max_cases=3)
    assert len(first) == 3
    assert all(np.array_equal(a.array, b.array) for a, b in zip(first, again, strict=True))
    assert len(load_labels(files, SimpleITKIO(), (0, 1, 2), max_voxels=1)) == 1


def test_preprocessed_labels_are_cropped_and_lie_at_their_spacing_already(tmp_path: Path) -> None:
    seg = np.full((1, 1, 40, 60), -1, np.int16)
    seg[0, 0, 5:35, 5:55] = 0
    seg[0, 0, 6:11, 20:40] = 2  # the margin reaches beyond the image
    for name, content in (("case", seg), ("empty", np.minimum(seg, 0))):
        nnUNetDatasetBlosc2.save_case(np.zeros(seg.shape, np.float32), content, {}, str(tmp_path / name))
    (label,) = load_preprocessed_labels(tmp_path, (0.5, 0.7))
    assert label.array.shape == (1, 6 + 5 + 8, 20 + 2 * 8) and label.array.min() == 0
    assert (label.array == 2).sum() == 5 * 20
    assert resample_label(label, (0.5, 0.7)) is label.array


def test_box_holds_the_foreground_and_the_margin() -> None:
    array = np.zeros((10, 10), int)
    array[4:6, 1] = 3
    assert foreground_box(array) == (slice(4, 6), slice(1, 2))
    assert foreground_box(array, 2) == (slice(2, 8), slice(0, 4))
    assert foreground_box(np.zeros((3, 3))) is None


def test_resampling_keeps_the_volume_and_the_spacing_between_slices() -> None:
    array = np.zeros((6, 20, 20), np.int16)
    array[1:5, 4:16, 6:14] = 1
    label = Label(array, (3.0, 1.0, 1.0))
    half = resample_label(label, (3.0, 0.5, 0.5))
    assert half.shape == (6, 40, 40)
    assert half.sum() == pytest.approx(4 * array.sum(), rel=0.05)
    np.testing.assert_array_equal(half, resample_label(label, (0.5, 0.5)))
    assert resample_label(label, (3.0, 1.0, 1.0)) is array
