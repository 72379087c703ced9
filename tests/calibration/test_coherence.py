"""The lengths' weights: scores equal brute force, and the coherence that the truth was drawn with is found."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nndiffseg.calibration import coherence, coherent_fit
from nndiffseg.calibration.coherence import CANDIDATES, fit_lengths, score_candidates
from nndiffseg.calibration.coherent_fit import fit_coherent, normals_at
from nndiffseg.calibration.voxels import LabelKind, observe
from nndiffseg.diffusion.coherent import LENGTHS, components, mixed, perturbation
from nndiffseg.diffusion.noise.field import NoiseField
from nndiffseg.nn.heads import Heads

LABELS = LabelKind(Heads(3), (), ((0,), (1,), (2,)), ((1, 2), (2,)))
REGIONS = LabelKind(Heads(2, True), (1, 2), ((1, 2), (2,)), ((1, 2), (2,)))
SHAPE = (1, 14, 15)


def balls(rng: np.random.Generator) -> torch.Tensor:
    """Logits of two nested discs with soft edges ``(3, *SHAPE)``."""
    y, x = np.mgrid[:14, :15]
    r = np.hypot(y - 7 + rng.normal(0, 0.5), x - 7 + rng.normal(0, 0.5))
    outer, inner = 5.5 - r, 3.5 - r
    return torch.from_numpy(np.stack([0 * r, outer, outer + inner])[:, None]).float()


def case_of(name: str, logits: torch.Tensor, truth: np.ndarray, kind: LabelKind = LABELS, **options):
    p = logits[1:].sigmoid() if kind.heads.regions else logits.softmax(0)
    return observe(
        name, p, truth, np.ones(SHAPE, bool), np.ones(SHAPE, bool), kind, spacing=(1.0, 1.0, 1.0), voxel_ml=0.5, **options
    )


def draw(logits: torch.Tensor, name: str, weights: list[float], samples: int = 1) -> np.ndarray:
    parts = components([NoiseField(9, name, n) for n in range(samples)], 3, SHAPE, (1, 1, 1), 1.0)
    return (logits + perturbation(mixed(parts, weights), False)).argmax(1).numpy()


def iou_distance(a: np.ndarray, b: np.ndarray) -> float:
    return 1 - (a & b).sum() / (a | b).sum() if (a | b).any() else 0.0


@pytest.mark.parametrize("kind", [LABELS, REGIONS], ids=["labels", "regions"])
def test_scores_equal_those_of_whole_label_maps(kind, monkeypatch):
    rng = np.random.default_rng(0)
    logits = 3 * balls(rng)
    truth = np.stack([draw(logits, str(i), [0, 0, 1, 0])[0] for i in range(2)])
    case = case_of("x", logits, truth, kind)
    candidate = CANDIDATES[[9]]
    normals = normals_at(case, kind.heads.number, 1.0, samples=range(5))
    found = score_candidates(case, normals, (1.5,), kind, candidates=candidate)
    fields = [NoiseField(0, "x", n) for n in range(5)]
    noise = perturbation(
        mixed(components(fields, kind.heads.number, SHAPE, (1, 1, 1), 1.0), candidate[0].tolist()), kind.heads.regions
    )
    z = (logits[1:] if kind.heads.regions else logits) / 1.5
    labels = kind.hard((z + noise).flatten(2)).view(5, *SHAPE).numpy()
    for k, structure in enumerate(kind.structures):
        s, t = np.isin(labels, structure), np.isin(truth, structure)
        cross = np.mean([iou_distance(a, b) for a in s for b in t])
        within = np.mean([iou_distance(a, b) for a in s for b in s])
        sizes, true = s.sum((1, 2, 3)), t.sum((1, 2, 3))
        crps = np.abs(sizes[:, None] - true).mean() - np.abs(sizes[:, None] - sizes).mean() / 2
        pairs = [(a, b) for i, a in enumerate(s) for j, b in enumerate(s) if i != j]
        dice = [2 * (a & b).sum() / (a.sum() + b.sum()) if (a | b).any() else 1.0 for a, b in pairs]
        assert found.outlines[0, k] == pytest.approx(cross - within / 2, abs=1e-5)
        assert found.spread[0, k] == pytest.approx(within, abs=1e-5)
        assert found.volumes[0, k] == pytest.approx(crps, abs=1e-3)
        assert found.agreement[0, k] == pytest.approx(np.mean(dice), abs=1e-5)
        np.testing.assert_array_equal(found.voxels[0, k], sizes)


def test_structures_that_no_sample_and_no_truth_has_cost_nothing():
    logits = torch.zeros(3, *SHAPE)
    logits[0] = 30
    case = case_of("x", logits, np.zeros((1, *SHAPE), np.uint8))
    found = score_candidates(case, normals_at(case, 3, 1.0, samples=range(4)), (1.0,), LABELS)
    assert not found.outlines.any() and not found.volumes.any() and (found.agreement == 1).all()
    assert np.isnan(case.dice).all()


def test_voxels_far_from_any_doubt_are_counts_alone():
    rng = np.random.default_rng(1)
    logits = 40 * balls(rng)
    truth = logits.argmax(0).numpy()[None]
    near = np.zeros(SHAPE, bool)
    case = observe("x", logits.softmax(0), truth, near, near, LABELS, spacing=(1, 1, 1), voxel_ml=1.0)
    assert 0 < len(case.where) < 100
    assert (case.certain + case.members[:, 0].sum(1) == case.true[:, 0]).all() and (case.certain > 0).all()
    assert torch.equal(case.certain_true[:, 0], case.certain) and (case.dice == 1).all()


def test_thinned_cases_keep_sizes_and_scores_on_average():
    rng = np.random.default_rng(2)
    logits = balls(rng)
    case = case_of("x", logits, draw(logits, "t", [0, 0, 0, 1]))
    thin = case.thinned(210)
    assert thin.every == 3 and len(thin.where) == 70 and case.thinned(10**6) is case
    full, less = (score_candidates(c, normals_at(c, 3, 1.0), (1.0,), LABELS) for c in (case, thin))
    np.testing.assert_allclose(less.voxels.mean((0, 2)), full.voxels.mean((0, 2)), rtol=0.15)
    np.testing.assert_allclose(less.outlines.mean(0), full.outlines.mean(0), atol=0.05)


@pytest.mark.parametrize("index", [0, len(LENGTHS) - 1])
def test_the_coherence_that_the_truth_was_drawn_with_is_found(index):
    rng, weights = np.random.default_rng(3), [0.0] * len(LENGTHS)
    weights[index] = 1.0
    scores, size = {}, []
    for i in range(24):
        logits = balls(rng)
        case = case_of(f"c{i}", logits, draw(logits, f"t{i}", weights))
        scores[case.case] = score_candidates(case, normals_at(case, 3, 1.0), (1.0,), LABELS)
        size.append(case.true.mean(1).numpy())
    chosen = CANDIDATES[fit_lengths(scores, np.mean(size, 0), {})]
    long = chosen[2:].sum()  # 16 cells are longer than the image
    assert (chosen[0] if index == 0 else long) >= 0.6, chosen


def test_groups_count_alike_however_many_cases_they_have(monkeypatch):
    monkeypatch.setattr(coherence, "CANDIDATES", CANDIDATES[:2])

    def score(first: float, second: float):
        values = np.array([[first], [second]])
        return coherence.SampleScores(values, np.zeros((2, 1)), np.zeros((2, 1, 4)), np.ones((2, 1)), np.zeros((2, 1)))

    scores = {**{f"a{i}": score(0.0, 1.0) for i in range(9)}, "b": score(1.0, 0.0), "c": score(1.0, 0.0)}
    assert fit_lengths(scores, np.ones(1), {f"a{i}": "a" for i in range(9)}) == 1
    assert fit_lengths(scores, np.ones(1), {}) == 0


def test_no_case_has_a_part_in_its_own_calibration(monkeypatch):
    """An odd truth of one group moves the calibrations of others and not its own."""
    for module in (coherence, coherent_fit):
        monkeypatch.setattr(module, "CANDIDATES", np.eye(len(LENGTHS)))
    monkeypatch.setattr(coherence.score_candidates, "__kwdefaults__", {"candidates": np.eye(len(LENGTHS))})
    rng = np.random.default_rng(4)
    logits = {f"c{i:02d}": 4 * balls(rng) for i in range(12)}
    truth = {name: draw(z / 4, name, [0, 0, 0, 1]) for name, z in logits.items()}
    groups = {"c00": "g", "c01": "g"}

    def run(odd: bool):
        cases = [case_of(n, z, np.zeros_like(truth[n]) if odd and n == "c00" else truth[n]) for n, z in logits.items()]
        return fit_coherent(cases, LABELS, groups, ("0",), 1.0)

    before, after = run(False), run(True)
    assert before.crossed["c00"] == after.crossed["c00"] and before.crossed["c01"] == after.crossed["c01"]
    assert before.crossed["c03"] != after.crossed["c03"] and before.calibration != after.calibration
    assert before.calibration.temperature[0] > 2 and before.calibration.groups == 11
    assert before.calibration.fusion_weight == 1 and sum(before.calibration.length_weights) == pytest.approx(1)
    assert all(q is not None for q in before.calibration.volume_quantiles)
