"""The fair table of finished models on a tiny dataset."""

from __future__ import annotations

import json

import pytest

from benchmarks import fair_table, ssn, versus_nnunet


@pytest.fixture
def trained(tiny_flags, tiny_folders, tmp_path, monkeypatch):
    """Model folders of a stock nnU-Net, a second one, nndiffseg, and a network on the first one, of two iterations each."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    flags = [*tiny_flags, "--no_speed", "--device", "cpu", "--iterations", "2", "--ensemble", "2"]
    for side in ("nnunet", "nndiffseg"):
        assert versus_nnunet.main([*flags, "--only", side]) == 0
    (source,) = (tmp_path / "results").rglob("seed_0/*/nnUNetTrainer__*")
    preprocessed = ["--preprocessed", str(tiny_folders["preprocessed"])]
    assert ssn.main([str(source), *preprocessed, "--iterations", "2", "--device", "cpu"]) == 0
    folds = (tmp_path / "results").rglob("fold_0")  # .../seed_S/DATASET/MODEL/fold_0
    return {f"{p.parts[-4]} {p.parts[-2].split('__')[0]}": p.parent for p in folds}


def test_all_sides_stand_in_one_table_with_the_same_fits(trained, tiny_folders, results_elsewhere, capsys):
    stock = [str(trained[f"seed_{s} nnUNetTrainer"]) for s in (0, 1)]
    flags = ["--raw", str(tiny_folders["raw"]), "--preprocessed", str(tiny_folders["preprocessed"]), "--name", "fair"]
    flags += ["--samples", "4", "--device", "cpu", "--nnunet", *stock, "--ssn", str(trained["seed_0 StochasticSegmentation"])]
    assert fair_table.main([*flags, "--nndiffseg", str(trained["seed_0 nnDiffSegTrainer"])]) == 0
    text = (results_elsewhere / "fair.json").read_text()
    result = json.loads(text)
    sides = {"nnunet", "nnunet coherent", "ensemble", "ensemble coherent", "ssn", "head", "head coherent", "nndiffseg"}
    names = ("Dice, mean", "NSD, core", "NLL, fitted temperature", "ECE, isotonic regression", "GED^2")
    for name in (*names, "volume inside the 90 % interval, calibrated"):
        assert set(result["metrics"][name]) == sides and set(result["base_minus"][name]) == sides - {"nndiffseg"}, name
    assert set(result["fits"]) == set(result["seconds"]) == sides
    assert str(tiny_folders["raw"].parent) not in text
    metrics = result["metrics"]
    assert metrics["NLL, shell"]["nnunet"] == metrics["NLL, shell"]["nnunet coherent"]  # one map, two kinds of samples
    assert metrics["GED^2"]["nnunet"] != metrics["GED^2"]["nnunet coherent"]
    # Predictions are kept: a second run makes none, and another base only changes the differences.
    capsys.readouterr()
    assert fair_table.main([*flags, "--nndiffseg", str(trained["seed_0 nnDiffSegTrainer"]), "--base", "head"]) == 0
    assert " s (" not in capsys.readouterr().out
    again = json.loads((results_elsewhere / "fair.json").read_text())
    assert again["metrics"] == metrics and set(again["base_minus"]["GED^2"]) == sides - {"head"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "Give model folders"),
        (["--nnunet", "results/model"], "TRAINER__PLANS__CONFIGURATION"),
        (["--samples", "0"], "must be positive, not 0"),
    ],
)
def test_bad_input_is_told_in_one_sentence(flags, message, tiny_folders, capsys):
    folders = ["--raw", str(tiny_folders["raw"]), "--preprocessed", str(tiny_folders["preprocessed"])]
    assert fair_table.main([*folders, *flags]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
