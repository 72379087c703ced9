"""A model is described by what its files say, whoever made it, and what they do not say is not made up."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from stock_folder import TRAINER, write_stock_folder

from nndiffseg.calibration import Calibration
from nndiffseg.errors import UserError
from nndiffseg.inference.description import count_parameters, describe
from nndiffseg.inference.model_folder import load_model


@pytest.fixture
def stock(tmp_path):
    return write_stock_folder(tmp_path)


def test_a_stock_folder_is_described(stock):
    found = describe(stock)
    assert found["model"] == {
        "dataset": "Dataset902_Stock",
        "trainer": TRAINER,
        "plans": "nnUNetPlans",
        "configuration": "2d",
        "planner": "ExperimentPlanner",
        "method": None,
        "options": None,
    }
    plan = found["plan"]
    assert (plan["patch_size"], plan["spacing"], plan["batch_size"]) == ([32, 32], [0.5, 1.0], 12)
    assert (plan["network"], plan["features_per_stage"], plan["latent"]) == ("PlainConvUNet", [4, 8, 16], None)
    assert found["data"]["channels"] == ["MRI"] and found["data"]["training_cases"] == 7
    assert found["data"]["origin"] == {"licence": "CC0"}
    file = stock / "fold_0" / "checkpoint_final.pth"
    fold = found["folds"]["0"]
    assert fold["checkpoints"] == {"checkpoint_final.pth": {"epochs": 5, "bytes": file.stat().st_size}}
    assert fold["validation"] == {"cases": 3, "dice_mean": 0.75, "dice": {"whole": 0.875, "core": 0.625}}
    assert fold["uncertainty"] is fold["calibration"] is found["calibration"] is None
    assert found["versions"] == {"torch": "2.7.0"}
    json.dumps(found)


def test_a_model_of_nndiffseg_is_described_with_latent_calibrations_and_scores(model_folder, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "copy")
    Calibration(0.25, groups=4, folds=("0",)).write(folder / "fold_0")
    Calibration(0.5, groups=8, folds=("0", "1")).write(folder)
    validation = folder / "fold_1" / "validation"
    (validation / "uncertainty").mkdir(parents=True)
    figures = {"error_auroc": 0.9, "calibration": {}, "bad": None, "volumes": {"core": {"coverage_90": 0.8, "mean_sd_ml": 1.0}}}
    (validation / "uncertainty.json").write_text(json.dumps(figures))
    versions = {"nndiffseg": "0.2.0", "nnunetv2": "2.8.1", "torch": "2.9.0"}
    (validation / "uncertainty" / "case.json").write_text(json.dumps({"settings": {"versions": versions}}))
    found = describe(folder)
    assert found["plan"]["latent"]["latent_channels"] >= 1 and found["plan"]["latent"]["samples"] == 16
    assert list(found["folds"]) == ["0", "1"]
    assert found["folds"]["0"]["calibration"]["fusion_weight"] == 0.25 and found["folds"]["1"]["calibration"] is None
    assert found["calibration"]["groups"] == 8
    assert found["folds"]["1"]["uncertainty"] == {"error_auroc": 0.9, "coverage_90": {"core": 0.8}}
    assert found["versions"] == versions
    network = load_model(folder).folds[0].network
    trained = sum(p.numel() for p in network.parameters())
    running = sum(b.numel() for b in network.buffers() if b is not None)
    assert trained <= found["parameters"]["total"] <= trained + running
    image = sum(p.numel() for p in network.image_network.parameters())
    assert found["parameters"]["parts"]["image_network"] == image


def test_weights_under_two_names_count_once(tmp_path):
    shared = torch.ones(3, 2)
    torch.save({"a.x": shared, "b.x": shared, "b.y": torch.ones(3, 2), "c": torch.ones(())}, tmp_path / "weights.pth")
    counted = count_parameters(torch.load(tmp_path / "weights.pth"))
    assert counted == {"total": 13, "parts": {"a": 6, "b": 6, "c": 1}}


def test_folds_are_in_the_order_of_their_numbers(stock):
    for fold in ("10", "2", "all", "all/seed_1"):
        shutil.copytree(stock / "fold_0", stock / f"fold_{fold}")
    assert list(describe(stock)["folds"]) == ["0", "2", "10", "all", "all/seed_1"]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("validation/summary.json", []),
        ("validation/summary.json", {"mean": [1], "foreground_mean": 3, "metric_per_case": "x"}),
        ("validation/summary.json", {"mean": {"1": {"Dice": "high"}}, "foreground_mean": {"Dice": float("inf")}}),
        ("validation/uncertainty.json", {"volumes": [], "error_auroc": [0.9]}),
        ("debug.json", ["2.7.0"]),
        ("debug.json", {"torch_version": 2}),
    ],
)
def test_other_peoples_json_may_hold_anything(stock, file, content):
    (stock / "fold_0" / file).write_text(json.dumps(content))
    found = describe(stock)["folds"]["0"]
    assert found["validation"]["dice_mean"] in (None, 0.75) and not (found["uncertainty"] or {}).get("error_auroc")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "fold_0" / "checkpoint_final.pth").unlink(), "holds no checkpoint yet"),
        (lambda f: (f / "fold_0" / "checkpoint_final.pth").write_bytes(b"x"), "cannot be read as a checkpoint"),
        (lambda f: (f / "fold_0" / "calibration.json").write_text('{"fusion_weight": 7}'), "invalid fusion_weight"),
        (lambda f: (f / "fold_0" / "validation" / "summary.json").write_text("{"), "not valid JSON"),
        (
            lambda f: (f / "dataset.json").write_text('{"labels": {"background": 0}, "file_ending": ".png"}'),
            "has no channel_names",
        ),
        (lambda f: (f / "plans.json").write_text('{"configurations": {"2d": {}}}'), "no valid dataset_name"),
    ],
)
def test_what_is_missing_or_damaged_is_told_in_one_sentence(stock, change, message):
    change(stock)
    with pytest.raises(UserError, match=message):
        describe(stock)


def test_folds_of_different_models_are_not_described_as_one(stock):
    shutil.copytree(stock / "fold_0", stock / "fold_1")
    file = stock / "fold_1" / "checkpoint_final.pth"
    torch.save(torch.load(file, weights_only=False) | {"trainer_name": "nnUNetTrainer"}, file)
    with pytest.raises(UserError, match="of another model than those before it"):
        describe(stock)
