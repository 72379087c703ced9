"""The sampler of a model is the one with the best proper score, and the simplest of equals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from nndiffseg.calibration import CaseTable, fit
from nndiffseg.calibration.coherence import coherent_labels
from nndiffseg.calibration.coherent_fit import normals_at
from nndiffseg.calibration.fusion import WEIGHTS
from nndiffseg.calibration.sampler_choice import (
    ChosenSampler,
    choose_sampler,
    coherent_members,
    simplest_of_the_best,
)
from nndiffseg.calibration.temperature import LOG_TEMPERATURES
from nndiffseg.calibration.voxels import CaseVoxels, LabelKind, observe
from nndiffseg.calibration.voxels_file import read_voxels, write_voxels
from nndiffseg.errors import UserError
from nndiffseg.nn.heads import Heads

pytestmark = pytest.mark.fast

KIND = LabelKind(Heads(2), (), ((0,), (1,)), ((1,),))
SHAPE, SAMPLES, CASES = (1, 8, 12), 16, 12
#: each of two squares is there or not
OUTCOMES = np.array([[False, False], [False, True], [True, False], [True, True]])


def blobs(present: np.ndarray) -> np.ndarray:
    """Two squares that are there or not, ``(N, 2)`` bool -> labels ``(N, *SHAPE)``."""
    labels = np.zeros((len(present), *SHAPE), np.uint8)
    labels[:, :, 2:6, 1:5] = present[:, :1, None, None]
    labels[:, :, 2:6, 7:11] = present[:, 1:, None, None]
    return labels


def table_of(case: CaseVoxels) -> CaseTable:
    weights = len(WEIGHTS)
    return CaseTable(
        case.case,
        np.full((weights, 1), 0.5),
        np.zeros(weights),
        KIND.members(case.drawn.long()).sum(2).double().numpy() * case.voxel_ml,
        case.true.double().numpy() * case.voxel_ml,
        np.tile((LOG_TEMPERATURES - 0.1) ** 2, (weights, 1, 1)),
        np.full((weights, 1), 0.5),
    )


def cases_with(drawn_of) -> list[CaseVoxels]:
    """Cases whose two squares are there with probability 1/2 each, independently of one another."""
    rng, cases = np.random.default_rng(0), []
    p = torch.from_numpy(np.where(blobs(np.ones((1, 2), bool)), 0.5, 1e-9)).float()
    p = torch.cat([1 - p, p])  # (2, *SHAPE)
    for i in range(CASES):
        truth = blobs(OUTCOMES[[i % 4]])
        cases.append(
            observe(
                f"case_{i}",
                p,
                truth,
                np.ones(SHAPE, bool),
                np.ones(SHAPE, bool),
                KIND,
                spacing=(1.0, 1.0, 1.0),
                voxel_ml=0.001,
                sampled=p,
                drawn=drawn_of(rng, f"case_{i}"),
            )
        )
    return cases


def independent_squares(rng: np.random.Generator, name: str) -> np.ndarray:
    return blobs(rng.permutation(np.repeat(OUTCOMES, SAMPLES // 4, 0)))


def always_all(rng: np.random.Generator, name: str) -> np.ndarray:
    return np.ones((SAMPLES, *SHAPE), np.uint8)


def chosen_for(drawn_of, cases: list[CaseVoxels] | None = None, groups: dict[str, str] | None = None) -> ChosenSampler | None:
    cases = cases_with(drawn_of) if cases is None else cases
    return choose_sampler(cases, [table_of(c) for c in cases], KIND, groups or {}, ("0",), 1.0)


def test_a_sampler_that_knows_what_varies_independently_is_chosen():
    chosen = chosen_for(independent_squares)
    assert chosen.calibration.coherent_share < 1
    assert chosen.scores["diffusion"] < 0.9 * chosen.scores["coherent"]
    assert "coherent 0." in chosen.in_words() and chosen.in_words().startswith(("diffusion", "mixture"))


def test_samples_that_are_wrong_are_replaced_by_coherent_ones():
    chosen = chosen_for(always_all)
    assert chosen.calibration.coherent_share == 1 and chosen.calibration.fusion_weight == 1
    assert sum(chosen.calibration.length_weights) == pytest.approx(1)
    assert all(c.coherent_share == 1 for c in chosen.crossed.values())
    assert chosen.scores["coherent"] < chosen.scores["mixture"] < chosen.scores["diffusion"]


def test_of_equal_samplers_the_one_without_diffusion_is_chosen():
    """The trained samples are coherent ones of another seed."""

    def drawn(case: CaseVoxels) -> CaseVoxels:
        normals = normals_at(case, 2, 1.0, seed=7)
        return replace(case, drawn=coherent_labels(case.logits, normals, (0, 0, 0, 1), KIND).to(torch.uint8))

    chosen = chosen_for(None, [drawn(c) for c in cases_with(always_all)])
    assert chosen.calibration.coherent_share == 1


def test_coherent_samples_alone_need_a_head_that_segments_as_well_as_the_fused_map():
    cases = cases_with(always_all)
    for lead, share in ((0.0004, 1.0), (0.0006, 0.5)):
        dice = np.full((len(WEIGHTS), 1), 0.5 + lead)
        dice[-1] = 0.5  # of the head alone
        tables = [replace(table_of(c), dice=dice) for c in cases]
        chosen = choose_sampler(cases, tables, KIND, {}, ("0",), 1.0)
        assert chosen.calibration.coherent_share == share and {c.coherent_share for c in chosen.crossed.values()} == {share}
    # The interval of the mixture is that of its own samples: the trained ones alone have no deviation at all.
    assert chosen.calibration.volume_quantiles != fit(tables, {}, ("0",)).volume_quantiles
    assert all(len(set(t.sampled_ml[0])) > 1 for t in chosen.tables.values())


def test_the_diffusion_keeps_the_calibration_that_it_has_without_a_choice():
    cases = cases_with(independent_squares)
    far = [replace(c, logits=c.logits + torch.tensor([[9.0], [0.0]])) for c in cases]  # a head that denies every square
    chosen = choose_sampler(far, tables := [table_of(c) for c in far], KIND, {}, ("0",), 1.0)
    assert chosen.calibration == fit(tables, {}, ("0",))
    alone = {name for name, c in chosen.crossed.items() if c.coherent_share == 0}
    assert alone and all(chosen.tables[t.case] is t for t in tables if t.case in alone)


def test_coherent_samples_are_scored_with_as_many_as_the_trained_sampler_drew():
    """Scores are those of a distribution of N samples, which is better with more of them."""
    few = [replace(c, drawn=c.drawn[:4]) for c in cases_with(always_all)]
    chosen, more = chosen_for(None, few), chosen_for(always_all)
    assert all(t.sampled_ml.shape == (1, 4) for t in chosen.tables.values())
    assert all(t.sampled_ml.shape == (1, SAMPLES) for t in more.tables.values())


def test_cases_are_chosen_for_without_their_group():
    """One patient's samples are right and all others' are wrong: the choice for that patient is the others'."""
    right, wrong = cases_with(independent_squares), cases_with(always_all)
    cases = right[:2] + wrong[2:]
    groups = {c.case: "patient" for c in cases[:2]}
    chosen = chosen_for(None, cases, groups)
    assert all(chosen.crossed[c.case].coherent_share == 1 for c in cases[:2])


def test_what_only_a_trained_sample_sees_is_observed_however_sure_the_head_is():
    sure = torch.zeros((2, *SHAPE))
    sure[0] = 1
    nowhere, drawn = np.zeros(SHAPE, bool), blobs(OUTCOMES)
    case = observe("x", sure, drawn[:1], nowhere, nowhere, KIND, spacing=(1, 1, 1), voxel_ml=1.0, sampled=sure, drawn=drawn)
    assert np.array_equal(case.where, drawn.any(0).ravel().nonzero()[0])
    assert KIND.members(case.drawn.long()).sum(2).tolist() == [[0, 16, 16, 32]]


def test_with_fewer_than_five_groups_nothing_is_chosen():
    cases = cases_with(independent_squares)
    assert chosen_for(None, cases, {c.case: str(i % 4) for i, c in enumerate(cases)}) is None
    assert chosen_for(None, cases, {c.case: str(i % 5) for i, c in enumerate(cases)}) is not None


def test_the_first_within_one_standard_error_of_the_best_is_taken():
    noise = np.array([1.0, -1.0, 1.0, -1.0])  # standard error of the mean 0.577
    best = np.zeros(4)
    assert simplest_of_the_best(np.stack([best + 0.5 + noise, best + 0.1 + noise, best], 1)) == 0
    assert simplest_of_the_best(np.stack([best + 0.7 + noise, best + 0.1 + noise, best], 1)) == 1
    assert simplest_of_the_best(np.stack([best + 0.7 + noise, best + 0.6 + noise, best], 1)) == 2
    assert simplest_of_the_best(np.stack([best + 5, best + 5 + noise, best], 1)) == 2  # paired: no noise, no excuse
    assert simplest_of_the_best(np.stack([best, best, best], 1)) == 0


def test_shares_of_the_samples():
    assert coherent_members([0, 5, 10, 15], 1.0) == [0, 5, 10, 15]
    assert coherent_members([0, 5, 10, 15], 0.5) == [5, 15]
    assert coherent_members([3], 0.5) == [] and coherent_members([0, 1], 0.0) == []


def test_observed_voxels_survive_their_file(tmp_path):
    case = cases_with(independent_squares)[0]
    write_voxels(case, tmp_path)
    (again,) = read_voxels(tmp_path, [case.case], KIND)
    for name in vars(case):
        a, b = getattr(case, name), getattr(again, name)
        np.testing.assert_array_equal(a, b, err_msg=name)
        assert type(a) is type(b) and getattr(a, "dtype", None) == getattr(b, "dtype", None), name
    assert read_voxels(tmp_path, [case.case, "other"], KIND) is None


def damaged(case: CaseVoxels, **values: object) -> CaseVoxels:
    return replace(case, **values)


@pytest.mark.parametrize(
    "values",
    [
        {"logits": torch.zeros(3, 4)},
        {"drawn": torch.full((SAMPLES, 96), 7, dtype=torch.uint8)},
        {"where": np.full(96, 10**9)},
        {"every": 0},
        {"drawn": torch.zeros((0, 96), dtype=torch.uint8)},
    ],
    ids=lambda v: next(iter(v)),
)
def test_voxels_of_another_model_are_one_sentence(values, tmp_path):
    write_voxels(damaged(cases_with(independent_squares)[0], **values), tmp_path)
    with pytest.raises(UserError, match="validate the fold again"):
        read_voxels(tmp_path, ["case_0"], KIND)


def test_a_damaged_file_is_one_sentence(tmp_path):
    write_voxels(cases_with(independent_squares)[0], tmp_path)
    file = tmp_path / "case_0.npz"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(UserError, match="cannot be read"):
        read_voxels(tmp_path, ["case_0"], KIND)
