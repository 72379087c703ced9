"""A seeded selection of a dataset's training labels, raw or preprocessed, cropped to their foreground."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape, resample_data_or_seg_to_shape
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from scipy import ndimage
from tqdm import tqdm

from nndiffseg.data.images import read_image

MAX_CASES = 64
MAX_VOXELS = 150_000_000
MARGIN = 8


@dataclass(frozen=True)
class Label:
    """One training label, cropped to the bounding box of its foreground plus a margin.

    Attributes:
        array: label numbers ``(*spatial)``, three axes, transposed as the plans say.
        spacing: mm per voxel along the axes of ``array``.
    """

    array: np.ndarray
    spacing: tuple[float, ...]


def load_labels(
    files: Sequence[str],
    reader: BaseReaderWriter,
    transpose_forward: Sequence[int],
    *,
    max_cases: int = MAX_CASES,
    max_voxels: int = MAX_VOXELS,
    seed: int = 0,
    progress: bool = False,
    ignore: int | None = None,
) -> list[Label]:
    """Reads up to ``max_cases`` labels in a seeded random order; stops after ``max_voxels`` cropped voxels.

    Labels without any foreground are left out.

    Args:
        files: label files of the training cases.
        reader: nnU-Net's reader for them.
        transpose_forward: order of the axes in the plans.
        progress: show a progress bar.
        ignore: nnU-Net's ignore label, see :func:`nearest_annotation`.
    """

    def read(i: int) -> Label:
        seg, properties = read_image(reader, files[i], label=True)
        spacing = tuple(float(properties["spacing"][a]) for a in transpose_forward)
        return Label(np.asarray(seg)[0].transpose(transpose_forward), spacing)

    return _select(read, len(files), max_cases, max_voxels, seed, progress, ignore)


def load_preprocessed_labels(folder: Path, spacing: Sequence[float], ignore: int | None = None) -> list[Label]:
    """The same selection of labels that nnU-Net has preprocessed, with a progress bar.

    Args:
        folder: of one configuration's preprocessed data.
        spacing: of that configuration, mm; with two numbers that between slices is unknown, and set to 1.
        ignore: nnU-Net's ignore label, see :func:`nearest_annotation`.
    """
    dataset = infer_dataset_class(str(folder))(str(folder))
    names = sorted(dataset.identifiers)

    def read(i: int) -> Label:
        array = np.asarray(dataset.load_case(names[i])[1][0]).clip(0)  # -1 is nnU-Net's mark of what lies outside the image
        return Label(array, (1.0,) * (array.ndim - len(spacing)) + tuple(float(s) for s in spacing))

    return _select(read, len(names), MAX_CASES, MAX_VOXELS, 0, True, ignore)


def _select(
    read: Callable[[int], Label],
    count: int,
    max_cases: int,
    max_voxels: int,
    seed: int,
    progress: bool,
    ignore: int | None,
) -> list[Label]:
    """Labels of a random selection of cases, cropped; those without foreground are left out."""
    order = np.random.default_rng(seed).permutation(count)[:max_cases]
    labels: list[Label] = []
    voxels = 0
    for i in tqdm(order, desc="Reading labels", disable=not progress):
        label = read(i)
        ignored = label.array == ignore
        box = foreground_box(np.where(ignored, 0, label.array) if ignored.any() else label.array, MARGIN)
        if box is None:
            continue
        array = nearest_annotation(label.array[box], ignored[box], label.spacing)
        labels.append(Label(np.ascontiguousarray(array).astype(np.int16), label.spacing))
        voxels += labels[-1].array.size
        if voxels > max_voxels:
            break
    return labels


def nearest_annotation(array: np.ndarray, ignored: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """The label with ignored voxels filled by the nearest annotated one.

    A structure that is drawn on every other slice is then as thick as it is, where background in between would make it one
    slice thick, and no boundary lies between annotated and ignored voxels.

    Args:
        array: label numbers ``(*spatial)``, some of them annotated.
        ignored: bool ``(*spatial)``.
        spacing: mm along each axis.
    """
    if not ignored.any():
        return array
    index = ndimage.distance_transform_edt(ignored, sampling=spacing, return_distances=False, return_indices=True)
    return array[tuple(index)]


def foreground_box(array: np.ndarray, margin: int = 0) -> tuple[slice, ...] | None:
    """Bounding box of the voxels above 0, grown by ``margin`` within the array; None where there are none."""
    slices = []
    for axis in range(array.ndim):
        hit = np.flatnonzero((array > 0).any(tuple(a for a in range(array.ndim) if a != axis)))
        if len(hit) == 0:
            return None
        slices.append(slice(max(0, int(hit[0]) - margin), min(array.shape[axis], int(hit[-1]) + 1 + margin)))
    return tuple(slices)


def resample_label(label: Label, target_spacing: Sequence[float]) -> np.ndarray:
    """The label at ``target_spacing`` (mm), resampled as nnU-Net resamples training labels, ``(*spatial)``.

    A target of two numbers (2d configurations) keeps the spacing between slices, as nnU-Net's preprocessor does.
    """
    target = [*label.spacing[: 3 - len(target_spacing)], *target_spacing]
    shape = compute_new_shape(label.array.shape, label.spacing, target)
    if tuple(shape) == label.array.shape:
        return label.array
    resampled = resample_data_or_seg_to_shape(
        label.array[None], shape, label.spacing, target, is_seg=True, order=1, order_z=0, force_separate_z=None
    )
    return np.asarray(resampled)[0].astype(np.int16)
