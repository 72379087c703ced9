"""Risk over coverage: closed forms, all orders of ties, and torch-uncertainty's AURC and AUGRC."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch

from nndiffseg.uncertainty.risk_coverage import risk_coverage


def test_three_cases_by_hand():
    found = risk_coverage([0.9, 0.5, 0.7], [0.0, 0.6, 0.3])
    # The most confident case has risk 0, then 0.3, then 0.6.
    assert found.aurc == pytest.approx((0 + 0.3 / 2 + 0.9 / 3) / 3)
    # Undetected risk 0, 0.1 and 0.3 at coverage 1/3, 2/3 and 1; trapezoids from (0, 0).
    assert found.augrc == pytest.approx((0 + (0 + 0.1) / 2 + (0.1 + 0.3) / 2) / 3)
    assert found.mean_risk == pytest.approx(0.3)
    assert found.spearman == pytest.approx(1)
    assert found.cases == 3


def test_a_better_order_is_better_and_the_worst_one_is_worst():
    risk = np.linspace(0, 1, 11) ** 2
    best, worst = risk_coverage(-risk, risk), risk_coverage(risk, risk)
    assert best.aurc < best.mean_risk < worst.aurc
    assert best.augrc < best.mean_risk / 2 < worst.augrc
    assert (best.spearman, worst.spearman) == (pytest.approx(1), pytest.approx(-1))


def test_constant_confidence_gives_the_mean_over_all_orders():
    risk = [0.1, 0.5, 0.9, 0.2]
    tied = risk_coverage([0.7] * 4, risk)
    orders = [risk_coverage(order, risk) for order in permutations([4.0, 3.0, 2.0, 1.0])]
    assert tied.aurc == pytest.approx(np.mean([o.aurc for o in orders])) == pytest.approx(np.mean(risk))
    assert tied.augrc == pytest.approx(np.mean([o.augrc for o in orders])) == pytest.approx(np.mean(risk) / 2)
    assert np.isnan(tied.spearman)


def test_ties_within_others_give_the_mean_over_their_orders():
    risk = [0.3, 0.8, 0.1, 0.4]
    tied = risk_coverage([0.9, 0.5, 0.5, 0.2], risk)
    orders = [risk_coverage([0.9, *pair, 0.2], risk) for pair in ((0.5, 0.6), (0.6, 0.5))]
    assert tied.aurc == pytest.approx(np.mean([o.aurc for o in orders]))
    assert tied.augrc == pytest.approx(np.mean([o.augrc for o in orders]))


def test_one_case_tells_nothing():
    found = risk_coverage([0.5], [0.1])
    assert np.isnan(found.aurc) and np.isnan(found.augrc) and found.cases == 1


@pytest.mark.seconds
def test_areas_equal_those_of_torch_uncertainty_up_to_its_start_at_the_first_case():
    try:
        from torch_uncertainty.metrics.classification import AUGRC, AURC
    except ImportError as error:
        pytest.skip(f"needs torch-uncertainty, of the extra oracle ({error})")
    rng = np.random.default_rng(3)
    n = 400
    confidence = 0.5 + 0.5 * (1 + rng.permutation(n)) / (n + 1)  # of class 1 of two, no ties
    wrong = rng.random(n) < 1 - confidence
    probabilities = torch.from_numpy(np.stack([1 - confidence, confidence], 1))
    theirs = {}
    for metric in (AURC(), AUGRC()):
        metric.update(probabilities, torch.from_numpy(~wrong).long())
        theirs[type(metric).__name__] = float(metric.compute())
    found = risk_coverage(confidence, wrong.astype(float))
    # Theirs are trapezoids over coverages from 1/n to 1, divided by 1 - 1/n; ours begin at 0.
    first = float(wrong[confidence.argmax()])
    assert found.augrc == pytest.approx(theirs["AUGRC"] * (1 - 1 / n) + first / (2 * n * n), abs=1e-6)
    assert found.aurc == pytest.approx(theirs["AURC"] * (1 - 1 / n) + (first + wrong.mean()) / (2 * n), abs=1e-6)
