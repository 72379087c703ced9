"""The fitted scale makes spread and error agree, and uses the named cases only."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nndiffseg.networks.model import LatentDiffusionSegmenter
from nndiffseg.training.spread_scale import SCALES, SpreadTable, fit_spread_scale


def table(case: str, right: float, patches: int = 3) -> SpreadTable:
    """Spread grows with the scale and equals the error at ``right``."""
    error = np.ones((patches, len(SCALES), 2))
    spread = np.broadcast_to(np.exp(SCALES - right)[:, None], error.shape)
    return SpreadTable((case,) * patches, error, spread)


def alike(right: float, cases: str = "ab") -> list[SpreadTable]:
    """Cases that agree, so that nothing is shrunk."""
    return [table(case, right) for case in cases]


@pytest.mark.parametrize("right", [0.5, 0.8, 1.0, 1.1])
def test_the_scale_where_spread_equals_error_is_found(right):
    assert fit_spread_scale(alike(right)) == pytest.approx(right, rel=1e-6)


def test_the_scale_stays_within_the_candidates():
    assert fit_spread_scale(alike(0.1)) == pytest.approx(SCALES[0])
    assert fit_spread_scale(alike(3.0)) == pytest.approx(SCALES[-1])


def test_only_the_named_cases_count():
    tables = [*alike(0.5, "ab"), *alike(1.1, "cd")]
    assert fit_spread_scale(tables, ["a", "b"]) == pytest.approx(0.5, rel=1e-6)
    assert 0.5 < fit_spread_scale(tables) < 1.1


def test_one_case_patches_without_differences_or_none_scale_nothing():
    empty = SpreadTable(("a",), np.zeros((1, len(SCALES), 2)), np.zeros((1, len(SCALES), 2)))
    one = table("a", 0.5)
    assert fit_spread_scale([]) == fit_spread_scale([one]) == fit_spread_scale([one], ["z"]) == 1.0
    assert fit_spread_scale([empty, table("b", 0.5)]) == 1.0


def normal_cases(rng: np.random.Generator, cases: int, sd: float) -> list[SpreadTable]:
    """Volumes y ~ N(0, 1) and samples ~ N(0, (sd s)^2): the right scale is 1 / sd."""
    tables = []
    for case in range(cases):
        x, y = rng.standard_normal((2, 6)) * sd, rng.standard_normal()
        error = np.abs(SCALES[:, None, None] * x - y).mean((1, 2))
        spread = np.abs(SCALES[:, None] * (x[0] - x[1])).mean(1)
        tables.append(SpreadTable((str(case),), error[None, :, None], spread[None, :, None]))
    return tables


def test_many_cases_give_the_right_scale_and_few_are_shrunk_towards_one():
    rng = np.random.default_rng(0)
    assert fit_spread_scale(normal_cases(rng, 2000, 1.25)) == pytest.approx(0.8, abs=0.03)
    errors = [abs(np.log(fit_spread_scale(normal_cases(rng, 8, 1.25)) / 0.8)) for _ in range(200)]
    assert np.mean(errors) < np.log(1.25) * 0.9  # nearer than with no scale at all


def test_eight_calibrated_cases_leave_calibrated_samples_nearly_alone(monkeypatch):
    def scatter() -> float:
        rng = np.random.default_rng(1)
        return float(np.std(np.log([fit_spread_scale(normal_cases(rng, 8, 1.0)) for _ in range(200)])))

    assert scatter() < 0.15
    monkeypatch.setattr("nndiffseg.training.spread_scale.PRIOR_SD", 1e3)  # no shrinkage
    assert scatter() > 0.25


def test_rescaling_moves_latents_along_the_line_through_the_prior():
    z, prior = torch.randn(3, 2, 4, 4), torch.randn(1, 2, 4, 4)
    maps = [torch.empty(0), torch.empty(0), prior]
    assert torch.equal(LatentDiffusionSegmenter.rescale(z, maps, 0.0), prior.expand(3, -1, -1, -1))
    torch.testing.assert_close(LatentDiffusionSegmenter.rescale(z, maps, 1.0), z)
    half = LatentDiffusionSegmenter.rescale(z, maps, 0.5)
    torch.testing.assert_close((half - prior).std(0), (z - prior).std(0) / 2)
