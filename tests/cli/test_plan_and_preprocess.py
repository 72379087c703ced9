"""The real command on generated datasets, and on bad input."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.experiment_planning.experiment_planners.residual_unets import residual_encoder_unet_planners
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

from nndiffseg.cli.plan_and_preprocess import main
from nndiffseg.cli.planning_classes import SAME, find_planner
from nndiffseg.errors import UserError
from nndiffseg.methods.ldseg.latent import ldseg_latent
from nndiffseg.methods.ldseg.method import LDSegMethod
from nndiffseg.methods.protocol import MethodPlan
from nndiffseg.methods.settings import DiffusionSettings

COMMAND = Path(sys.executable).with_name("nndiffseg_plan_and_preprocess")


def command(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The installed command in a fresh process, without nnU-Net's environment variables."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("nnUNet")}
    return subprocess.run([str(COMMAND), *words], cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def default_raw(tmp_path: Path) -> Path:
    return tmp_path / "nndiffseg_data" / "raw"


@pytest.mark.parametrize(
    ("options", "configurations"),
    [
        ({"shape": (24, 28, 24), "splits": True}, {"2d", "3d_fullres"}),
        ({"shape": (48, 40), "file_ending": ".png"}, {"2d"}),
    ],
    ids=["3D nifti", "2D png"],
)
def test_the_command_plans_and_preprocesses(
    make_dataset: Callable[..., Path], default_raw: Path, tmp_path: Path, options: dict[str, Any], configurations: set
) -> None:
    folder = make_dataset(default_raw, **options)
    result = command("-d", "901", "-pl", "DiffSegPlannerS", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    out = tmp_path / "nndiffseg_data" / "preprocessed" / folder.name
    plans = json.loads((out / "nnDiffSegPlansS.json").read_text())
    assert set(plans["configurations"]) == configurations
    for name, configuration in plans["configurations"].items():
        settings = DiffusionSettings.from_configuration(configuration)
        assert f"{name}: patch " in result.stdout
        assert f"Stride {'x'.join(map(str, settings.latent_stride))}" in result.stdout
        assert len(list((out / configuration["data_identifier"]).glob("*.pkl"))) == 4
    assert len(list((out / "gt_segmentations").iterdir())) == 4
    natural = options.get("file_ending") == ".png"  # pixels of a photograph have no size in mm
    assert (" mm" in result.stdout, " pixels" in result.stdout) == (not natural, natural)
    folds = json.loads((out / "splits_final.json").read_text())
    assert len(folds) == (2 if options.get("splits") else 4)  # the dataset's own, or as many as there are cases
    assert ("4 cases are too few for five folds" in result.stdout) == ("splits" not in options)
    assert result.stdout.count("Using ./nndiffseg_data/{raw,preprocessed,results}") == 1
    assert not [f for f in out.rglob("*") if "tmp" in f.name or "partial" in f.name]
    assert "Preprocessing" in result.stderr  # the progress bar


def test_a_wrong_dataset_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    result = command("-d", "77", "--raw", "r", "--preprocessed", "p", "--results", "s", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: No such dataset: 77 in ")
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    return [f"--{kind}={tmp_path / kind}" for kind in ("raw", "preprocessed", "results")]


@pytest.fixture
def tiny(make_dataset: Callable[..., Path], tmp_path: Path) -> Path:
    return make_dataset(tmp_path / "raw", cases=2, shape=(12, 14, 12), channels=2)


def remove_channel(folder: Path) -> None:
    (folder / "imagesTr" / "case_001_0001.nii.gz").unlink()


def truncate(folder: Path) -> None:
    file = folder / "labelsTr" / "case_001.nii.gz"
    file.write_bytes(file.read_bytes()[:200])


def drop_key(folder: Path) -> None:
    file = folder / "dataset.json"
    content = json.loads(file.read_text())
    del content["file_ending"]
    file.write_text(json.dumps(content))


def swap_labels(folder: Path) -> None:
    shutil.copy(folder / "imagesTr" / "case_000_0000.nii.gz", folder / "labelsTr" / "case_000.nii.gz")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (remove_channel, "1 image channels, but dataset.json names 2"),
        (truncate, "cannot be read"),
        (drop_key, "lacks the key file_ending"),
        (swap_labels, "which dataset.json does not name"),
    ],
)
def test_bad_data_write_nothing(
    tiny: Path,
    folders: list[str],
    tmp_path: Path,
    spoil: Callable[[Path], None],
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(tiny)
    assert main(["-d", "901", *folders, "--no_pbar"]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "preprocessed").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["-pl", "DiffSegPlaner"], "Unknown planner DiffSegPlaner (did you mean DiffSegPlanner?)"),
        (["-c", "3d_fulres"], "Unknown configuration 3d_fulres (did you mean 3d_fullres?)"),
        (["-c", "3d_cascade"], "Unknown configuration 3d_cascade (did you mean"),
        (["--latent", "papr"], "Unknown latent papr (did you mean paper?)"),
        (["-preprocessor_name", "Mine"], "Unknown preprocessor Mine"),
        (["-np", "0"], "-np counts processes"),
        (["-np", "1", "2"], "-np takes one number, or one for each"),
        (["-gpu_memory_target", "-1"], "-gpu_memory_target is in GB"),
        (["-overwrite_target_spacing", "1", "1"], "expected 3 arguments"),
        (["-overwrite_target_spacing", "1", "1", "0"], "-overwrite_target_spacing is in mm"),
        (["-overwrite_plans_name", "nnUNetPlans"], "belongs to nnU-Net"),
        (["-pl", "ExperimentPlanner"], "ExperimentPlanner plans no diffusion; choose one of"),
        (["-pl", "subprocess.Popen"], "Unknown planner subprocess.Popen"),
        (["-fpe", "Missing"], "There is no extractor Missing of fingerprints"),
        (["-fpe", "ExperimentPlanner"], "There is no extractor ExperimentPlanner"),
        (["--verfy_dataset_integrity"], "did you mean --verify_dataset_integrity?"),
    ],
)
def test_bad_flags(tiny: Path, folders: list[str], words: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-d", "901", *folders, *words]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert "Traceback" not in error


def test_flags_reach_the_plans_and_a_second_run_reuses_the_data(
    tiny: Path, folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "-d", tiny.name, *folders, "-pl", "DiffSegPlannerS", "-c", "3d_fullres", "-overwrite_target_spacing", "1.5",
        "1.5", "1.5", "-overwrite_plans_name", "coarse", "-gpu_memory_target", "1", "--no_pbar", "-np", "1",
    ]  # fmt: skip
    assert main(arguments) == 0
    assert "3d_fullres: 2 cases preprocessed (" in capsys.readouterr().out
    out = tmp_path / "preprocessed" / tiny.name
    plans = json.loads((out / "coarse.json").read_text())
    assert plans["configurations"]["3d_fullres"]["spacing"] == [1.5, 1.5, 1.5]
    assert not (out / "coarse_2d").exists()
    data = sorted((out / "coarse_3d_fullres").iterdir())
    before = [f.stat().st_mtime_ns for f in data]
    assert main(arguments) == 0
    assert "0 cases preprocessed, 2 were there" in capsys.readouterr().out
    assert [f.stat().st_mtime_ns for f in data] == before
    assert main([*arguments, "--clean"]) == 0
    assert [f.stat().st_mtime_ns for f in data] != before


def test_plan_only(tiny: Path, folders: list[str], tmp_path: Path) -> None:
    assert main(["-d", "901", *folders, "--no_pp", "--no_pbar", "-pl", "DiffSegPlannerL"]) == 0
    out = tmp_path / "preprocessed" / tiny.name
    assert (out / "nnDiffSegPlansL.json").is_file()
    assert not (out / "nnUNetPlans_3d_fullres").exists()


def test_a_preprocessed_splits_file_is_checked(
    tiny: Path, folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "preprocessed" / tiny.name
    out.mkdir(parents=True)
    (out / "splits_final.json").write_text('[{"train": ["case_000"], "val": ["case_777"]}]')
    assert main(["-d", "901", *folders, "--no_pbar"]) == 2
    assert "unknown case case_777" in capsys.readouterr().err


def write_groups(folder: Path, groups: dict[str, str]) -> None:
    (folder / "cases.csv").write_text("case,group\n" + "".join(f"{c},{g}\n" for c, g in groups.items()))


def test_folds_follow_the_groups_of_cases_csv(
    make_dataset: Callable[..., Path], folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = make_dataset(tmp_path / "raw", cases=10, shape=(12, 14, 12))
    groups = {f"case_{i:03d}": f"patient_{i // 2}" for i in range(10)}
    write_groups(raw, groups)
    arguments = ["-d", "901", *folders, "-pl", "DiffSegPlannerS", "--no_pp", "--no_pbar"]
    assert main(arguments) == 0
    assert "five folds that divide none of the 5 groups" in capsys.readouterr().out
    out = tmp_path / "preprocessed" / raw.name
    folds = json.loads((out / "splits_final.json").read_text())
    assert [len({groups[c] for c in fold["val"]}) for fold in folds] == [1] * 5
    assert [len(fold["val"]) for fold in folds] == [2] * 5
    assert (out / "cases.csv").read_text() == (raw / "cases.csv").read_text()
    other = [{"train": ["case_000", "case_002"], "val": ["case_001"]}]
    (out / "splits_final.json").write_text(json.dumps(other))
    assert main(arguments) == 2
    assert "Fold 0 of" in (text := capsys.readouterr().err) and "both of the group patient_0" in text


def test_a_cases_csv_without_groups_is_told(tiny: Path, folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    (tiny / "cases.csv").write_text("case;group\ncase_000;x\ncase_001;x\n")
    assert main(["-d", "901", *folders, "-pl", "DiffSegPlannerS", "--no_pp", "--no_pbar"]) == 0
    assert "cases.csv has no columns case and group separated by commas" in capsys.readouterr().out


def test_bad_groups_are_told_before_any_work(
    tiny: Path, folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for groups, words in (
        ({"case_000": "x"}, "does not name the case case_001"),
        ({"case_000": "x", "case_001": ""}, "without a group"),
    ):
        write_groups(tiny, groups)
        assert main(["-d", "901", *folders, "--no_pbar"]) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
    assert not (tmp_path / "preprocessed").exists()


@pytest.mark.parametrize("latent", ["planned", "paper"])
def test_the_latent_that_ldseg_was_published_with_is_an_option(
    tiny: Path, folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], latent: str
) -> None:
    assert main(["-d", "901", *folders, "-pl", "DiffSegPlannerS", "--no_pp", "--no_pbar", "--latent", latent]) == 0
    plans = json.loads((tmp_path / "preprocessed" / tiny.name / "nnDiffSegPlansS.json").read_text())
    report = " ".join(capsys.readouterr().out.split())
    for configuration in plans["configurations"].values():
        options = LDSegMethod.options_of(configuration)
        assert options.latent == latent
        sizes = ldseg_latent(MethodPlan.of(ConfigurationManager(configuration), 1, 3), options.latent)
        settings = DiffusionSettings.from_configuration(configuration)
        assert (sizes.channels == 1) == (latent == "paper")
        told = f"stride {'x'.join(map(str, sizes.stride))} with 1 channel; published are 16 voxels along every axis"
        assert (told in report) == (latent == "paper")
        if latent == "planned":
            assert sizes.stride == settings.latent_stride


def single_slices(raw: Path) -> Path:
    """Six coronal slices of 48 x 64 voxels as NIfTI volumes with one voxel along y, all of 1 mm."""
    folder = raw / "Dataset902_Slices"
    rng = np.random.default_rng(0)
    z, x = np.mgrid[:48, :64]
    for i in range(6):
        label = ((z - rng.integers(20, 28)) ** 2 + (x - rng.integers(26, 38)) ** 2 < 120).astype(np.uint8)
        image = (rng.normal(100, 10, label.shape) + 60 * label).astype(np.float32)
        for sub, name, array in (("imagesTr", f"s{i}_0000.nii.gz", image), ("labelsTr", f"s{i}.nii.gz", label)):
            (folder / sub).mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(sitk.GetImageFromArray(array[:, None]), str(folder / sub / name))
            (folder / sub / f"._{name}").write_bytes(b"Mac OS X")  # row 05
    content = {
        "channel_names": {"0": "MR"},
        "labels": {"background": 0, "organ": 1},
        "numTraining": 6,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def test_slices_along_any_axis_are_2d_and_hidden_files_are_named(  # rows 05 and 14
    folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = single_slices(tmp_path / "raw")
    assert main(["-d", "902", *folders, "-pl", "DiffSegPlannerS", "--no_pbar", "-np", "1"]) == 0
    captured = capsys.readouterr()
    assert "6 hidden files, such as ._s0_0000.nii.gz" in captured.out and "Traceback" not in captured.err
    plans = json.loads((tmp_path / "preprocessed" / folder.name / "nnDiffSegPlansS.json").read_text())
    assert list(plans["configurations"]) == ["2d"]
    assert plans["configurations"]["2d"]["patch_size"] == [48, 64] and plans["transpose_forward"] == [1, 0, 2]
    assert plans["image_reader_writer"] == "SimpleITKIO"


OWN = """
import dataclasses, json, os
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nndiffseg.planners import DiffSegPlannerS

class OwnPlanner(DiffSegPlannerS):
    size = dataclasses.replace(DiffSegPlannerS.size, plans_name="ownPlans", batch_cap={2: 3, 3: 1})

class Nameless(DiffSegPlannerS):
    pass

class OwnExtractor(DatasetFingerprintExtractor):
    cases = None
    def run(self, overwrite_existing=False):
        print("own extractor of", *self.dataset)
        statistics = {k: 1.0 for k in ("mean", "median", "std", "min", "max", "percentile_99_5", "percentile_00_5")}
        content = {"spacings": [[1.0] * 3] * (self.cases or len(self.dataset)), "shapes_after_crop": [[12, 14, 12]] * 2,
                   "foreground_intensity_properties_per_channel": {"0": statistics, "1": statistics},
                   "median_relative_size_after_cropping": 1.0}
        with open(os.path.join(os.environ["nnUNet_preprocessed"], self.dataset_name, "dataset_fingerprint.json"), "w") as file:
            json.dump(content, file)

class WrongExtractor(OwnExtractor):
    cases = 5
"""


@pytest.fixture
def own_classes(tiny: Path, folders: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Flags that plan with a fingerprint that takes no time; a folder of ``nnUNet_extTrainer`` holds the class."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "own_planning.py").write_text(OWN)
    (tiny / "imagesTr" / "._case_000_0000.nii.gz").write_bytes(b"Mac OS X")
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path / "own"))
    return ["-d", "901", *folders, "--no_pbar", "--no_check", "-fpe", "OwnExtractor"]


def test_own_planner_extractor_and_configuration_are_used(
    own_classes: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*own_classes, "--no_pp", "-pl", "OwnPlanner"]) == 0
    assert "own extractor of case_000 case_001\n" in capsys.readouterr().out
    file = tmp_path / "preprocessed" / "Dataset901_Tiny" / "ownPlans.json"
    plans = json.loads(file.read_text())
    assert plans["experiment_planner_used"] == "OwnPlanner" and plans["configurations"]["2d"]["batch_size"] <= 3
    plans["configurations"]["coarse"] = {"inherits_from": "3d_fullres", "spacing": [2.0] * 3, "data_identifier": "coarse"}
    file.write_text(json.dumps(plans))
    assert main([*own_classes, "-pl", "OwnPlanner", "-c", "coarse", "-np", "1"]) == 0
    out = capsys.readouterr().out
    assert "coarse: 2 cases preprocessed" in out and "own extractor" not in out
    assert len(list((file.parent / "coarse").glob("*.b2nd"))) == 4 and not (file.parent / "nnUNetPlans_2d").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["-pl", "Nameless"], "Nameless would overwrite the plans nnDiffSegPlansS of another planner"),
        (["-fpe", "WrongExtractor"], "is not of the dataset's 2 cases; correct the class, or leave out -fpe."),
    ],
)
def test_own_classes_that_do_not_fit_are_one_sentence(
    own_classes: list[str], words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*own_classes, *words]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1


def test_nnunets_names_of_planners_mean_the_same(
    own_classes: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(planner: type, *_: Any) -> None:
        raise UserError(planner.__name__)

    monkeypatch.setattr("nndiffseg.cli.plan_and_preprocess._plan", stop)
    for name, ours in SAME.items():
        theirs = inspect.signature(getattr(residual_encoder_unet_planners, name)).parameters["gpu_memory_target_in_gb"].default
        assert find_planner(name).__name__ == ours and find_planner(name).size.memory_gb == theirs
    assert main([*own_classes, "-pl", "nnUNetPlannerResEncXL"]) == 2
    captured = capsys.readouterr()
    assert "nnUNetPlannerResEncXL is DiffSegPlannerXL here" in captured.out and "error: DiffSegPlannerXL" in captured.err
