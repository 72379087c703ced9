"""The curve against the design's measurement, independent decompositions and cases with a known answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nndiffseg.planning import rate_distortion as module
from nndiffseg.planning.labels import load_labels, resample_label
from nndiffseg.planning.rate_distortion import rate_distortion


def balls(n: int, size: int = 24, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(size)] * 3, indexing="ij"), -1)
    labels = []
    for _ in range(n):
        r = np.linalg.norm(grid - rng.uniform(size * 0.45, size * 0.55, 3), axis=-1)
        outer, inner = size * rng.uniform(0.29, 0.38), size * rng.uniform(0.13, 0.21)
        labels.append((r < outer).astype(np.int16) + (r < inner).astype(np.int16))
    return labels


STRUCTURES = {"shell": [1], "core": [2]}


@pytest.mark.parametrize(
    ("stride", "expected"),
    [
        ((2, 2, 2), {4: 0.969, 8: 0.999}),
        ((4, 4, 4), {4: 0.866, 8: 0.934, 16: 0.967}),
        ((8, 8, 8), {1: 0.24}),
    ],
)
def test_hippocampus_agrees_with_the_design(hippocampus: Path, stride: tuple[int, ...], expected: dict[int, float]) -> None:
    files = sorted(str(f) for f in (hippocampus / "labelsTr").glob("*.nii.gz"))
    labels = load_labels(files, SimpleITKIO(), (0, 1, 2))
    arrays = [resample_label(label, (1.0, 1.0, 1.0)) for label in labels]
    points = rate_distortion(arrays, stride, {"anterior": [1], "posterior": [2]}, channels=sorted(expected))
    for point in points:
        # One channel at stride 8 erases a structure, so its Dice hangs on which cases are drawn.
        tolerance = 0.03 if point.channels == 1 else 0.02
        assert point.dice_mean == pytest.approx(expected[point.channels], abs=tolerance)
        assert point.worst_p5 <= point.worst_mean


def test_more_channels_never_hurt_and_all_of_them_are_exact() -> None:
    points = rate_distortion(balls(6), (2, 2, 2), STRUCTURES, channels=(1, 4, 16, 24))
    means = [p.dice_mean for p in points]
    assert means == sorted(means)
    assert means[-1] == 1.0  # 24 = 8 voxels of 3 labels: the whole one-hot vector
    assert means[0] < 0.95


def test_boundaries_on_the_block_grid_cost_nothing() -> None:
    cube = np.zeros((16, 16, 16), np.int16)
    cube[4:12, 4:12, 4:12] = 1
    (point,) = rate_distortion([cube, cube], (4, 4, 4), {"cube": [1]}, channels=(1,))
    assert point.dice_mean == 1.0


def test_reconstruction_equals_an_independent_decomposition() -> None:
    """Two identical cases: the halves are the same data, so the singular vectors of one case give the same code."""
    (label,) = balls(1)
    (point,) = rate_distortion([label, label], (4, 4, 4), STRUCTURES, channels=(5,))
    blocks = label.reshape(6, 4, 6, 4, 6, 4).transpose(0, 2, 4, 1, 3, 5).reshape(216, 64)
    boundary = blocks.max(1) != blocks.min(1)
    onehot = np.eye(3)[blocks[boundary]].reshape(boundary.sum(), -1)
    mean = onehot.mean(0)
    vectors = np.linalg.svd(onehot - mean, full_matrices=False)[2][:5]
    decoded = blocks.copy()
    decoded[boundary] = (mean + (onehot - mean) @ vectors.T @ vectors).reshape(-1, 64, 3).argmax(-1)
    dice = [2 * ((blocks == c) & (decoded == c)).sum() / ((blocks == c).sum() + (decoded == c).sum()) for c in (1, 2)]
    assert point.dice_mean == pytest.approx(np.mean(dice), abs=2e-3)
    assert point.worst_mean == pytest.approx(min(dice), abs=4e-3)


def test_principal_components_are_the_eigenvectors_of_the_covariance() -> None:
    rng = np.random.default_rng(0)
    rows = (rng.random((400, 27)) < np.linspace(0.1, 0.9, 27)).astype(np.int16) + (rng.random((400, 1)) < 0.3)
    mean, components = module._principal_components(rows, 3, 6, rng)
    x = np.eye(3)[rows].reshape(400, -1)
    np.testing.assert_allclose(mean, x.mean(0), atol=1e-6)
    expected = np.linalg.eigh(np.cov(x.T))[1][:, ::-1][:, :6]
    np.testing.assert_allclose(components @ components.T, expected @ expected.T, atol=1e-4)


@pytest.mark.parametrize("number", [0, 1, 3])
def test_few_blocks_have_few_components(number: int) -> None:
    rows = np.arange(number * 8).reshape(number, 8) % 3
    mean, components = module._principal_components(rows, 3, 16, np.random.default_rng(0))
    assert mean.shape == (24,) and len(components) == 24 and components.shape[1] <= number
    assert np.isfinite(components).all()


def test_subspace_iteration_agrees_with_the_exact_components(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = balls(6)
    exact = rate_distortion(labels, (4, 4, 4), STRUCTURES, channels=(8,))
    monkeypatch.setattr(module, "EXACT_DIMENSION", 0)
    iterated = rate_distortion(labels, (4, 4, 4), STRUCTURES, channels=(8,))
    assert iterated[0].dice_mean == pytest.approx(exact[0].dice_mean, abs=5e-3)


def test_subsampled_blocks_estimate_the_same_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = balls(6, size=40)
    full = rate_distortion(labels, (4, 4, 4), STRUCTURES, channels=(8,))
    kept = []
    original = module._boundary_blocks
    monkeypatch.setattr(module, "MAX_BLOCKS", 60)
    monkeypatch.setattr(module, "_boundary_blocks", lambda *a: kept.append(original(*a)) or kept[-1])
    part = rate_distortion(labels, (4, 4, 4), STRUCTURES, channels=(8,))
    assert any(b.weight > 1.5 for b in kept)
    assert all(len(b.rows) <= 64 for b in kept)
    assert part[0].dice_mean == pytest.approx(full[0].dice_mean, abs=0.03)


def test_two_strides_leave_the_first_axis_alone() -> None:
    labels = balls(4)
    in_plane = rate_distortion(labels, (4, 4), STRUCTURES, channels=(4,))
    explicit = rate_distortion(labels, (1, 4, 4), STRUCTURES, channels=(4,))
    assert in_plane[0].dice_mean == explicit[0].dice_mean
    assert in_plane[0].stride == (4, 4)


def test_regions_are_measured_as_unions() -> None:
    labels = balls(4)
    (region,) = rate_distortion(labels, (4, 4, 4), {"whole": [1, 2]}, channels=(8,))
    (classes,) = rate_distortion(labels, (4, 4, 4), STRUCTURES, channels=(8,))
    assert region.worst == "whole"
    assert region.dice_mean > classes.dice_mean  # confusing shell and core no longer counts


def test_a_structure_that_a_case_lacks_does_not_count() -> None:
    labels = balls(4)
    labels[0] = np.minimum(labels[0], 1)
    (point,) = rate_distortion(labels, (2, 2, 2), STRUCTURES, channels=(24,))
    assert point.dice_mean == 1.0


def test_one_case_is_enough() -> None:
    (point,) = rate_distortion(balls(1), (2, 2, 2), STRUCTURES, channels=(24,))
    assert point.dice_mean == 1.0
