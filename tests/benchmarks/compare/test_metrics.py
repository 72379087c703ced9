"""Metrics of one case against closed forms and brute force."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.compare.metrics import (
    agreement,
    expected_coverage,
    volume_coverage,
)

STRUCTURES = ((1,), (2,))


def test_the_energy_score_is_half_the_energy_distance_without_self_pairs():
    rng = np.random.default_rng(5)
    samples, truth = rng.integers(0, 2, (4, 1, 6, 6)), rng.integers(0, 2, (1, 1, 6, 6))

    def iou(a: np.ndarray, b: np.ndarray) -> float:
        return (a & b).sum() / (a | b).sum()

    error = np.mean([1 - iou(s, truth[0]) for s in samples])
    spread = np.mean([1 - iou(a, b) for i, a in enumerate(samples) for b in samples[:i]])
    found = agreement(samples, truth, ((1,),))
    assert found.energy == pytest.approx(error - spread / 2)
    assert found.sample_spread == pytest.approx(spread)


def test_the_energy_score_prefers_samples_of_the_right_spread():
    """It is proper, unlike GED^2 with one annotation: more spread than the truth has costs."""
    rng = np.random.default_rng(6)

    def bars(sd: float, n: int) -> np.ndarray:
        lengths = np.clip(np.round(rng.normal(50, sd, n)), 1, 99).astype(int)
        return (np.arange(100)[None] < lengths[:, None]).astype(int).reshape(n, 1, 10, 10)

    truths = bars(10, 150)
    scores = {sd: np.mean([agreement(bars(sd, 24), t[None], ((1,),)).energy for t in truths]) for sd in (2, 10, 30)}
    assert scores[10] < scores[2] and scores[10] < scores[30]


def test_samples_from_the_annotators_themselves_agree_as_annotators_do():
    rng = np.random.default_rng(4)
    annotations = rng.integers(0, 3, (5, 4, 6, 6))
    found = agreement(annotations, annotations, STRUCTURES)
    assert found.ged == pytest.approx(0)
    assert found.sample_spread == pytest.approx(found.reference_spread)
    # Of the 25 pairs of a sample and an annotation, five are one and the same map.
    assert found.truth_dice == pytest.approx(0.8 * found.sample_dice + 0.2)


def test_the_terms_of_the_energy_distance_of_disjoint_masks():
    a, b = np.zeros((1, 2, 2), int), np.zeros((1, 2, 2), int)
    a[0, 0], b[0, 1] = 1, 1
    found = agreement(np.stack([a, a]), b[None], ((1,),))
    assert (found.cross, found.within_samples, found.within_references, found.ged) == (1, 0, 0, 2)
    assert found.sample_dice == 1 and found.truth_dice == 0 and np.isnan(found.reference_spread)


def test_a_volume_is_covered_inside_the_percentiles_that_users_get():
    def of_size(voxels: int) -> np.ndarray:
        return (np.arange(100) < voxels).astype(int).reshape(1, 10, 10)

    samples = np.stack([of_size(v) for v in range(10, 31)])  # quantiles 10.1 and 29.9 around a mean of 20
    truths = np.stack([of_size(v) for v in (10, 11, 20, 29, 30)])
    assert agreement(samples, truths, ((1,),)).coverage == pytest.approx(3 / 5)
    assert agreement(samples, truths, ((1,),), volume_scale=2.0).coverage == 1
    assert agreement(samples, truths, ((1,),), volume_scale=0.5).coverage == pytest.approx(1 / 5)
    assert agreement(samples, truths, ((1,),), volume_scale=0.5).coverage_as_drawn == pytest.approx(3 / 5)
    # The ends are order statistics 1.1 and 20.9 of 21, at the scale 1.
    assert agreement(samples, truths, ((1,),)).width == pytest.approx(19.8 / 20)
    assert np.isnan(agreement(samples[:1], truths, ((1,),)).coverage)


@pytest.mark.parametrize("n", [4, 16, 64])
def test_samples_of_the_right_distribution_cover_as_often_as_expected(n):
    draws = np.random.default_rng(0).random((4000, n + 1))
    assert expected_coverage(n) == pytest.approx(volume_coverage(draws[:, 1:], draws[:, :1], 1.0)[0], abs=0.015)


def test_the_score_of_samples_as_a_distribution_counts_a_sample_and_itself():
    """With N samples it is E d(S, Y) - (1 - 1/N) E d(S, S') / 2, where the other one has no factor."""
    rng = np.random.default_rng(0)
    samples, truth = rng.integers(0, 2, (5, 8, 8)), rng.integers(0, 2, (3, 8, 8))
    found = agreement(samples, truth, ((1,),))
    assert found.energy == pytest.approx(found.cross - found.sample_spread / 2)
    assert found.energy_as_drawn == pytest.approx(found.cross - (1 - 1 / 5) * found.sample_spread / 2)


def test_a_conformal_interval_takes_the_place_of_the_scaled_one():
    """q standard deviations on both sides of the mean, with the divisor N - 1."""
    samples = np.stack([np.arange(100) < n for n in (40, 50, 60)]).astype(int)[:, None]
    truth = np.stack([np.arange(100) < n for n in (31, 50, 71)]).astype(int)[:, None]
    found = [agreement(samples, truth, ((1,),), 1.0, (q,)) for q in (1.5, 2.0, 2.2, None)]
    assert [f.coverage for f in found[:3]] == pytest.approx([1 / 3, 2 / 3, 1])
    assert found[0].width == pytest.approx(30 / np.mean([31, 50, 71]))
    assert found[3] == agreement(samples, truth, ((1,),), 1.0)
