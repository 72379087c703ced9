"""The fitted scales make spread and error agree, and use the named cases only."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from nndiffseg.networks.model import DETAIL_CELLS, LatentDiffusionSegmenter
from nndiffseg.training import spread_scale
from nndiffseg.training.spread_scale import DETAILS, SCALES, TOLERANCE, SpreadTable, fit_spread

#: of the made log ratios of spread and error against d
SLOPE = 0.3


def table(case: str, right: float, detail: float = 1.0, patches: int = 3) -> SpreadTable:
    """Spread grows with the candidate; volumes agree at s = ``right``, label maps at d = ``detail`` for every s."""
    volumes = np.exp(np.concatenate([SCALES, np.ones(len(DETAILS))]) - right)
    overlap = np.exp(np.concatenate([np.full(len(SCALES), SLOPE), SLOPE * DETAILS]) - SLOPE * detail)
    spread = np.stack([volumes, volumes, overlap], 1)[None].repeat(patches, 0)
    return SpreadTable((case,) * patches, np.ones_like(spread), spread)


def alike(right: float, detail: float = 1.0, cases: str = "ab") -> list[SpreadTable]:
    """Cases that agree, so that nothing is shrunk."""
    return [table(case, right, detail) for case in cases]


def scale_of(*arguments) -> float:
    return fit_spread(*arguments)["spread_scale"]


@pytest.mark.parametrize("right", [0.5, 0.8, 1.0, 1.1])
@pytest.mark.parametrize("detail", [1.6, 0.2])
def test_the_scales_where_spread_equals_error_are_found(right, detail):
    """For label maps up to the tolerance: log ratio 0.3 (d - detail) = log 0.95 or -log 0.95."""
    fit = fit_spread(alike(right, detail))
    edge = np.log(1 - TOLERANCE) / SLOPE * (1 if detail > 1 else -1)
    assert fit == {"spread_scale": pytest.approx(right, rel=1e-6),
                   "detail_scale": pytest.approx(np.clip(detail + edge, DETAILS[0], DETAILS[-1]), rel=1e-6)}


@pytest.mark.parametrize("detail", [0.85, 1.0, 1.15])
def test_details_within_the_tolerance_are_left_alone(detail):
    assert fit_spread(alike(0.8, detail)) == {"spread_scale": pytest.approx(0.8, rel=1e-6), "detail_scale": pytest.approx(1)}


def test_scales_stay_within_the_candidates():
    assert fit_spread(alike(0.1, -9)) == {"spread_scale": pytest.approx(SCALES[0]), "detail_scale": pytest.approx(DETAILS[0])}
    assert fit_spread(alike(3.0, 9.0)) == {"spread_scale": pytest.approx(SCALES[-1]),
                                           "detail_scale": pytest.approx(DETAILS[-1])}


def test_details_make_up_for_what_the_scale_takes_from_them():
    made = table("a", 0.6)
    spread = made.spread.copy()
    spread[:, :len(SCALES), 2] = np.exp(SCALES - 1)  # calibrated at s = d = 1
    fit = fit_spread([replace(made, cases=(name,) * 3, spread=spread) for name in "ab"])
    assert fit["spread_scale"] == pytest.approx(0.6, rel=1e-6)
    # At s = 0.6 the log ratio is -0.4; 0.3 (d - 1) brings it to log 0.95.
    assert fit["detail_scale"] == pytest.approx(1 + (0.4 + np.log(1 - TOLERANCE)) / SLOPE, rel=1e-6)


def test_cases_that_disagree_about_details_are_shrunk():
    unlike, agreeing = [table(case, 1.0, d) for case, d in zip("abc", (0.2, 1.8, 3.4), strict=True)], alike(1.0, 1.8, "abc")
    assert 1.0 < fit_spread(unlike)["detail_scale"] < fit_spread(agreeing)["detail_scale"]


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
    tables = [*alike(0.5, 1.8, "ab"), *alike(1.1, 1.0, "cd")]
    named = fit_spread(tables, ["a", "b"])
    assert named == fit_spread(alike(0.5, 1.8)) and named["spread_scale"] == pytest.approx(0.5, rel=1e-6)
    assert 0.5 < scale_of(tables) < 1.1


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
        scales = np.concatenate([SCALES, np.ones(len(DETAILS))])
        error = np.abs(scales[:, None, None] * x - y).mean((1, 2))
        spread = np.abs(scales[:, None] * (x[0] - x[1])).mean(1)
        tables.append(SpreadTable((str(case),), *(v[None, :, None].repeat(3, 2) for v in (error, spread))))
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
