"""The fitted scales make spread and error agree, and use the named cases only."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
import torch

from nndiffseg.networks.model import DETAIL_CELLS, LatentDiffusionSegmenter
from nndiffseg.training import spread_scale
from nndiffseg.training.spread_scale import (
    DETAIL_PRIOR_SD,
    DETAILS,
    LEFT_ALONE,
    SCALE_PRIOR_SD,
    SCALES,
    STEP,
    TOLERANCE,
    SpreadTable,
    fit_spread,
    fit_spread_without_each,
    standard_error,
)

#: of the made log ratios of 1 - IoU against log d
SLOPE = 0.3


def table(case: str, right: float, detail: float = 1.0, patches: int = 3) -> SpreadTable:
    """Volumes agree at s = ``right`` for every d, label maps at d = ``detail`` for every s."""
    log_s, log_d = np.meshgrid(np.log(SCALES), np.log(DETAILS), indexing="ij")
    volumes, overlap = np.exp(log_s - np.log(right)), np.exp(SLOPE * (log_d - np.log(detail)))
    spread = np.stack([volumes, volumes, overlap], -1)[None].repeat(patches, 0)
    return SpreadTable((case,) * patches, np.ones_like(spread), spread)


def alike(right: float, detail: float = 1.0, cases: Iterable[str] = tuple(map(str, range(200)))) -> list[SpreadTable]:
    """Cases that agree; with many of them nothing but the tolerance keeps the fit near 1."""
    return [table(case, right, detail, 1) for case in cases]


def scale_of(*arguments) -> float:
    return fit_spread(*arguments)["spread_scale"]


@pytest.mark.parametrize("right", [0.65, 0.8, 1.0, 1.1])
@pytest.mark.parametrize("detail", [0.9, 1.0, 1.6, 2.5])
def test_the_scales_where_spread_equals_error_are_found(right, detail):
    """Closed form of the modes: log(right) / (1 + (tolerance / prior sd)^2), for d up to what is left alone."""
    log_s = np.log(right) / (1 + (TOLERANCE / SCALE_PRIOR_SD) ** 2)
    wanted = np.sign(np.log(detail)) * max(0.0, abs(np.log(detail)) - LEFT_ALONE / SLOPE)
    log_d = wanted / (1 + (TOLERANCE / (SLOPE * DETAIL_PRIOR_SD)) ** 2)
    fit = fit_spread(alike(right, detail))
    assert np.log(fit["spread_scale"]) == pytest.approx(log_s, abs=STEP)
    assert np.log(fit["detail_scale"]) == pytest.approx(log_d, abs=STEP)


def test_scales_stay_within_the_candidates():
    assert fit_spread(alike(0.1, 1e-9)) == {"spread_scale": pytest.approx(SCALES[0]),
                                            "detail_scale": pytest.approx(DETAILS[0])}
    assert fit_spread(alike(3.0, 1e9)) == {"spread_scale": pytest.approx(SCALES[-1]),
                                           "detail_scale": pytest.approx(DETAILS[-1])}


def test_details_make_up_for_what_the_scale_takes_from_them():
    """Label maps are calibrated at s = d = 1, but volumes are not, and s moves both."""
    log_s, log_d = np.meshgrid(np.log(SCALES), np.log(DETAILS), indexing="ij")
    spread = np.exp(np.stack([log_s - np.log(0.8)] * 2 + [0.5 * log_s + SLOPE * log_d], -1))[None]
    fit = fit_spread([SpreadTable((str(i),), np.ones_like(spread), spread) for i in range(200)])
    assert fit["spread_scale"] == pytest.approx(0.8, rel=0.02)
    # 0.5 log 0.8 + slope log d = -0.07
    assert fit["detail_scale"] == pytest.approx(np.exp((0.5 * np.log(1 / 0.8) - LEFT_ALONE) / SLOPE), rel=0.05)


def test_details_are_not_bent_to_mend_volumes():
    """Volumes vary too much and would vary less with d; label maps are calibrated."""
    _, log_d = np.meshgrid(np.log(SCALES), np.log(DETAILS), indexing="ij")
    spread = np.exp(np.stack([0.2 - SLOPE * log_d] * 2 + [np.zeros_like(log_d)], -1))[None]
    fit = fit_spread([SpreadTable((name,), np.ones_like(spread), spread) for name in "ab"])
    assert fit == {"spread_scale": pytest.approx(1.0), "detail_scale": pytest.approx(1.0)}


def test_cases_that_disagree_are_shrunk():
    unlike, agreeing = [table(case, 0.8, d) for case, d in zip("abc", (0.7, 2.0, 5.7), strict=True)], alike(0.8, 2.0, "abc")
    assert 1.0 < fit_spread(unlike)["detail_scale"] < fit_spread(agreeing)["detail_scale"]
    unlike = [table(case, s) for case, s in zip("abc", (0.5, 0.7, 0.98), strict=True)]
    assert scale_of(alike(0.7, 1.0, "abc")) < scale_of(unlike) < 1.0


def test_two_cases_are_trusted_less_than_their_difference_says():
    """The same difference between cases counts less with many of them, and Student's distribution widens that of two.

    Closed form for two cases: leaving one out gives log ratios -log 0.6 and -log 0.8, so the jackknife's variance of a single
    case is log(0.8 / 0.6)^2 / 2, and of four more cases 0.25^2; 68 % of Student's distribution with five degrees of freedom
    lie within 1.110.
    """
    pair = [table("a", 0.6), table("b", 0.8)]
    centre = -np.log(np.mean([1 / 0.6, 1 / 0.8]))  # ratios of sums
    of_one = (4 * 0.25**2 + np.log(0.8 / 0.6) ** 2 / 2) / 5
    wanted = centre / (1 + (1.110**2 * of_one / 2 + TOLERANCE**2) / SCALE_PRIOR_SD**2)
    assert np.log(scale_of(pair)) == pytest.approx(wanted, abs=STEP)
    many = [table(f"{name}{i}", s) for i in range(10) for name, s in (("a", 0.6), ("b", 0.8))]
    assert scale_of(many) < scale_of(pair) < 1.0


def test_two_cases_that_agree_by_chance_are_not_believed():
    few, many = scale_of(alike(1.25, cases="ab")), scale_of(alike(1.25))
    assert 1.1 < few < 1.17 < 1.24 < many


def test_the_standard_error_is_that_of_the_mean_where_many_groups_tell():
    x = np.random.default_rng(0).normal(0.3, 0.7, 5000)
    without = (x.sum() - x) / (len(x) - 1)
    assert standard_error(without) == pytest.approx(x.std(ddof=1) / len(x) ** 0.5, rel=1e-3)


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
    monkeypatch.setattr(spread_scale, "_table", lambda network, data, onehot, keys, generator: keys)
    trainer = Trainer(cases)
    assert sum(map(len, spread_scale.spread_tables(trainer, None))) == patches  # type: ignore[arg-type]
    assert f"{patches} patches" in trainer.said[0]
    assert sum(map(len, spread_scale.spread_tables(trainer, None, 9))) == 9  # type: ignore[arg-type]


def test_only_the_named_cases_count():
    tables = [*alike(0.7, 1.8, "ab"), *alike(1.1, 1.0, "cd")]
    named = fit_spread(tables, ["a", "b"])
    assert named == fit_spread(alike(0.7, 1.8, "ab"))
    assert named["spread_scale"] < scale_of(tables) < 1.0


def test_a_case_has_no_part_in_its_own_scales():
    tables = [*alike(0.7, 1.8, "ab"), table("c", 1.1)]
    without = fit_spread_without_each(tables, ["a", "b", "c"])
    assert without["c"] == fit_spread(alike(0.7, 1.8, "ab")) and without["a"] == fit_spread(tables[1:])


def test_a_group_is_one_observation():
    """Siblings that agree say no more than one of them: two pairs are trusted as two cases are, not as four."""
    each = [table(name, right) for name, right in (("a", 0.6), ("b", 0.6), ("c", 0.8), ("d", 0.8))]
    pairs = {"a": "left", "b": "left", "c": "right", "d": "right"}
    alone = fit_spread([each[0], each[2]])
    assert fit_spread(each, groups=pairs) == alone
    assert scale_of(each) < alone["spread_scale"] < 1.0
    assert fit_spread(each, ["a", "b"], pairs) == {"spread_scale": 1.0, "detail_scale": 1.0}


def test_a_group_has_no_part_in_the_scales_of_its_cases():
    tables = [*alike(0.7, 1.8, "ab"), *alike(1.1, 1.0, "cd")]
    without = fit_spread_without_each(tables, list("abcd"), {"a": "x", "d": "x"})
    assert without["a"] == without["d"] == fit_spread(tables[1:3])
    assert without["b"] == fit_spread([tables[0], *tables[2:]], groups={"a": "x", "d": "x"})


def test_one_case_patches_without_differences_or_none_scale_nothing():
    one, nothing = table("a", 0.5, 2.0), {"spread_scale": 1.0, "detail_scale": 1.0}
    empty = SpreadTable(("a",), np.zeros_like(one.error[:1]), np.zeros_like(one.error[:1]))
    assert fit_spread([]) == fit_spread([one]) == fit_spread([one], ["z"]) == nothing
    assert fit_spread([empty, table("b", 0.5)]) == nothing


def normal_cases(rng: np.random.Generator, cases: int, sd: float) -> list[SpreadTable]:
    """Volumes y ~ N(0, 1) and samples ~ N(0, (sd s)^2): the right scale is 1 / sd."""
    tables = []
    for case in range(cases):
        x, y = rng.standard_normal((2, 6)) * sd, rng.standard_normal()
        error = np.abs(SCALES[:, None, None] * x - y).mean((1, 2))
        spread = np.abs(SCALES[:, None] * (x[0] - x[1])).mean(1)
        both = (np.stack([v, v, np.ones_like(v)], -1)[None, :, None].repeat(len(DETAILS), 2) for v in (error, spread))
        tables.append(SpreadTable((str(case),), *both))
    return tables


def test_many_cases_give_the_right_scale_and_few_are_shrunk_towards_one():
    rng = np.random.default_rng(0)
    assert scale_of(normal_cases(rng, 2000, 1.25)) == pytest.approx(0.8, abs=0.03)
    errors = [abs(np.log(scale_of(normal_cases(rng, 8, 1.25)) / 0.8)) for _ in range(200)]
    assert np.mean(errors) < np.log(1.25) * 0.9  # nearer than with no scale at all


def test_eight_calibrated_cases_leave_calibrated_samples_nearly_alone(monkeypatch):
    def scatter() -> float:
        rng = np.random.default_rng(1)
        return float(np.std(np.log([scale_of(normal_cases(rng, 8, 1.0)) for _ in range(200)])))

    assert scatter() < 0.15
    monkeypatch.setattr("nndiffseg.training.spread_scale.SCALE_PRIOR_SD", 1e3)  # no shrinkage
    assert scatter() > 0.25


def test_rescaling_moves_latents_along_the_line_through_the_prior():
    z, prior = torch.randn(3, 2, 4, 4), torch.randn(1, 2, 4, 4)
    maps = [torch.empty(0), torch.empty(0), prior]
    assert torch.equal(LatentDiffusionSegmenter.rescale(z, maps, 0.0), prior.expand(3, -1, -1, -1))
    torch.testing.assert_close(LatentDiffusionSegmenter.rescale(z, maps, 1.0), z)
    half = LatentDiffusionSegmenter.rescale(z, maps, 0.5)
    torch.testing.assert_close((half - prior).std(0), (z - prior).std(0) / 2)


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
    got = LatentDiffusionSegmenter.rescale(z, maps, 0.8, 1.5)
    torch.testing.assert_close(got, prior + 0.8 * (smooth + 1.5 * (z - prior - smooth)))
    # A shift of everything at once is no detail.
    torch.testing.assert_close(LatentDiffusionSegmenter.rescale(prior + 2.0, maps, 1.0, 1.7), prior + 2.0)
