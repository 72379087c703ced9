"""Distances of surfaces against closed forms and MONAI."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nndiffseg.uncertainty.surfaces import surface_measures


def ball(radius: float, shape: tuple[int, ...] = (32, 40), shift: int = 0) -> np.ndarray:
    grid = np.indices(shape) - np.array([n // 2 for n in shape]).reshape(-1, *[1] * len(shape))
    grid[-1] -= shift
    return (grid**2).sum(0) <= radius**2


def cuboid() -> np.ndarray:
    mask = np.zeros((30, 30, 30), bool)
    mask[5:25, 5:25, 5:25] = True
    return mask


def test_nsd_of_two_shifted_cuboids_follows_from_their_faces():
    a, b = cuboid(), np.roll(cuboid(), 2, axis=0)
    # The four faces along the shift lie within 1 mm of the other surface, the two across it but for their rims do not. At
    # 2 mm everything does.
    assert surface_measures(a, b, (1.0, 1.0, 1.0), 2.0).nsd == 1
    assert surface_measures(a, b, (1.0, 1.0, 1.0), 1.0).nsd == pytest.approx(4 / 6, abs=0.04)
    assert surface_measures(a, b, (0.5, 0.5, 0.5), 1.0).nsd == 1  # spacing counts


def test_hd95_of_two_shifted_cuboids_is_the_shift():
    a, b = cuboid(), np.roll(cuboid(), 3, axis=0)
    assert surface_measures(a, b, (1.0, 1.0, 1.0), 1.0).hd95_mm == pytest.approx(3)
    assert surface_measures(a, b, (2.5, 1.0, 1.0), 1.0).hd95_mm == pytest.approx(7.5)


def test_hd95_leaves_out_a_speck_that_is_less_than_5_percent_of_the_surface():
    a = cuboid()
    speck = a.copy()
    speck[0, 0, 0] = True
    assert surface_measures(speck, a, (1, 1, 1), 1).hd95_mm == 0


def test_empty_masks():
    some, none = ball(5), np.zeros((32, 40), bool)
    assert np.isnan(surface_measures(none, none, (1, 1), 1)).all()
    for pair in ((some, none), (none, some)):
        nsd, hd95 = surface_measures(*pair, (1, 1), 1)
        assert nsd == 0 and np.isnan(hd95)
    assert surface_measures(some, some, (1, 1), 0.1) == (1, 0)


@pytest.mark.seconds
def test_nsd_and_hd95_equal_those_of_monai():
    monai = pytest.importorskip("monai.metrics", reason="needs MONAI, of the extra oracle")
    a, b = ball(6, (16, 18, 17)), ball(7, (16, 18, 17), shift=2)
    one_hot = [torch.from_numpy(m)[None, None].float() for m in (a, b)]
    spacing = (1.5, 1.0, 0.75)
    ours = surface_measures(a, b, spacing, 1.0)
    nsd = monai.compute_surface_dice(*one_hot, [1.0], include_background=True, spacing=spacing, use_subvoxels=True)
    assert ours.nsd == pytest.approx(float(nsd), abs=1e-3)
    # MONAI's percentile is over voxels of the edge, not over the area of the surface.
    hd95 = monai.compute_hausdorff_distance(*one_hot, include_background=True, percentile=95, spacing=spacing)
    assert ours.hd95_mm == pytest.approx(float(hd95), abs=0.5)
