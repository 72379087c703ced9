"""What a report shows of a case: slices through its segmentation, image, uncertainty maps and samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from acvl_utils.cropping_and_padding.bounding_boxes import get_bbox_from_mask
from nibabel.orientations import io_orientation
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from numpy.typing import NDArray

from nndiffseg.data.dataset_json import structures_of
from nndiffseg.data.images import planned_reader, read_image
from nndiffseg.uncertainty.evaluation import read_array, sample_files, uncertainty_map

ANATOMICAL = ("axial", "coronal", "sagittal")
#: A whole sample is read for a few slices of it, so fewer samples of a large volume are drawn.
MAX_SAMPLES = 16
SAMPLE_VOXELS = 64_000_000


@dataclass(frozen=True)
class View:
    """One slice of a case; every array is ``(H, W)``.

    Attributes:
        name: ``axial``, ``coronal`` or ``sagittal``; ``axis 1`` and so on where the file does not state its
            orientation; empty for a 2D image.
        spacing: height and width of a pixel; in mm for the anatomical planes.
        image: grey values.
        segmentation: labels.
        maps: ``total`` and, if several folds were used, ``aleatoric`` and ``epistemic`` uncertainty, in [0, 1].
        samples: labels of each saved sample.
        reference: true labels, if they are known.
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
    """Where to cut a volume ``(*spatial)`` into one slice per axis.

    Attributes:
        names: of the slices, see :class:`View`.
        order: the volume is first transposed to this order of axes.
        flipped: these axes of the transposed volume are then flipped. What follows refers to the result.
        spacing: of each axis, in mm for anatomical planes.
        position: index of the slice along each axis.
        box: field of view of the slices.
    """

    names: tuple[str, ...]
    order: tuple[int, ...]
    flipped: tuple[int, ...]
    spacing: tuple[float, ...]
    position: tuple[int, ...]
    box: tuple[slice, ...]

    def cut(self, volume: NDArray) -> list[NDArray]:
        """One slice ``(H, W)`` per plane, copied so that the volume can be freed."""
        oriented, slices = _orient(volume, self.order, self.flipped), []
        for axis in range(len(self.names)):
            index: list[int | slice] = list(self.box)
            index[axis] = self.position[axis]
            slices.append(oriented[tuple(index)].copy())
        return slices

    def pixel_spacing(self, plane: int) -> tuple[float, float]:
        """Height and width of a pixel."""
        height, width = (s for axis, s in enumerate(self.spacing) if axis != plane)
        return height, width


def full_scale(dataset_json: Mapping[str, Any]) -> float:
    """Uncertainty of a voxel with two equally probable labels: the bright end of the colour scale.

    The maps are entropies divided by log C, so two labels at 1/2 give log 2 / log C. For R regions the maps average R
    binary entropies, so one undecided region gives 1 / R (:func:`nndiffseg.uncertainty.maps.entropy`).
    """
    structures = structures_of(dataset_json)
    if any(len(labels) > 1 for labels in structures.values()):
        return 1 / len(structures)
    return float(np.log(2) / np.log(1 + len(structures)))


def report_reader(predictions: Path, dataset_json: Mapping[str, Any], example: Path) -> BaseReaderWriter:
    """The reader named in the model's plans, or else nnU-Net's choice for ``example``.

    Raises:
        UserError: the plans are not as planners write them, or dataset.json names an unknown reader.
    """
    return planned_reader(predictions / "plans.json", dataset_json, example)()


def read_views(
    predictions: Path, case: str, image_file: Path, dataset_json: Mapping[str, Any], reference_file: Path | None = None
) -> list[View]:
    """Reads the slices of one case, with no more than a few volumes in memory at a time.

    Args:
        predictions: folder written by ``nndiffseg_predict``.
        case: its id.
        image_file: its first channel. A photograph is shown as the mean of its colours.
        dataset_json: of the dataset.
        reference_file: its true labels, if there are any.

    Returns:
        Three orthogonal slices, cropped around the segmentation; a 2D image gives one slice, uncropped.

    Raises:
        UserError: a file is missing, truncated or not an image.
    """
    reader, ending = report_reader(predictions, dataset_json, image_file), dataset_json["file_ending"]
    labels, properties = read_image(reader, predictions / f"{case}{ending}", label=True)
    reference = None if reference_file is None else _read_labels(reader, reference_file)
    total_file = uncertainty_map(predictions, case, "total")
    total = np.zeros(labels.shape[1:], np.float32) if total_file is None else read_array(total_file, reader)
    planes = find_planes(labels[0], total, reference, properties, full_scale(dataset_json))
    maps = {} if total_file is None else {"total": planes.cut(total)}
    del total
    maps |= {kind: planes.cut(read_array(file, reader)) for kind, file in _parts_of_total(predictions, case).items()}
    drawn = sample_files(predictions, case, ending)[: max_samples_drawn(labels.size)]
    samples = [planes.cut(_read_labels(reader, file)) for file in drawn]
    image, segmentation = planes.cut(_read_grey(reader, image_file)), planes.cut(labels[0])
    truth = [None] * len(planes.names) if reference is None else planes.cut(reference)
    views = []
    for i, name in enumerate(planes.names):
        maps_here, samples_here = {kind: slices[i] for kind, slices in maps.items()}, [slices[i] for slices in samples]
        views.append(View(name, planes.pixel_spacing(i), image[i], segmentation[i], maps_here, samples_here, truth[i]))
    return views


def _read_labels(reader: BaseReaderWriter, file: Path) -> NDArray:
    return read_image(reader, file, label=True)[0][0]


def _read_grey(reader: BaseReaderWriter, file: Path) -> NDArray:
    """First channel ``(*spatial)``, or the mean of the three colours of a 2D image."""
    image, _ = read_image(reader, file)
    photograph = len(image) == 3 and image.shape[1] == 1
    return image.mean(0) if photograph else image[0]


def _parts_of_total(predictions: Path, case: str) -> dict[str, Path]:
    """Files of the aleatoric and the epistemic map; none with one fold, since then the aleatoric map equals the total."""
    files = {kind: uncertainty_map(predictions, case, kind) for kind in ("aleatoric", "epistemic")}
    return {} if files["epistemic"] is None else {kind: file for kind, file in files.items() if file is not None}


def max_samples_drawn(voxels: int) -> int:
    """At most so many samples of a volume of this size are drawn."""
    return min(MAX_SAMPLES, max(4, SAMPLE_VOXELS // voxels))


def find_planes(
    segmentation: NDArray, total: NDArray, reference: NDArray | None, properties: Mapping[str, Any], scale: float
) -> Planes:
    """Chooses the slices.

    Each slice lies at the median of the foreground along its axis, so it cuts the foreground even if that is hollow or
    scattered. If the segmentation is empty, the true foreground takes its place. If that is empty or unknown, the most
    uncertain voxels do, and if no voxel is uncertain, the whole image does.

    Args:
        segmentation: labels ``(*spatial)``, axes in the order of nnU-Net's readers.
        total: total uncertainty ``(*spatial)``, in [0, 1].
        reference: true labels ``(*spatial)``, or None.
        properties: of the segmentation, from its reader.
        scale: uncertainty of an undecided voxel. The field of view includes the voxels above half of it.
    """
    spacing = tuple(float(s) for s in properties["spacing"])
    if segmentation.shape[0] == 1:  # a 2D image is not cropped
        whole = tuple(slice(0, n) for n in segmentation.shape)
        return Planes(("",), (0, 1, 2), (), spacing, (0, 0, 0), whole)
    anatomical = _anatomical_order(properties)
    names, order, flipped = (ANATOMICAL, *anatomical) if anatomical else (("axis 1", "axis 2", "axis 3"), (0, 1, 2), ())
    foreground = segmentation != 0
    visible = foreground if reference is None else foreground | (reference != 0)
    if not foreground.any():
        foreground = visible if visible.any() else (total >= total.max())
    visible = _orient(visible | foreground | (total > scale / 2), order, flipped)
    spacing = tuple(spacing[axis] for axis in order)
    position = _median_position(_orient(foreground, order, flipped))
    return Planes(names, order, flipped, spacing, position, _field_of_view(visible, spacing))


def _orient(volume: NDArray, order: tuple[int, ...], flipped: tuple[int, ...]) -> NDArray:
    return np.flip(volume.transpose(order), flipped)


def _median_position(mask: NDArray[np.bool_]) -> tuple[int, ...]:
    """Per axis of ``(*spatial)``, the index up to which half of the mask's voxels lie."""
    profiles = [np.count_nonzero(mask, axis=tuple(a for a in range(3) if a != axis)) for axis in range(3)]
    return tuple(int(np.searchsorted(profile.cumsum(), profile.sum() / 2)) for profile in profiles)


def _field_of_view(mask: NDArray[np.bool_], spacing: tuple[float, ...]) -> tuple[slice, ...]:
    """The mask's bounding box with a margin, not too narrow, within the image ``(*spatial)``."""
    bounds = get_bbox_from_mask(mask)
    sizes = [1.5 * (high - low) * s for (low, high), s in zip(bounds, spacing, strict=True)]  # mm
    box = []
    for (low, high), size, s, n in zip(bounds, sizes, spacing, mask.shape, strict=True):
        wanted = max(size, 0.7 * max(sizes), 24 * min(spacing)) / s
        length = min(n, int(np.ceil(wanted)))
        start = min(max(0, round((low + high - length) / 2)), n - length)
        box.append(slice(start, start + length))
    return tuple(box)


def _anatomical_order(properties: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Order of axes and flips that make a reader's array point to inferior, posterior and left; None if unknown.

    Slices are then upright, with the patient's left on the right: the radiological convention.
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
