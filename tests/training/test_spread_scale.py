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


@pytest.mark.parametrize("right", [0.5, 0.8, 1.0, 1.1])
def test_the_scale_where_spread_equals_error_is_found(right):
    assert fit_spread_scale([table("a", right)]) == pytest.approx(right, abs=1e-6)


def test_the_scale_stays_within_the_candidates():
    assert fit_spread_scale([table("a", 0.1)]) == SCALES[0]
    assert fit_spread_scale([table("a", 3.0)]) == SCALES[-1]


def test_only_the_named_cases_count():
    tables = [table("a", 0.5), table("b", 1.1)]
    assert fit_spread_scale(tables, ["a"]) == pytest.approx(0.5, abs=1e-6)
    assert 0.5 < fit_spread_scale(tables) < 1.1


def test_without_patches_or_differences_nothing_is_scaled():
    empty = SpreadTable(("a",), np.zeros((1, len(SCALES), 2)), np.zeros((1, len(SCALES), 2)))
    assert fit_spread_scale([]) == fit_spread_scale([table("a", 0.5)], ["z"]) == fit_spread_scale([empty]) == 1.0


def test_rescaling_moves_latents_along_the_line_through_the_prior():
    z, prior = torch.randn(3, 2, 4, 4), torch.randn(1, 2, 4, 4)
    maps = [torch.empty(0), torch.empty(0), prior]
    assert torch.equal(LatentDiffusionSegmenter.rescale(z, maps, 0.0), prior.expand(3, -1, -1, -1))
    torch.testing.assert_close(LatentDiffusionSegmenter.rescale(z, maps, 1.0), z)
    half = LatentDiffusionSegmenter.rescale(z, maps, 0.5)
    torch.testing.assert_close((half - prior).std(0), (z - prior).std(0) / 2)
