"""What a report shows of a case: slices through the middle of its segmentation, of the image and of all that was written."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.orientations import io_orientation
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name
from numpy.typing import NDArray

from nndiffseg.data.images import find_reader, read_image
from nndiffseg.data.plan_names import check_plan_names
from nndiffseg.uncertainty.evaluation import read_array, structures_of, uncertainty_map

ANATOMICAL = ("axial", "coronal", "sagittal")
#: Samples are read whole for a few slices of each, so large volumes show fewer of them.
MAX_SAMPLES = 16
SAMPLE_VOXELS = 64_000_000


@dataclass(frozen=True)
class View:
    """One slice of a case, every array ``(H, W)``.

    Attributes:
        name: ``axial``, ``coronal`` or ``sagittal``; ``axis 1`` and so on where the file does not tell its
            orientation; empty for a 2D image.
        spacing: height and width of a pixel; in mm for the anatomical planes.
        image: grey values.
        segmentation: labels.
        maps: ``total`` and, where several folds were used, ``aleatoric`` and ``epistemic``; in [0, 1].
        samples: labels of each sample that was saved.
        reference: true labels, where they are known.
    """

    name: str
    spacing: tuple[float, float]
    image: NDArray
    segmentation: NDArray
    maps: dict[str, NDArray] = field(default_factory=dict)
    samples: list[NDArray] = field(default_factory=list)
    reference: NDArray | None = None


@dataclass(frozen=True)
class Planes:
    """Where a volume ``(*spatial)`` is cut: after transposition and flips, at ``position`` within ``box``."""

    names: tuple[str, ...]
    order: tuple[int, ...]
    flipped: tuple[int, ...]
    spacing: tuple[float, ...]  # of the oriented axes
    position: tuple[int, ...]
    box: tuple[slice, ...]

    def cut(self, volume: NDArray) -> list[NDArray]:
        """One slice per plane, copied so that the volume can go."""
        oriented, slices = _orient(volume, self.order, self.flipped), []
        for axis in range(len(self.names)):
            index: list[Any] = list(self.box)
            index[axis] = self.position[axis]
            slices.append(oriented[tuple(index)].copy())
        return slices

    def pixel(self, plane: int) -> tuple[float, float]:
        """Height and width of a pixel."""
        height, width = (s for axis, s in enumerate(self.spacing) if axis != plane)
        return height, width


def full_scale(dataset_json: Mapping[str, Any]) -> float:
    """The uncertainty of a voxel that two labels share equally: the bright end of the colour scale.

    The maps are entropies normalised by log C, where two labels at 1/2 give log 2 / log C; for R regions, whose binary
    entropies are averaged, one undecided region gives 1 / R (:func:`nndiffseg.uncertainty.maps.entropy`).
    """
    structures = structures_of(dict(dataset_json))
    if any(len(labels) > 1 for labels in structures.values()):
        return 1 / len(structures)
    return float(np.log(2) / np.log(1 + len(structures)))


def report_reader(predictions: Path, dataset_json: Mapping[str, Any], example: Path) -> BaseReaderWriter:
    """The reader that the model's plans name, else nnU-Net's choice for ``example``.

    Raises:
        UserError: the plans or dataset.json name what is none of nnU-Net's.
    """
    file = predictions / "plans.json"
    if file.is_file():
        plans = json.loads(file.read_text(encoding="utf8"))
        check_plan_names(plans, str(file))
        if name := plans.get("image_reader_writer"):
            return recursive_find_reader_writer_by_name(name)()
    return find_reader(dataset_json, example)()


def read_views(
    predictions: Path, case: str, image_file: Path, dataset_json: Mapping[str, Any], reference_file: Path | None = None
) -> list[View]:
    """Reads the slices of one case; holds no more than a few volumes at a time.

    Args:
        predictions: folder that ``nndiffseg_predict`` wrote.
        case: its id.
        image_file: its first channel. Of a photograph the mean of its colours is shown.
        dataset_json: of the dataset.
        reference_file: its true label, where there is one.

    Returns:
        Three orthogonal slices, cropped around the segmentation; of a 2D image, the whole of it.

    Raises:
        UserError: a file is missing, truncated or not an image.
    """
    reader = report_reader(predictions, dataset_json, image_file)
    ending = dataset_json["file_ending"]
    labels, properties = read_image(reader, predictions / f"{case}{ending}", label=True)
    reference = None if reference_file is None else read_image(reader, reference_file, label=True)[0][0]
    total_file = uncertainty_map(predictions, case, "total")
    total = np.zeros(labels.shape[1:], np.float32) if total_file is None else read_array(total_file, reader)
    planes = find_planes(labels[0], total, reference, properties, full_scale(dataset_json))
    maps = {"total": planes.cut(total)} if total_file is not None else {}
    del total
    maps |= _further_maps(predictions, case, reader, planes)
    samples = [
        planes.cut(read_image(reader, file, label=True)[0][0])
        for file in sample_files(predictions, case, ending)[: samples_shown(labels.size)]
    ]
    image, _ = read_image(reader, image_file)
    colour = len(image) == 3 and image.shape[1] == 1
    grey = planes.cut(image.mean(0) if colour else image[0])
    truth = None if reference is None else planes.cut(reference)
    segmentation = planes.cut(labels[0])
    return [
        View(
            name,
            planes.pixel(i),
            grey[i],
            segmentation[i],
            {kind: m[i] for kind, m in maps.items()},
            [s[i] for s in samples],
            None if truth is None else truth[i],
        )
        for i, name in enumerate(planes.names)
    ]


def _further_maps(predictions: Path, case: str, reader: BaseReaderWriter, planes: Planes) -> dict[str, list[NDArray]]:
    """Aleatoric and epistemic maps; none with one fold, whose aleatoric map equals the total."""
    if uncertainty_map(predictions, case, "epistemic") is None:
        return {}
    files = {kind: uncertainty_map(predictions, case, kind) for kind in ("aleatoric", "epistemic")}
    return {kind: planes.cut(read_array(file, reader)) for kind, file in files.items() if file is not None}


def sample_files(predictions: Path, case: str, ending: str) -> list[Path]:
    """The label maps of a case's samples, in order."""
    name = re.compile(re.escape(case) + r"_s\d+" + re.escape(ending))
    folder = predictions / "samples"
    return sorted(f for f in folder.iterdir() if name.fullmatch(f.name)) if folder.is_dir() else []


def samples_shown(voxels: int) -> int:
    """How many samples of a volume this large are drawn at most."""
    return min(MAX_SAMPLES, max(4, SAMPLE_VOXELS // voxels))


def find_planes(
    segmentation: NDArray, total: NDArray, reference: NDArray | None, properties: Mapping[str, Any], scale: float
) -> Planes:
    """Chooses the slices.

    Each lies at the median of the foreground along its axis, so that it cuts the foreground even where that is hollow
    or scattered. Without any foreground the most uncertain voxel, and without that the image's middle, takes its place.

    Args:
        segmentation, total: labels and total uncertainty, ``(*spatial)`` in the order of nnU-Net's readers.
        reference: true labels, or None.
        properties: as the reader gave them.
        scale: uncertainty of an undecided voxel; voxels above half of it belong into the picture.
    """
    spacing = tuple(float(s) for s in properties["spacing"])
    if segmentation.shape[0] == 1:  # the field of view of a 2D image is kept
        whole = tuple(slice(0, n) for n in segmentation.shape)
        return Planes(("",), (0, 1, 2), (), spacing, (0, 0, 0), whole)
    orientation = _orientation(properties)
    names, order, flipped = (ANATOMICAL, *orientation) if orientation else (("axis 1", "axis 2", "axis 3"), (0, 1, 2), ())
    foreground = segmentation != 0
    seen = foreground if reference is None else foreground | (reference != 0)
    if not foreground.any():
        foreground = seen if seen.any() else (total >= total.max())
    seen = _orient(seen | foreground | (total > scale / 2), order, flipped)
    foreground = _orient(foreground, order, flipped)
    spacing = tuple(spacing[axis] for axis in order)
    position = tuple(_median(_profile(foreground, axis)) for axis in range(3))
    return Planes(names, order, flipped, spacing, position, _field_of_view(seen, spacing))


def _orient(volume: NDArray, order: tuple[int, ...], flipped: tuple[int, ...]) -> NDArray:
    return np.flip(volume.transpose(order), flipped)


def _profile(mask: NDArray, axis: int) -> NDArray:
    return np.count_nonzero(mask, axis=tuple(a for a in range(3) if a != axis))


def _median(profile: NDArray) -> int:
    return int(np.searchsorted(profile.cumsum(), profile.sum() / 2))


def _field_of_view(mask: NDArray, spacing: tuple[float, ...]) -> tuple[slice, ...]:
    """The mask's bounding box with a margin, not too slim, inside the image."""
    lows, highs = [], []
    for axis in range(3):
        where = np.flatnonzero(_profile(mask, axis))
        lows.append(int(where[0]))
        highs.append(int(where[-1]) + 1)
    sizes = [1.5 * (h - low) * s for low, h, s in zip(lows, highs, spacing, strict=True)]  # mm
    box = []
    for axis, n in enumerate(mask.shape):
        wanted = max(sizes[axis], 0.7 * max(sizes), 24 * min(spacing)) / spacing[axis]
        length = min(n, int(np.ceil(wanted)))
        start = min(max(0, round((lows[axis] + highs[axis] - length) / 2)), n - length)
        box.append(slice(start, start + length))
    return tuple(box)


def _orientation(properties: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Order and flips that make the axes of a reader's array point to inferior, posterior and left; None if unknown.

    Pictures then stand upright, with the patient's left on their right, as radiologists look at them.
    """
    affine = np.eye(4)
    if "nibabel_stuff" in properties:
        affines = properties["nibabel_stuff"]
        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.asarray(affines.get("reoriented_affine", affines["original_affine"]))
    elif len(properties.get("sitk_stuff", {}).get("direction", ())) == 9:
        affine[:3, :3] = np.reshape(properties["sitk_stuff"]["direction"], (3, 3))
    else:
        return None
    ornt = io_orientation(affine)  # per file axis (x, y, z): physical axis (left, posterior, superior) and sign
    if np.isnan(ornt).any():
        return None
    file_axis = [int(np.flatnonzero(ornt[:, 0] == physical)[0]) for physical in (2, 1, 0)]
    wanted = (-1, 1, 1)
    return (tuple(2 - axis for axis in file_axis), tuple(i for i, axis in enumerate(file_axis) if ornt[axis, 1] != wanted[i]))
