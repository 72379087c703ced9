"""Thickness of shapes whose thickness is known."""

from __future__ import annotations

import numpy as np
import pytest

from nndiffseg.planning.thickness import local_thickness, thickness


@pytest.mark.parametrize("voxels", [1, 3, 5, 9])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.0, 3.0, 3.0)])
def test_slab(voxels: int, spacing: tuple[float, ...]) -> None:
    mask = np.zeros((voxels + 4, 40, 40), bool)
    mask[2 : 2 + voxels] = True
    values = local_thickness(mask, spacing)
    assert np.median(values) == pytest.approx(voxels * spacing[0], rel=1e-6)


def test_ball() -> None:
    grid = np.stack(np.meshgrid(*[np.arange(31)] * 3, indexing="ij"), -1) - 15
    mask = np.linalg.norm(grid, axis=-1) < 12
    values = local_thickness(mask, (0.7, 0.7, 0.7))
    assert values.max() == pytest.approx(24 * 0.7, abs=0.7)
    assert np.median(values) == pytest.approx(24 * 0.7, abs=1.4)


def test_two_spacings_measure_within_slices() -> None:
    mask = np.zeros((3, 20, 20), bool)
    mask[:, 5:10] = True  # 5 voxels wide, and as high as the array
    assert np.median(local_thickness(mask, (1.0, 1.0))) == 5.0


def test_structures_are_reported_in_mm_and_voxels() -> None:
    label = np.zeros((24, 24, 24), np.int16)
    label[2:7] = 1
    label[10:13] = 2
    result = thickness([label, label], (2.0, 2.0, 2.0), {"thick": [1], "thin": [2], "absent": [3]})
    assert set(result) == {"thick", "thin"}
    assert result["thick"].median_mm == pytest.approx(10.0)
    assert result["thin"].median_voxels == pytest.approx(3.0)
    assert result["thin"].p5_mm <= result["thin"].median_mm
