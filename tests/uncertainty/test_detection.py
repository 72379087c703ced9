"""Uncertainty as a detector of errors, against scikit-learn and torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from nndiffseg.uncertainty.detection import BINS, ErrorHistogram


@pytest.fixture
def drawn() -> tuple[np.ndarray, np.ndarray]:
    """Uncertainty on the bins, with many ties, and errors that follow it."""
    rng = np.random.default_rng(0)
    values, wrong = rng.integers(0, BINS, 5000) / BINS, rng.random(5000) < 0.2
    values = np.where(wrong, np.sqrt(values), values)
    return np.floor(values * 64) / 64, wrong


def histogram_of(values: np.ndarray, wrong: np.ndarray) -> ErrorHistogram:
    histogram, rest = ErrorHistogram(), ErrorHistogram()
    histogram.add(values[:2000], wrong[:2000])
    rest.add(values[2000:], wrong[2000:])
    histogram.merge(rest)
    return histogram


def test_auroc_and_auprc_equal_the_exact_ones_on_values_that_fall_on_bins(drawn):
    values, wrong = drawn
    histogram = histogram_of(values, wrong)
    assert histogram.auroc() == pytest.approx(roc_auc_score(wrong, values), abs=1e-12)
    assert histogram.auprc() == pytest.approx(average_precision_score(wrong, values), abs=1e-12)
    assert histogram.error_rate() == pytest.approx(wrong.mean())


@pytest.mark.seconds
def test_auroc_and_auprc_equal_those_of_torchmetrics(drawn):
    reason = "needs torchmetrics, of the extra oracle"
    metrics = pytest.importorskip("torchmetrics.classification", reason=reason)
    values, wrong = drawn
    arguments = torch.from_numpy(values).float(), torch.from_numpy(wrong).long()
    histogram = histogram_of(values, wrong)
    assert histogram.auroc() == pytest.approx(float(metrics.BinaryAUROC()(*arguments)), abs=1e-5)
    assert histogram.auprc() == pytest.approx(float(metrics.BinaryAveragePrecision()(*arguments)), abs=1e-5)


def test_a_map_that_knows_nothing_has_the_error_rate_as_auprc_and_a_perfect_one_has_1():
    wrong = np.arange(100) < 7
    assert histogram_of(np.full(100, 0.3), wrong).auprc() == pytest.approx(0.07)
    assert histogram_of(np.where(wrong, 0.9, 0.1), wrong).auprc() == 1


def test_without_any_error_both_are_undefined():
    histogram = ErrorHistogram()
    histogram.add(np.linspace(0, 1, 10), np.zeros(10, bool))
    assert np.isnan(histogram.auroc()) and np.isnan(histogram.auprc())
    assert histogram.error_rate() == 0
    assert np.isnan(ErrorHistogram().error_rate())
