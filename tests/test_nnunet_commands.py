"""nnU-Net's own commands on what nndiffseg leaves, and the rows of docs/nnunet-parity.md that only a whole run can show.

One tiny dataset is planned and trained, for two iterations in each of its two folds. nnU-Net's worker processes are forked here
instead of spawned, so that they start at once.
"""

from __future__ import annotations

import functools
import importlib
import json
import multiprocessing
import os
import pickle
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import entry_points
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from skimage import io

from nndiffseg.cli import export, plan_and_preprocess, predict, train
from nndiffseg.data.check import check_dataset, read_dataset_json
from nndiffseg.data.checkpoint import load_checkpoint

DATASET, PLANS, CONFIGURATION = "Dataset901_Tiny", "nnDiffSegPlansS", "3d_fullres"
MODEL = Path("results", DATASET, f"nnDiffSegTrainer__{PLANS}__{CONFIGURATION}")
KINDS = ("raw", "preprocessed", "results")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, make_dataset: Callable[..., Path]) -> Path:
    """A tiny dataset, planned and trained in both folds with ``--npz``; to be read only."""
    base = tmp_path_factory.mktemp("nnunet")
    make_dataset(base / "raw", splits=True)
    with pytest.MonkeyPatch.context() as patch:
        without_pictures(patch)
        patch.setenv("nnUNet_n_proc_DA", "0")
        assert plan(base) == 0
        for fold in ("0", "1"):
            words = ["901", CONFIGURATION, fold, "-p", PLANS, "--epochs", "1", "--iterations_per_epoch", "2", "--npz"]
            assert train.main([*words, "-device", "cpu", "--disable_progress_bar", *folders(base)]) == 0
    return base


def without_pictures(patch: pytest.MonkeyPatch) -> None:
    """They take longer than these trainings."""
    patch.setattr("nndiffseg.training.epoch_log.plot", lambda _: None)
    patch.setattr("nnunetv2.training.logging.nnunet_logger.MetaLogger.plot_progress_png", lambda *_: None)


def folders(base: Path) -> list[str]:
    return [f"--{kind}={base / kind}" for kind in KINDS]


def plan(base: Path, *words: str) -> int:
    given = ["-d", "901", "-pl", "DiffSegPlannerS", "-c", CONFIGURATION, "-np", "1", "-npfp", "1", *words]
    return plan_and_preprocess.main([*given, *folders(base)])


@pytest.fixture
def nnunet(base: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs a command of nnU-Net by its name, in this process, on nnU-Net's folders below ``base``."""
    context = multiprocessing.get_context
    monkeypatch.setattr(multiprocessing, "get_context", lambda _=None: context("fork"))
    monkeypatch.setenv("nnUNet_def_n_proc", "1")
    set_folders(base, monkeypatch)

    def run(command: str, *words: object) -> Any:
        (point,) = entry_points(group="console_scripts", name=f"nnUNetv2_{command}")
        monkeypatch.setattr(sys, "argv", [point.name, *map(str, words)])
        return point.load()()

    return run


def set_folders(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in KINDS:
        monkeypatch.setenv(f"nnUNet_{kind}", str(base / kind))


def labels(file: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


# ---- commands of nnU-Net ------------------------------------------------------------------------------------------------


def test_training_with_npz_leaves_what_nnunets_commands_read(base: Path) -> None:
    for fold, cases in enumerate((("case_000", "case_001"), ("case_002", "case_003"))):
        folder = base / MODEL / f"fold_{fold}" / "validation"
        for case in cases:
            p = np.load(folder / f"{case}.npz")["probabilities"]
            assert p.shape == (3, 20, 24, 20) and p.dtype == np.float32
            assert np.array_equal(p.argmax(0), labels(folder / f"{case}.nii.gz"))
            assert "sitk_stuff" in pickle.loads((folder / f"{case}.pkl").read_bytes())


def test_evaluate_simple_reads_segmentations(base: Path, nnunet: Callable[..., Any], tmp_path: Path) -> None:
    predicted, out = base / MODEL / "fold_0" / "validation", tmp_path / "summary.json"
    nnunet("evaluate_simple", base / "raw" / DATASET / "labelsTr", predicted, "-l", 1, 2, "-o", out, "-np", 1, "--chill")
    dice = {case["prediction_file"]: case["metrics"]["1"]["Dice"] for case in json.loads(out.read_text())["metric_per_case"]}
    own = json.loads((predicted / "summary.json").read_text())["metric_per_case"]
    assert dice == {case["prediction_file"]: case["metrics"]["1"]["Dice"] for case in own} and len(dice) == 2


def test_results_of_the_cross_validation_are_accumulated(base: Path, nnunet: Callable[..., Any], tmp_path: Path) -> None:
    flags = ("-c", CONFIGURATION, "-p", PLANS, "-tr", "nnDiffSegTrainer", "-f", 0, 1, "-o", tmp_path / "all")
    nnunet("accumulate_crossval_results", DATASET, *flags)
    summary = json.loads((tmp_path / "all" / "summary.json").read_text())
    assert len(summary["metric_per_case"]) == 4
    for fold in (0, 1):
        for file in (base / MODEL / f"fold_{fold}" / "validation").glob("*.nii.gz"):
            assert (tmp_path / "all" / file.name).read_bytes() == file.read_bytes()


@pytest.fixture(scope="module")
def predicted(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One case, predicted by each fold with its probabilities."""
    out = tmp_path_factory.mktemp("predicted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nndiffseg.inference.folder._write_report", lambda *_: None)
        for fold in ("0", "1"):
            words = ["-i", str(base / "raw" / DATASET / "imagesTr"), "-o", str(out / fold), "-m", str(base / MODEL), "-f", fold]
            rest = ["--npz", "--samples", "2", "--disable_tta", "-num_parts", "4", "-device", "cpu", "--disable_progress_bar"]
            assert predict.main([*words, *rest, *folders(base)]) == 0
    return [out / "0", out / "1"]


def test_predictions_are_ensembled(predicted: list[Path], nnunet: Callable[..., Any], tmp_path: Path) -> None:
    nnunet("ensemble", "-i", *predicted, "-o", tmp_path / "both", "-np", 1, "--save_npz")
    p = [np.load(folder / "case_000.npz")["probabilities"] for folder in predicted]
    mean = (p[0] + p[1]) / 2
    assert np.abs(p[0] - p[1]).max() > 0.01, "two folds that agree would show nothing"
    assert np.array_equal(labels(tmp_path / "both" / "case_000.nii.gz"), mean.argmax(0))


def test_postprocessing_is_determined_and_applied(
    base: Path, predicted: list[Path], nnunet: Callable[..., Any], tmp_path: Path
) -> None:
    """On the true labels with an island in the corner, whose removal is right."""
    noisy, source = tmp_path / "noisy", predicted[0]
    noisy.mkdir()
    for file in sorted((base / "raw" / DATASET / "labelsTr").glob("*.nii.gz")):
        image = sitk.ReadImage(str(file))
        array = sitk.GetArrayFromImage(image)
        array[:2, :2, :2] = 1
        changed = sitk.GetImageFromArray(array)
        changed.CopyInformation(image)
        sitk.WriteImage(changed, str(noisy / file.name))
    for name in ("plans.json", "dataset.json"):
        shutil.copy(source / name, noisy)
    truth = base / "raw" / DATASET / "labelsTr"
    nnunet("determine_postprocessing", "-i", noisy, "-ref", truth, "-np", 1, "--remove_postprocessed")
    assert (noisy / "postprocessing.json").is_file()
    for folder in (noisy, source):
        out = tmp_path / f"out_{folder.name}"
        nnunet("apply_postprocessing", "-i", folder, "-o", out, "-pp_pkl_file", noisy / "postprocessing.pkl", "-np", 1)
        assert {f.name for f in out.glob("*.nii.gz")} == {f.name for f in folder.glob("*.nii.gz")}
        if folder == noisy:
            assert all(np.array_equal(labels(out / f.name), labels(f)) for f in truth.glob("*.nii.gz"))


@pytest.mark.parametrize("source", ["--use_raw", "preprocessed"])
def test_overlays_are_plotted(nnunet: Callable[..., Any], tmp_path: Path, source: str) -> None:
    words = ["--use_raw"] if source == "--use_raw" else ["-p", PLANS, "-c", CONFIGURATION]
    nnunet("plot_overlay_pngs", "-d", 901, "-o", tmp_path, "-np", 1, *words)
    assert len(list(tmp_path.glob("case_*.png"))) == 4 and io.imread(tmp_path / "case_000.png").ndim == 3


def test_plans_move_to_another_dataset_with_their_diffusion_section(
    base: Path, make_dataset: Callable[..., Path], nnunet: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "preprocessed" / "Dataset902_Other").mkdir(parents=True)  # where nnU-Net wants the target's fingerprint
    make_dataset(tmp_path / "raw", name="Dataset902_Other", seed=1)
    (tmp_path / "raw" / DATASET).mkdir()
    shutil.copytree(base / "preprocessed" / DATASET, tmp_path / "preprocessed" / DATASET)
    set_folders(tmp_path, monkeypatch)
    nnunet("move_plans_between_datasets", "-s", 901, "-t", 902, "-sp", PLANS, "-tp", "nnDiffSegMoved")
    before = json.loads((tmp_path / "preprocessed" / DATASET / f"{PLANS}.json").read_text())
    after = json.loads((tmp_path / "preprocessed" / "Dataset902_Other" / "nnDiffSegMoved.json").read_text())
    assert after["dataset_name"] == "Dataset902_Other" and after["plans_name"] == "nnDiffSegMoved"
    for name, configuration in before["configurations"].items():
        assert after["configurations"][name]["diffusion"] == configuration["diffusion"]


def test_a_dataset_of_the_old_nnunet_is_converted_and_passes_the_check(
    base: Path, nnunet: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "Task001_Old"
    shutil.copytree(base / "raw" / DATASET, old)
    content = {
        "modality": {"0": "channel0"},
        "labels": {"0": "background", "1": "shell", "2": "core"},
        "numTraining": 4,
        "numTest": 0,
        "tensorImageSize": "3D",
        "training": [],
        "test": [],
    }
    (old / "dataset.json").write_text(json.dumps(content))
    set_folders(tmp_path, monkeypatch)
    (tmp_path / "raw").mkdir()
    nnunet("convert_old_nnUNet_dataset", old, "Dataset901_Tiny")
    converted, ours = tmp_path / "raw" / DATASET, base / "raw" / DATASET
    assert check_dataset(converted, progress=False) == []
    assert read_dataset_json(converted) == read_dataset_json(ours)
    for file in ours.glob("*/*.nii.gz"):
        assert (converted / file.parent.name / file.name).read_bytes() == file.read_bytes()


def test_a_model_is_downloaded_by_its_address_and_predicts(
    base: Path, predicted: list[Path], nnunet: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shared").mkdir()
    archive = tmp_path / "shared" / "model.zip"
    assert export.main([str(base / MODEL), str(archive)]) == 0
    set_folders(tmp_path, monkeypatch)
    (tmp_path / "results").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))  # where nnU-Net keeps what it downloads meanwhile
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "shared"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            nnunet("download_pretrained_model_by_url", f"http://127.0.0.1:{server.server_address[1]}/model.zip")
        finally:
            server.shutdown()
    for fold in (0, 1):
        ours, theirs = (load_checkpoint(b / MODEL / f"fold_{fold}" / "checkpoint_final.pth") for b in (base, tmp_path))
        assert ours["calibration"] == theirs["calibration"] and ours["training_id"] == theirs["training_id"]


# ---- flags, variables and features of datasets --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nrrd(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The dataset as ``.nrrd``, with test images that are none, planned without a bar; and what was said."""
    folder, said = tmp_path_factory.mktemp("nrrd"), StringIO()
    for sub in ("imagesTr", "labelsTr"):
        (folder / "raw" / DATASET / sub).mkdir(parents=True)
        for file in (base / "raw" / DATASET / sub).glob("*.nii.gz"):
            image = sitk.ReadImage(str(file))
            sitk.WriteImage(image, str(folder / "raw" / DATASET / sub / file.name.replace(".nii.gz", ".nrrd")))
    content = json.loads((base / "raw" / DATASET / "dataset.json").read_text()) | {"file_ending": ".nrrd"}
    (folder / "raw" / DATASET / "dataset.json").write_text(json.dumps(content))
    for sub in ("imagesTs", "labelsTs"):
        (folder / "raw" / DATASET / sub).mkdir()
        (folder / "raw" / DATASET / sub / "case_009_0000.nrrd").write_text("no image")
    with redirect_stdout(said), redirect_stderr(said):
        assert plan(folder, "--no_pbar") == 0
    return folder, said.getvalue()


def test_test_images_and_labels_are_never_read(nrrd: tuple[Path, str]) -> None:
    assert (nrrd[0] / "preprocessed" / DATASET / f"{PLANS}.json").is_file()
    assert not list((nrrd[0] / "preprocessed" / DATASET).rglob("case_009*"))


def test_nrrd_images_give_the_plans_of_nifti_and_are_predicted_as_nrrd(
    base: Path, nrrd: tuple[Path, str], tmp_path: Path
) -> None:
    other, content = nrrd[0], json.loads((nrrd[0] / "raw" / DATASET / "dataset.json").read_text())
    planned = [json.loads((b / "preprocessed" / DATASET / f"{PLANS}.json").read_text()) for b in (other, base)]
    assert planned[0]["configurations"] == planned[1]["configurations"] and planned[0]["image_reader_writer"] == "SimpleITKIO"
    shutil.copytree(base / MODEL, tmp_path / MODEL)
    (tmp_path / MODEL / "dataset.json").write_text(json.dumps(content))
    results = {}
    for data, model, ending in ((base, base, ".nii.gz"), (other, tmp_path, ".nrrd")):
        out, image = tmp_path / f"segmented{ending}", data / "raw" / DATASET / "imagesTr" / f"case_000_0000{ending}"
        words = ["-i", str(image), "-o", str(out), "-m", str(model / MODEL), "--samples", "2", "--disable_tta"]
        assert predict.main([*words, "-f", "0", "-device", "cpu", *folders(data)]) == 0
        results[ending] = labels(out)
    assert np.array_equal(results[".nii.gz"], results[".nrrd"]) and len(np.unique(results[".nrrd"])) > 1


@pytest.fixture(scope="module")
def listed(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The dataset by a list of its files in dataset.json, planned with ``--verbose``; and what was said."""
    folder, said = tmp_path_factory.mktemp("listed"), StringIO()
    source = base / "raw" / DATASET
    cases = {
        f"case_{n:03d}": {
            "images": [str(source / "imagesTr" / f"case_{n:03d}_0000.nii.gz")],
            "label": str(source / "labelsTr" / f"case_{n:03d}.nii.gz"),
        }
        for n in range(4)
    }
    (folder / "raw" / DATASET).mkdir(parents=True)
    content = json.loads((source / "dataset.json").read_text()) | {"dataset": cases}
    (folder / "raw" / DATASET / "dataset.json").write_text(json.dumps(content))
    with redirect_stdout(said), redirect_stderr(said):
        assert plan(folder, "--verbose") == 0
    return folder, said.getvalue()


def test_verbose_tells_more_and_no_pbar_shows_no_bar(listed: tuple[Path, str], nrrd: tuple[Path, str]) -> None:
    assert "old shape" in listed[1] and "it/s" in listed[1]  # nnU-Net's own words about each case; the bar
    assert "old shape" not in nrrd[1] and "it/s" not in nrrd[1]


def test_dataset_json_may_name_files_anywhere(base: Path, listed: tuple[Path, str]) -> None:
    ours, theirs = (b / "preprocessed" / DATASET / "nnUNetPlans_3d_fullres" for b in (listed[0], base))
    assert sorted(f.name for f in ours.glob("*.b2nd")) == sorted(f.name for f in theirs.glob("*.b2nd"))
    for file in ours.glob("*.b2nd"):
        assert file.read_bytes() == (theirs / file.name).read_bytes()


class Run:
    """What nnU-Net's logger calls of a run of wandb."""

    step = 0

    def __init__(self) -> None:
        self.logged: dict[str, Any] = {}
        self.config: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}

    def log(self, values: dict[str, Any], step: int) -> None:
        self.logged |= values


@pytest.fixture
def short(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """One iteration of a training without its validation; returns the trainer."""
    without_pictures(monkeypatch)

    def run(*words: str) -> Any:
        kept: list[Any] = []
        monkeypatch.setattr(
            "nndiffseg.training.trainer.DiffusionTrainer.perform_actual_validation", lambda t, _: kept.append(t)
        )
        given = ["901", CONFIGURATION, "0", "-p", PLANS, "--epochs", "1", "--iterations_per_epoch", "1", "-device", "cpu"]
        places = [f"--raw={base / 'raw'}", f"--preprocessed={base / 'preprocessed'}", f"--results={tmp_path / 'results'}"]
        assert train.main([*given, "--disable_progress_bar", *places, *words]) == 0
        return kept[0]

    return run


def test_wandb_gets_nnunets_figures(short: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[tuple[Run, dict[str, Any]]] = []

    def init(**arguments: Any) -> Run:
        runs.append((Run(), arguments))
        return runs[-1][0]

    logger = importlib.import_module("nnunetv2.training.logging.nnunet_logger")
    monkeypatch.setattr(logger, "wandb", SimpleNamespace(init=init))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    short()
    assert not runs
    for name, value in (("enabled", "1"), ("project", "tiny"), ("mode", "offline")):
        monkeypatch.setenv(f"nnUNet_wandb_{name}", value)
    short()
    ((run, arguments),) = runs
    assert (arguments["project"], arguments["mode"]) == ("tiny", "offline")
    assert {"train_losses", "val_losses", "mean_fg_dice", "lrs"} <= run.logged.keys() and run.config[
        "configuration"
    ] == CONFIGURATION


def test_nnunets_number_of_augmenting_processes_is_honoured(short: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """At most one on the CPU and for validation patches."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    trainer, asked = short(), []
    monkeypatch.setattr("nndiffseg.training.trainer.batches_from", lambda *given: asked.append(given[3]))
    for device, variable in (("cpu", "0"), ("cpu", "6"), ("cuda", "6")):
        trainer.device = SimpleNamespace(type=device)
        monkeypatch.setenv("nnUNet_n_proc_DA", variable)
        trainer.get_dataloaders()
    assert asked == [0, 0, 1, 1, min(6, os.cpu_count() or 1), 1]  # of training and validation


def test_nothing_is_compiled_unless_nnunets_variable_asks_for_it(
    short: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """nnU-Net itself compiles on a GPU unless the variable says no."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    compiled: list[Any] = []
    monkeypatch.setattr("torch.compile", lambda module, **_: compiled.append(module) or module)
    trainer, answers = short(), []
    assert not compiled
    for device in ("cpu", "cuda"):
        trainer.device = SimpleNamespace(type=device)
        for variable in (None, "f", "true"):
            monkeypatch.delenv("nnUNet_compile", raising=False)
            if variable is not None:
                monkeypatch.setenv("nnUNet_compile", variable)
            answers.append(trainer._do_i_compile())
    assert answers == [False, False, False, False, False, True]
    monkeypatch.setattr(type(trainer), "_do_i_compile", lambda _: True)
    assert short().network in compiled


@pytest.fixture(autouse=True)
def _no_leftovers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("nnUNet_wandb_enabled", raising=False)
    yield
