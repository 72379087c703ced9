"""``nndiffseg_predict``: the model is found, wrong calls end with one sentence and exit code 2."""

from __future__ import annotations

import json
import shutil

import pytest
from tiny_model import model_folder, raw_images, results  # noqa: F401

from nndiffseg.cli.predict import main


@pytest.fixture
def call(raw_images, results, tmp_path, capsys):  # noqa: F811
    """Runs the command on the images with the results folder; returns (exit code, stdout, stderr)."""

    def run(*flags, i=raw_images, results=results):
        argv = [
            "-i",
            str(i),
            "-o",
            str(tmp_path / "out"),
            "-device",
            "cpu",
            "--disable_progress_bar",
            *(f"--{kind}={results if kind == 'results' else tmp_path / kind}" for kind in ("raw", "preprocessed", "results")),
            *map(str, flags),
        ]
        code = main(argv)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_the_only_model_predicts_with_two_flags(call, tmp_path):
    code, out, err = call("--samples", 2, "-num_parts", 4)
    assert code == 0, err
    assert "nnDiffSegTrainer__nnDiffSegPlansS__3d_fullres" in out and "folds 0, 1" in out and "report.html" in out
    names = {f.name for f in (tmp_path / "out").iterdir()}
    assert {"case_000.nii.gz", "uncertainty", "report.html", "dataset.json", "plans.json"} <= names
    settings = json.loads((tmp_path / "out" / "uncertainty" / "case_000.json").read_text())["settings"]
    assert settings["samples"] == 2 and settings["mirror_axes"] == [0, 1, 2] and settings["device"] == "cpu"


def test_all_flags_reach_the_predictor(call, model_folder, tmp_path):  # noqa: F811
    code, _, err = call(
        "-m",
        model_folder,
        "-f",
        1,
        "--samples",
        2,
        "--steps",
        3,
        "--sampler",
        "ddim",
        "--seed",
        9,
        "--save_samples",
        "--npz",
        "-step_size",
        0.7,
        "--disable_tta",
        "-num_parts",
        4,
        "-part_id",
        1,
        "--verbose",
        "-npp",
        0,
        "-nps",
        0,
    )
    assert code == 0, err
    settings = json.loads((tmp_path / "out" / "uncertainty" / "case_001.json").read_text())["settings"]
    wanted = {
        "samples": 2,
        "steps": 3,
        "sampler": "ddim",
        "seed": 9,
        "step_size": 0.7,
        "mirror_axes": [],
        "folds": ["1"],
        "checkpoint": "checkpoint_final.pth",
    }
    assert {k: settings[k] for k in wanted} == wanted
    for name in ("case_001.npz", "case_001.pkl", "samples/case_001_s01.nii.gz"):
        assert (tmp_path / "out" / name).is_file()
    assert not (tmp_path / "out" / "uncertainty" / "case_001_epistemic.nii.gz").exists()


def test_several_models_are_listed(call, model_folder, tmp_path):  # noqa: F811
    other = tmp_path / "several" / "Dataset901_Tiny"
    shutil.copytree(model_folder, other / model_folder.name)
    shutil.copytree(model_folder, other / "nnDiffSegTrainer__nnDiffSegPlansL__3d_fullres")
    code, _, err = call(results=tmp_path / "several")
    assert code == 2 and "several trained models" in err
    assert "-d 901 -c 3d_fullres -tr nnDiffSegTrainer -p nnDiffSegPlansS" in err
    code, out, err = call("-d", 901, "-p", "nnDiffSegPlansS", "--samples", 2, "-num_parts", 4, results=tmp_path / "several")
    assert code == 0 and "nnDiffSegPlansS__3d_fullres" in out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-d", "77"], "No such dataset: 77"),
        (["-c", "3d_lowres"], "no trained nndiffseg model with configuration 3d_lowres"),
        (["-tr", "nnUNetTrainer"], "no trained nndiffseg model with trainer nnUNetTrainer"),
        (["-m", "nowhere"], "no model folder nowhere"),
        (["-m", "x", "-d", "901"], "not both"),
        (["-f", "4"], "holds no fold_4/checkpoint_final.pth"),
        (["-chk", "checkpoint_best.pth"], "no checkpoint_best.pth"),
        (["--samples", "0"], "at least 1"),
        (["--sampler", "euler"], "invalid choice"),
        (["--sample", "2"], "nknown flag --sample, did you mean --samples?"),
        (["-num_parts", "2", "-part_id", "2"], "-part_id must lie between 0 and 1"),
    ],
)
def test_wrong_calls_end_with_one_sentence(call, tmp_path, flags, message):
    code, _, err = call(*flags)
    assert code == 2 and message in err and err.count("\n") == 1 and "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_an_empty_results_folder_and_an_empty_input_folder(call, tmp_path):
    (tmp_path / "empty").mkdir()
    code, _, err = call(results=tmp_path / "empty")
    assert code == 2 and "no trained nndiffseg model" in err
    code, _, err = call(i=tmp_path / "empty")
    assert code == 2 and "holds no images" in err and not (tmp_path / "out").exists()


def test_a_full_disk_leaves_no_part_of_a_case(call, tmp_path, monkeypatch):
    import errno

    import SimpleITK as sitk

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device", args[1])

    monkeypatch.setattr(sitk, "WriteImage", full)
    code, _, err = call("--samples", 2, "--disable_tta")
    assert code == 2 and "No space left" in err and err.count("\n") == 1
    assert not list((tmp_path / "out").rglob("case_*"))
