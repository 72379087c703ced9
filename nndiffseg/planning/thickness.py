"""Thickness of the structures: the largest ball that fits inside, around every voxel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from nndiffseg.planning.labels import foreground_box

MAX_CASES = 16
MAX_VOXELS = 8_000_000  # of bounding boxes per structure: the distance transforms should take seconds
LEVELS = 12


@dataclass(frozen=True)
class Thickness:
    """Local thickness of one structure over its voxels, all cases pooled.

    Attributes:
        median_mm, p5_mm: median and 5th percentile in mm.
        median_voxels, p5_voxels: the same in voxels of the finest axis.
    """

    median_mm: float
    p5_mm: float
    median_voxels: float
    p5_voxels: float


def thickness(
    labels: Sequence[np.ndarray],
    spacing: Sequence[float],
    structures: Mapping[str, Sequence[int]],
    *,
    max_cases: int = MAX_CASES,
) -> dict[str, Thickness]:
    """Local thickness of each structure that occurs.

    Args:
        labels: label maps ``(*spatial)``, all at the same ``spacing``.
        spacing: mm; two numbers where thickness is to be measured within slices (all axes but the first).
        structures: name -> label numbers.
        max_cases: use only this many, the first.
    """
    values: dict[str, list[np.ndarray]] = {name: [] for name in structures}
    used = dict.fromkeys(structures, 0)
    for array in labels[:max_cases]:
        for name, members in structures.items():
            mask = np.isin(array, list(members))
            box = foreground_box(mask, 1)
            if box is not None and (not values[name] or used[name] < MAX_VOXELS):
                used[name] += mask[box].size
                values[name].append(local_thickness(mask[box], spacing))
    result = {}
    for name, parts in values.items():
        if parts:
            median, p5 = np.percentile(np.concatenate(parts), [50, 5])
            finest = min(spacing)
            result[name] = Thickness(float(median), float(p5), float(median / finest), float(p5 / finest))
    return result


def local_thickness(mask: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Thickness in mm at every voxel of ``mask`` ``(*spatial)``: the diameter of the largest ball inside the structure
    that contains the voxel (Hildebrand & Rueegsegger 1997, J Microsc 185:67, eq. 1).

    The distance transform gives each voxel the distance to the nearest voxel centre outside, so the diameter is twice
    that less one voxel. Accurate to one voxel. Balls come in at most :data:`LEVELS` sizes.
    """
    if len(spacing) < mask.ndim:
        slices = [local_thickness(m, spacing) for m in mask if m.any()]
        return np.concatenate(slices) if slices else np.zeros(0)
    sampling = tuple(float(s) for s in spacing)
    inside = np.pad(mask, 1)  # a structure ends where the array ends
    distance = ndimage.distance_transform_edt(inside, sampling=sampling)
    radii = np.unique(distance[inside])
    if len(radii) > LEVELS:
        radii = radii[np.linspace(0, len(radii) - 1, LEVELS).round().astype(int)]
    result = np.zeros(distance.shape)
    for radius in radii:  # ascending, so larger balls overwrite smaller ones
        centre_distance = ndimage.distance_transform_edt(distance < radius, sampling=sampling)
        result[(centre_distance < radius) & inside] = 2 * radius - min(sampling)
    return result[inside]
