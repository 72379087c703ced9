"""Where a report cuts a volume: one upright slice per axis, at several positions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from acvl_utils.cropping_and_padding.bounding_boxes import get_bbox_from_mask
from nibabel.orientations import io_orientation
from numpy.typing import NDArray

ANATOMICAL = ("axial", "coronal", "sagittal")


@dataclass(frozen=True)
class Planes:
    """Where to cut a volume ``(*spatial)`` into one slice per axis.

    Attributes:
        names: of the slices, see :class:`nndiffseg.report.slices.View`.
        order: the volume is first transposed to this order of axes.
        flipped: these axes of the transposed volume are then flipped. What follows refers to the result.
        spacing: of each axis, in mm for anatomical planes.
        position: index of the slice along each axis.
        box: field of view of the slices.
        frames: positions to scroll through, ``position`` among them.
        doubtful: along each axis, the index of the slice with most undecided voxels.
        doubtful_plane: the axis whose slice has the largest area of them.
    """

    names: tuple[str, ...]
    order: tuple[int, ...]
    flipped: tuple[int, ...]
    spacing: tuple[float, ...]
    position: tuple[int, ...]
    box: tuple[slice, ...]
    frames: tuple[tuple[int, ...], ...] = ()
    doubtful: tuple[int, ...] = ()
    doubtful_plane: int = 0

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


def find_planes(
    segmentation: NDArray,
    total: NDArray,
    reference: NDArray | None,
    properties: Mapping[str, Any],
    scale: float,
    frames: int = 1,
) -> Planes:
    """Chooses the slices.

    Each slice lies at the median of the foreground along its axis, so it cuts the foreground even if that is hollow or
    scattered. If the segmentation is empty, the true foreground takes its place. If that is empty or unknown, the most
    uncertain voxels do, and if no voxel is uncertain, the whole image does. Further frames lie before and after it.

    Args:
        segmentation: labels ``(*spatial)``, axes in the order of nnU-Net's readers.
        total: total uncertainty ``(*spatial)``, in [0, 1].
        reference: true labels ``(*spatial)``, or None.
        properties: of the segmentation, from its reader.
        scale: uncertainty of an undecided voxel. The field of view includes the voxels above half of it.
        frames: odd number of positions. A thin structure has fewer.
    """
    spacing = tuple(float(s) for s in properties["spacing"])
    if segmentation.shape[0] == 1:  # a 2D image is not cropped
        whole = tuple(slice(0, n) for n in segmentation.shape)
        return Planes(("",), (0, 1, 2), (), spacing, (0, 0, 0), whole, ((0, 0, 0),), (0, 0, 0))
    anatomical = _anatomical_order(properties)
    names, order, flipped = (ANATOMICAL, *anatomical) if anatomical else (("axis 1", "axis 2", "axis 3"), (0, 1, 2), ())
    foreground = segmentation != 0
    visible = foreground if reference is None else foreground | (reference != 0)
    if not foreground.any():
        foreground = visible if visible.any() else (total >= total.max())
    doubt = total > scale / 2
    visible = _orient(visible | foreground | doubt, order, flipped)
    if not doubt.any():
        doubt = (total >= total.max()) if total.any() else foreground
    spacing = tuple(spacing[axis] for axis in order)
    spread = [_spread(profile, frames) for profile in _profiles(_orient(foreground, order, flipped))]
    positions = list(zip(*spread, strict=True))
    return Planes(
        names,
        order,
        flipped,
        spacing,
        positions[frames // 2],
        _field_of_view(visible, spacing),
        tuple(dict.fromkeys(positions)),  # in order, each once
        *_fullest(_profiles(_orient(doubt, order, flipped)), spacing),
    )


def _orient(volume: NDArray, order: tuple[int, ...], flipped: tuple[int, ...]) -> NDArray:
    return np.flip(volume.transpose(order), flipped)


def _profiles(mask: NDArray[np.bool_]) -> list[NDArray]:
    """Per axis of ``(*spatial)``, the number of the mask's voxels in each slice."""
    return [np.count_nonzero(mask, axis=tuple(a for a in range(3) if a != axis)) for axis in range(3)]


def _spread(profile: NDArray, count: int) -> list[int]:
    """An odd number of slices, spread evenly over those with voxels. Up to the middle one lie half of the voxels."""
    occupied = np.flatnonzero(profile)
    middle = int(np.searchsorted(occupied, np.searchsorted(profile.cumsum(), profile.sum() / 2)))
    steps = np.arange(1, count // 2 + 1) / (count / 2)  # the ends themselves show next to nothing
    before, after = middle * (1 - steps[::-1]), middle + (len(occupied) - 1 - middle) * steps
    return [int(i) for i in occupied[np.rint([*before, middle, *after]).astype(int)]]


def _fullest(profiles: list[NDArray], spacing: tuple[float, ...]) -> tuple[tuple[int, ...], int]:
    """Per axis the slice with most voxels, and the axis whose slice has the largest area of them."""
    areas = [profile.max() / s for profile, s in zip(profiles, spacing, strict=True)]  # times the volume of a voxel
    return tuple(int(profile.argmax()) for profile in profiles), int(np.argmax(areas))


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
