"""Figures of a calibration: probabilities before and after, coverage, and no case judged by itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax

from nndiffseg.calibration import Calibration, CaseTable
from nndiffseg.calibration.expected_dice import DiceMap
from nndiffseg.calibration.fusion import WEIGHTS
from nndiffseg.calibration.voxels import LabelKind, observe
from nndiffseg.nn.heads import Heads
from nndiffseg.uncertainty.calibration_check import ISOTONIC, RAW, TEMPERATURE, _probabilities, check_tables

LABELS = LabelKind(Heads(3), (), ((0,), (1,), (2,)), ((1,), (2,)))
REGIONS = LabelKind(Heads(2, True), (1, 2), ((1, 2), (2,)), ((1, 2), (2,)))


def over_confident(kind: LabelKind, name: str, seed: int, sharpness: float):
    rng, shape = np.random.default_rng(seed), (1, 40, 50)
    z = rng.normal(0, 2, (kind.heads.number, *shape))
    if kind.heads.regions:
        whole, core = (rng.random(shape) < expit(row) for row in z)
        labels, p = np.where(whole, np.where(core, 2, 1), 0), expit(sharpness * z)
        p = p.astype(np.float32)
        labels = np.where(core, 2, labels)
    else:
        labels = (rng.random(shape) > softmax(z, 0).cumsum(0)[:-1]).sum(0)
        p = softmax(sharpness * z, 0).astype(np.float32)
    near = np.ones(shape, bool)
    return observe(name, torch.from_numpy(p), labels[None], near, near, kind, spacing=(1, 1, 1), voxel_ml=1.0)


@pytest.mark.parametrize("kind", [LABELS, REGIONS], ids=["labels", "regions"])
def test_temperature_and_isotonic_regression_repair_over_confidence(kind):
    cases = [over_confident(kind, f"c{i}", i, 3.0) for i in range(6)]
    temperature = (3.0,) if not kind.heads.regions else (3.0, 3.0)
    found = _probabilities(cases, kind, {}, {c.case: Calibration(temperature=temperature) for c in cases})
    raw, scaled, isotonic = (found["probabilities"][n] for n in (RAW, TEMPERATURE, ISOTONIC))
    if not kind.heads.regions:
        assert raw["ece"] > 0.1 and scaled["ece"] < 0.02 and isotonic["ece"] < 0.03
    assert scaled["nll"] < raw["nll"] and isotonic["nll"] < raw["nll"]
    assert np.sum(found["reliability"][RAW]["voxels"]) == 6 * 2000 * kind.heads.number
    assert 0.6 < found["error_auroc"] < 1


def test_isotonic_regression_sees_other_groups_only():
    cases = [over_confident(LABELS, f"c{i}", i, 1.0) for i in range(4)]
    groups = {c.case: "one" for c in cases}
    found = _probabilities(cases, LABELS, groups, {c.case: Calibration() for c in cases})["probabilities"]
    assert found[ISOTONIC] == found[RAW] == found[TEMPERATURE]


def table(case: str, drawn: np.ndarray, true: float, dice: float, confidence: float) -> CaseTable:
    return CaseTable(
        case,
        np.full((len(WEIGHTS), 1), dice),
        np.zeros(len(WEIGHTS)),
        drawn[None],
        np.array([[true]]),
        np.zeros((len(WEIGHTS), 1, 33)),
        np.full((len(WEIGHTS), 1), confidence),
    )


def test_coverage_and_width_are_those_of_mean_plus_minus_q_sd():
    drawn = np.array([8.0, 12.0, 10.0])  # mean 10, sd 2
    tables = [table("in", drawn, 13.9, 0.8, 0.7), table("out", drawn, 14.1, 0.6, 0.5), table("in2", drawn, 6.1, 0.7, 0.6)]
    calibrations = {t.case: Calibration(volume_quantiles=(2.0,), dice=DiceMap(0.0, 1.0, 0.15)) for t in tables}
    found = check_tables(tables, calibrations)
    assert found["volumes"][0]["coverage_90"] == pytest.approx(2 / 3)
    assert found["volumes"][0]["width"] == pytest.approx(8 / 13.9)
    assert found["dice"]["spearman"] == pytest.approx(1) and found["dice"]["coverage_90"] == 1


def test_what_is_not_promised_is_not_judged():
    tables = [table(f"c{i}", np.array([8.0, 12.0]), 10.0, 0.8, 0.7) for i in range(3)]
    found = check_tables(tables, {t.case: Calibration(volume_quantiles=(None,)) for t in tables})
    assert found["volumes"] == [{"coverage_90": None, "width": None}]
    assert found["dice"]["coverage_90"] is None and found["dice"]["spearman"] is None
