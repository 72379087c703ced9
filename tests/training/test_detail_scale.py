"""The fitted detail scale makes spread and error nearly agree, and uses the named cases only."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
import torch

from nndiffseg.calibration.shrinkage import STEP, TOLERANCE
from nndiffseg.methods.latent.network import DETAIL_CELLS, LatentDiffusionSegmenter
from nndiffseg.training import detail_scale
from nndiffseg.training.detail_scale import (
    DETAILS,
    LEFT_ALONE,
    PRIOR_SD,
    SpreadTable,
    fit_detail,
    fit_detail_without_each,
)

#: of the made log ratios of 1 - IoU against log d
SLOPE = 0.3


def table(case: str, right: float, patches: int = 3) -> SpreadTable:
    """Spread and error agree at d = ``right``."""
    spread = np.exp(SLOPE * (np.log(DETAILS) - np.log(right)))[None].repeat(patches, 0)
    return SpreadTable((case,) * patches, np.ones_like(spread), spread)


def alike(right: float, cases: Iterable[str] = tuple(map(str, range(200)))) -> list[SpreadTable]:
    """Cases that agree; with many of them nothing but the tolerance keeps the fit near 1."""
    return [table(case, right, 1) for case in cases]


@pytest.mark.parametrize("right", [0.7, 0.9, 1.0, 1.6, 2.5])
def test_the_scale_where_spread_nearly_equals_error_is_found(right):
    """Closed form of the mode: log(wanted) / (1 + (tolerance / (slope * prior sd))^2), up to what is left alone."""
    wanted = np.sign(np.log(right)) * max(0.0, abs(np.log(right)) - LEFT_ALONE / SLOPE)
    expected = wanted / (1 + (TOLERANCE / (SLOPE * PRIOR_SD)) ** 2)
    assert np.log(fit_detail(alike(right))) == pytest.approx(expected, abs=STEP)


def test_the_scale_stays_within_the_candidates():
    assert fit_detail(alike(1e-9)) == pytest.approx(DETAILS[0])
    assert fit_detail(alike(1e9)) == pytest.approx(DETAILS[-1])


def test_cases_that_disagree_are_shrunk():
    unlike = [table(case, d) for case, d in zip("abc", (0.7, 2.0, 5.7), strict=True)]
    assert 1.0 < fit_detail(unlike) < fit_detail(alike(2.0, "abc"))


class Trainer:
    """What the tables need of a trainer; its batches are of three patches."""

    device, seed, batch_size = torch.device("cpu"), 0, 3

    def __init__(self, cases: int):
        self.cases, self.said = [f"case_{i}" for i in range(cases)], []

    def do_split(self):
        return [], self.cases

    def print_to_log_file(self, text: str) -> None:
        self.said.append(text)

    def validation_batches(self):
        while True:
            yield {"data": torch.zeros(3, 1, 8, 8), "target": [torch.zeros(3, 1, 8, 8)], "keys": self.cases[:3]}

    def onehot(self, target):
        return target


@pytest.mark.parametrize(("cases", "patches"), [(4, 48), (30, 120), (400, 192)])
def test_more_cases_bring_more_patches_within_bounds(monkeypatch, cases, patches):
    monkeypatch.setattr(detail_scale, "_table", lambda network, data, onehot, keys, generator: keys)
    trainer = Trainer(cases)
    assert sum(map(len, detail_scale.spread_tables(trainer, None))) == patches  # type: ignore[arg-type]
    assert f"{patches} patches" in trainer.said[0]
    assert sum(map(len, detail_scale.spread_tables(trainer, None, 9))) == 9  # type: ignore[arg-type]


def test_only_the_named_cases_count():
    tables = [*alike(2.5, "ab"), *alike(1.0, "cd")]
    assert fit_detail(tables, ["a", "b"]) == fit_detail(alike(2.5, "ab")) > fit_detail(tables) > 1.0


def test_a_case_has_no_part_in_its_own_scale():
    tables = [*alike(2.5, "ab"), table("c", 1.0)]
    without = fit_detail_without_each(tables, ["a", "b", "c"])
    assert without["c"] == fit_detail(alike(2.5, "ab")) and without["a"] == fit_detail(tables[1:]) != without["c"]


def test_a_group_is_one_observation():
    """Siblings that agree say no more than one of them: two pairs are trusted as two cases are, not as four."""
    each = [table(name, right) for name, right in (("a", 2.2), ("b", 2.2), ("c", 2.8), ("d", 2.8))]
    pairs = {"a": "left", "b": "left", "c": "right", "d": "right"}
    alone = fit_detail([each[0], each[2]])
    assert fit_detail(each, groups=pairs) == alone
    assert fit_detail(each) > alone > 1.0
    assert fit_detail(each, ["a", "b"], pairs) == 1.0


def test_a_group_has_no_part_in_the_scale_of_its_cases():
    tables = [*alike(2.5, "ab"), *alike(1.0, "cd")]
    without = fit_detail_without_each(tables, list("abcd"), {"a": "x", "d": "x"})
    assert without["a"] == without["d"] == fit_detail(tables[1:3])
    assert without["b"] == fit_detail([tables[0], *tables[2:]], groups={"a": "x", "d": "x"})


def test_one_case_patches_without_differences_or_none_scale_nothing():
    one = table("a", 2.0)
    empty = SpreadTable(("a",), np.zeros_like(one.error[:1]), np.zeros_like(one.error[:1]))
    assert fit_detail([]) == fit_detail([one]) == fit_detail([one], ["z"]) == fit_detail([empty, table("b", 0.5)]) == 1.0


@pytest.mark.parametrize("shape", [(9, 8), (7, 6, 8)])
def test_details_are_what_a_box_mean_leaves(shape):
    z, prior = torch.randn(3, 2, *shape), torch.randn(1, 2, *shape)
    maps = [torch.empty(0), torch.empty(0), prior]
    dim = len(shape)
    kernel = torch.ones(1, 1, *[DETAIL_CELLS] * dim)
    conv = torch.nn.functional.conv2d if dim == 2 else torch.nn.functional.conv3d

    def summed(x: torch.Tensor) -> torch.Tensor:
        return conv(x.flatten(0, 1)[:, None], kernel, padding=DETAIL_CELLS // 2).view_as(x)

    smooth = summed(z - prior) / summed(torch.ones_like(z))  # at the border the mean of the cells that exist
    got = LatentDiffusionSegmenter.rescale(z, maps, 1.5)
    torch.testing.assert_close(got, prior + smooth + 1.5 * (z - prior - smooth))
    torch.testing.assert_close(LatentDiffusionSegmenter.rescale(z, maps, 1.0), z)
    # A shift of everything at once is no detail.
    torch.testing.assert_close(LatentDiffusionSegmenter.rescale(prior + 2.0, maps, 1.7), prior + 2.0)
