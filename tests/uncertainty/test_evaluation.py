"""Evaluation of a prediction folder, checked against an oracle whose uncertainty is the true one."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
from prediction_files import disc, write_labels

from nndiffseg.errors import UserError
from nndiffseg.uncertainty.evaluation import evaluate_predictions
from nndiffseg.uncertainty.evaluation_table import format_table
from nndiffseg.uncertainty.risk_coverage import risk_coverage

pytestmark = pytest.mark.seconds


@pytest.fixture(scope="module")
def dataset_json(phantom_dataset):
    return json.loads((phantom_dataset / "dataset.json").read_text())


@pytest.fixture(scope="module")
def evaluation(phantom_dataset, oracle_predictions, dataset_json):
    return evaluate_predictions(
        oracle_predictions, phantom_dataset / "labelsTs", dataset_json=dataset_json, truth=phantom_dataset / "truth.json"
    )


def array(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def test_dice_equals_a_count_by_hand(evaluation, phantom_dataset, oracle_predictions):
    for name, case in evaluation["cases"].items():
        reference = array(phantom_dataset / "labelsTs" / f"{name}.nii.gz")
        prediction = array(oracle_predictions / f"{name}.nii.gz")
        a, b = reference == 2, prediction == 2
        assert case["dice"]["rear lobe"] == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))
    summary = evaluation["summary"]
    assert summary["dice_mean"] == pytest.approx(np.mean([c["dice_mean"] for c in evaluation["cases"].values()]))


def test_oracle_reaches_the_figures_that_the_demo_asks_for(evaluation):
    summary = evaluation["summary"]
    assert summary["cases"] == 3
    assert summary["dice_mean"] > 0.9
    assert summary["error_auroc"] > 0.85
    for structure in ("front lobe", "rear lobe"):
        assert summary["volume_spread_ratio"][structure] == pytest.approx(1, abs=0.25)  # 64 samples in 3 cases
    assert summary["calibration"]["ece"] < 0.1
    assert summary["calibration"]["nll"] < 0.5


def test_volumes_are_those_of_the_reference_label(evaluation, phantom_dataset):
    name, case = next(iter(evaluation["cases"].items()))
    label = array(phantom_dataset / "labelsTs" / f"{name}.nii.gz")
    row = case["volumes"]["front lobe"]
    assert row["reference_ml"] == pytest.approx((label == 1).sum() / 1000)
    assert row["covered"] == (row["interval_90_ml"][0] <= row["reference_ml"] <= row["interval_90_ml"][1])


def test_a_folder_with_segmentations_alone_still_gives_dice(phantom_dataset, oracle_predictions, dataset_json, tmp_path):
    for file in oracle_predictions.glob("*.nii.gz"):
        shutil.copy(file, tmp_path)
    result = evaluate_predictions(
        tmp_path, phantom_dataset / "labelsTs", dataset_json=dataset_json, output_file=tmp_path / "evaluation.json"
    )
    written = json.loads((tmp_path / "evaluation.json").read_text())["summary"]
    assert written["dice_mean"] == pytest.approx(result["summary"]["dice_mean"])
    assert written["error_auroc"] is None
    assert written["volume_spread_ratio"] is None
    assert written["calibration"] is None
    assert "front lobe" in format_table(result)


def test_without_matching_references_one_clear_sentence(oracle_predictions, dataset_json, tmp_path):
    with pytest.raises(UserError, match="No segmentation"):
        evaluate_predictions(oracle_predictions, tmp_path, dataset_json=dataset_json)


def test_table_shows_the_numbers_of_each_structure(evaluation):
    table = format_table(evaluation)
    assert f"{evaluation['summary']['dice']['rear lobe']:.3f}" in table
    assert f"{evaluation['summary']['error_auroc']:.3f}" in table


def test_each_case_reports_what_it_was_measured_with(evaluation):
    for case in evaluation["cases"].values():
        assert (case["annotators"], case["samples"], case["remark"]) == (1, 4, "")
        assert case["uncertainty"] == "total map" and case["probabilities"]
        assert case["structures"]["rear lobe"]["nsd"] is None  # no tolerance was given
    assert evaluation["summary"]["tolerance_mm"] is None
    assert evaluation["matching"] == {"without_reference": (), "without_prediction": ()}


def test_pooled_scores_of_a_structure_are_not_the_mean_of_the_cases(evaluation):
    pooled = evaluation["summary"]["structures"]["front lobe"]
    cases = [case["structures"]["front lobe"] for case in evaluation["cases"].values()]
    assert pooled["energy_score"] == pytest.approx(np.mean([c["energy_score"] for c in cases]))
    assert pooled["ece"] < np.mean([c["ece"] for c in cases])  # over- and underestimates of cases cancel
    assert min(c["brier"] for c in cases) < pooled["brier"] < max(c["brier"] for c in cases)


def test_expected_dice_is_rated_by_risk_over_coverage(evaluation):
    cases = list(evaluation["cases"].values())
    expected = risk_coverage([c["expected_dice"] for c in cases], [1 - c["dice_mean"] for c in cases])
    assert evaluation["summary"]["expected_dice"] == expected._asdict()


def test_a_structure_that_one_side_lacks_counts_with_nsd_0_and_is_named_for_hd95(tmp_path):
    shape, dataset_json = (8, 16, 16), {"labels": {"background": 0, "a": 1, "b": 2}, "file_ending": ".nii.gz"}
    for case, predicted, true in (("x", 1, 1), ("y", 1, 2)):
        write_labels(predicted * disc(shape, 3), tmp_path / "out" / f"{case}.nii.gz")
        write_labels(true * disc(shape, 3), tmp_path / "labels" / f"{case}.nii.gz")
    found = evaluate_predictions(tmp_path / "out", tmp_path / "labels", dataset_json=dataset_json, tolerance=1.0)
    a, b = found["summary"]["structures"]["a"], found["summary"]["structures"]["b"]
    assert (a["dice"], a["nsd"], a["hd95_mm"]) == (0.5, 0.5, 0)
    assert (b["dice"], b["nsd"]) == (0, 0) and np.isnan(b["hd95_mm"])  # in x both lack b
    assert a["hd95_undefined"] == b["hd95_undefined"] == 1
    assert any("HD95 is undefined 2 times" in sentence for sentence in found["summary"]["left_out"])
