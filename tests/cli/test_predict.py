"""``nndiffseg_predict``: the model is found, wrong calls end with one sentence and exit code 2."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time

import pytest
import torch
from tiny_model import model_folder, raw_images, results  # noqa: F401

from nndiffseg.cli.predict import main
from nndiffseg.inference.volume_sampler import VolumeSampler


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
    assert "Mirroring is spread over the samples of each fold: with --samples 2 the image is not mirrored" in out
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
        "ancestral",
        "--seed",
        9,
        "--save_samples",
        "--npz",
        "nifti",
        "npz",
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
        "sampler": "ancestral",
        "seed": 9,
        "step_size": 0.7,
        "mirror_axes": [],
        "folds": ["1"],
        "checkpoint": "checkpoint_final.pth",
    }
    assert {k: settings[k] for k in wanted} == wanted
    probability = next((tmp_path / "out" / "probabilities" / "case_001").glob("01_*.nii.gz"))
    for name in ("case_001.npz", "case_001.pkl", "samples/case_001_s01.nii.gz", probability):
        assert (tmp_path / "out" / name).is_file()
    assert not (tmp_path / "out" / "uncertainty" / "case_001_epistemic.nii.gz").exists()


def test_not_on_device_reaches_the_sampler_and_changes_no_number_on_the_cpu(call, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("nndiffseg.inference.folder._write_report", lambda *_: None)

    def noted(sampler, *rest):
        asked.append(sampler.options.sums_on_device)
        return sums_device(sampler, *rest)

    sums_device = VolumeSampler.sums_device
    monkeypatch.setattr(VolumeSampler, "sums_device", noted)
    short, files = ("-f", 0, "--samples", 2, "--disable_tta", "-num_parts", 4), []
    for flags in ((), ("--not_on_device",)):
        code, _, err = call(*short, *flags)
        assert code == 0, err
        files.append({f.name: f.read_bytes() for f in (tmp_path / "out").rglob("case_000*.nii.gz")})
    assert set(asked[: len(asked) // 2]) == {True} and set(asked[len(asked) // 2 :]) == {False}
    assert files[0] == files[1] and len(files[0]) == 3


def test_a_model_of_a_configuration_that_inherits_predicts(call, model_folder, tmp_path):  # noqa: F811
    copied = tmp_path / "inherited"
    folder = copied / model_folder.parent.name / model_folder.name.replace("3d_fullres", "large")
    shutil.copytree(model_folder, folder)
    plans = json.loads((folder / "plans.json").read_text())
    plans["configurations"]["large"] = {"inherits_from": "3d_fullres", "batch_size": 3}
    (folder / "plans.json").write_text(json.dumps(plans))
    for file in folder.glob("fold_*/checkpoint_final.pth"):
        checkpoint = torch.load(file, weights_only=True)
        torch.save({**checkpoint, "init_args": {"configuration": "large"}}, file)
    code, _, err = call("-c", "large", "-f", 0, "--samples", 2, "-num_parts", 4, results=copied)
    assert code == 0, err
    inherited = (tmp_path / "out" / "case_000.nii.gz").read_bytes()
    assert call("-c", "3d_fullres", "-f", 0, "--samples", 2, "-num_parts", 4)[0] == 0
    assert (tmp_path / "out" / "case_000.nii.gz").read_bytes() == inherited


def test_members_predict_together_and_are_called_members(call, model_folder, tmp_path):  # noqa: F811
    folder = tmp_path / "members"
    shutil.copytree(model_folder, folder)
    (folder / "fold_0").rename(folder / "fold_all")
    (folder / "fold_1").rename(folder / "fold_all" / "seed_1")
    rest = ("--samples", 3, "--save_samples", "--disable_tta", "-num_parts", 4)
    code, out, err = call("-m", folder, *rest)
    assert code == 0, err
    assert "3 samples each, members all, all/seed_1." in out and "no epistemic map" not in out
    written = tmp_path / "out"
    settings = json.loads((written / "uncertainty" / "case_000.json").read_text())["settings"]
    assert settings["folds"] == ["all", "all/seed_1"]
    report = (written / "report.html").read_text()
    assert "between the members of a deep ensemble" in report and "folds’ models" not in report
    read = {f.name: f.read_bytes() for f in written.rglob("case_000*.nii.gz")}
    assert "case_000_epistemic.nii.gz" in read
    code, out, _ = call("-m", folder, "-f", "all/seed_1", *rest)
    assert code == 0 and "3 samples each, member all/seed_1." in out and "There is no epistemic map" in out
    assert "One member was used" in (written / "report.html").read_text()
    alone = {f.name: f.read_bytes() for f in written.rglob("case_000*.nii.gz")}
    assert read.keys() - alone.keys() == {"case_000_epistemic.nii.gz"}
    # Samples 0 and 2 were the first member's; the second draws the same sample 1 in the ensemble and alone.
    same = [alone[f"case_000_s{n:02d}.nii.gz"] == read[f"case_000_s{n:02d}.nii.gz"] for n in range(3)]
    assert same == [False, True, False]


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
        (["--sampler", "euler"], "no sampler 'euler'"),
        (["--sampler", "ddim"], "is no sampler of nnDiffSegTrainer"),
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


# ---- foreign models ---------------------------------------------------------------------------------------------------


@pytest.fixture
def foreign_model(model_folder, tmp_path):  # noqa: F811
    """A copy of the model; the argument changes the architecture in its plans."""

    def make(change):
        folder = tmp_path / "foreign"
        shutil.copytree(model_folder, folder)
        plans = json.loads((folder / "plans.json").read_text())
        for configuration in plans["configurations"].values():
            change(configuration["architecture"])
        (folder / "plans.json").write_text(json.dumps(plans))
        return folder

    return make


def test_a_command_in_foreign_plans_is_not_run(call, foreign_model, tmp_path):
    mark = tmp_path / "mark"

    def attack(architecture):
        architecture["arch_kwargs"] |= {"nonlin": "subprocess.Popen", "nonlin_kwargs": {"args": ["touch", str(mark)]}}

    code, _, err = call("-m", foreign_model(attack))
    time.sleep(0.5)  # a command would run beside this process
    assert not mark.exists()
    assert code == 2 and "subprocess.Popen" in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["network_class_name", "conv_op", "dropout_op"])
def test_a_module_that_foreign_plans_name_is_not_imported(call, foreign_model, tmp_path, monkeypatch, place):
    mark = tmp_path / "mark"
    (tmp_path / "planted").mkdir()
    (tmp_path / "planted" / f"planted_{place}.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass Thing: ...\n")
    monkeypatch.syspath_prepend(tmp_path / "planted")

    def attack(architecture):
        section = architecture if place == "network_class_name" else architecture["arch_kwargs"]
        section[place] = f"planted_{place}.Thing"

    code, _, err = call("-m", foreign_model(attack))
    assert not mark.exists()
    assert code == 2 and f"planted_{place}.Thing" in err and err.count("\n") == 1


def test_a_foreign_model_cannot_attack_the_command_itself(foreign_model, raw_images, tmp_path):  # noqa: F811
    mark = tmp_path / "mark"

    def attack(architecture):
        architecture["arch_kwargs"] |= {"nonlin": "subprocess.Popen", "nonlin_kwargs": {"args": ["touch", str(mark)]}}

    words = ["-m", foreign_model(attack), "-i", raw_images, "-o", tmp_path / "out", "-device", "cpu"]
    folders = [f"--{kind}={tmp_path / kind}" for kind in ("raw", "preprocessed", "results")]
    command = [sys.executable, "-m", "nndiffseg.cli.predict", *map(str, words), *folders]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert finished.returncode == 2 and finished.stderr.startswith("error: ") and finished.stderr.count("\n") == 1
    assert "subprocess.Popen" in finished.stderr and not mark.exists()


# ---- foreign images ---------------------------------------------------------------------------------------------------


def content_of(folder):
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.mark.parametrize("case", ["..", ".", "...", "._case_000"])
def test_an_image_with_a_hidden_name_deletes_nothing(call, raw_images, tmp_path, case):  # noqa: F811
    images, out = tmp_path / "in", tmp_path / "out"
    for folder in (images, out / "sub", out / ".nndiffseg_tmp"):
        folder.mkdir(parents=True)
    for channel in range(2):
        shutil.copy(raw_images / f"case_000_{channel:04d}.nii.gz", images / f"{case}_{channel:04d}.nii.gz")
    for name in ("thesis.txt", "sub/years_of_work.txt", ".nndiffseg_tmp/of_another_run.txt"):
        (out / name).write_text("precious")
    before = content_of(out)
    code, _, err = call("--samples", 2, i=images)
    assert content_of(out) == before
    assert code == 2 and "holds no images" in err and err.count("\n") == 1


def test_hidden_images_beside_others_are_left_out(call, raw_images, tmp_path):  # noqa: F811
    images, out = tmp_path / "in", tmp_path / "out"
    for folder in (images, out):
        folder.mkdir()
    for channel in range(2):
        for case in ("case_000", "..", "._case_000"):
            shutil.copy(raw_images / f"case_000_{channel:04d}.nii.gz", images / f"{case}_{channel:04d}.nii.gz")
    (out / "thesis.txt").write_text("precious")
    code, text, err = call("--samples", 2, "--disable_tta", i=images)
    assert code == 0, err
    assert "1 cases" in text and (out / "case_000.nii.gz").is_file()
    assert (out / "thesis.txt").read_text() == "precious"
    assert not [f for f in out.rglob(".*")]


def test_an_image_that_is_not_named_like_a_file_deletes_nothing(call, raw_images, tmp_path):  # noqa: F811
    images, out = tmp_path / "in", tmp_path / "out"
    for folder in (images, out):
        folder.mkdir()
    for channel in range(2):
        shutil.copy(raw_images / f"case_000_{channel:04d}.nii.gz", images / f"..\\case_{channel:04d}.nii.gz")
        shutil.copy(raw_images / f"case_000_{channel:04d}.nii.gz", images / f"a\\b_{channel:04d}.nii.gz")
    (out / "thesis.txt").write_text("precious")
    code, _, err = call("--samples", 2, i=images)
    assert code == 2 and "a\\\\b" in err and err.count("\n") == 1
    assert content_of(out) == {"thesis.txt": b"precious"}
