"""``nndiffseg_train``: foreign plans are refused before anything is made from them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_model import model_folder, raw_images, results  # noqa: F401

from nndiffseg.cli.train import main
from nndiffseg.trainers import nnDiffSegTrainer
from nndiffseg.training.trainer import DiffusionTrainer


@pytest.fixture
def preprocessed(model_folder: Path, tmp_path: Path) -> Path:  # noqa: F811
    """A dataset's folder with plans and dataset.json, as if it were preprocessed."""
    folder = tmp_path / "preprocessed" / "Dataset901_Tiny"
    folder.mkdir(parents=True)
    for name, source in (("nnDiffSegPlans.json", "plans.json"), ("dataset.json", "dataset.json")):
        shutil.copy(model_folder / source, folder / name)
    for configuration in json.loads((folder / "nnDiffSegPlans.json").read_text())["configurations"].values():
        (folder / configuration["data_identifier"]).mkdir()
    return folder


@pytest.fixture
def trained(preprocessed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs the command up to its training; returns the trainer, on which nothing was computed, and what was asked of it."""

    def run(*words: str) -> tuple[Any, list[str]]:
        calls: list[tuple[Any, str]] = []
        for name in ("run_training", "perform_actual_validation", "load_checkpoint"):
            monkeypatch.setattr(DiffusionTrainer, name, lambda trainer, *_, name=name: calls.append((trainer, name)))
        flags = [f"--{kind}={tmp_path / kind}" for kind in ("raw", "preprocessed", "results")]
        assert main(["901", *words, "-device", "cpu", "-p", "nnDiffSegPlans", *flags]) == 0
        return calls[0][0], [name for _, name in calls]

    return run


def add_configuration(folder: Path, name: str, **changes: Any) -> None:
    file = folder / "nnDiffSegPlans.json"
    plans = json.loads(file.read_text())
    plans["configurations"][name] = changes
    file.write_text(json.dumps(plans))


def test_a_configuration_that_inherits_is_trained_with_its_options(preprocessed: Path, trained: Callable[..., Any]) -> None:
    """Third table."""
    add_configuration(preprocessed, "large", inherits_from="3d_fullres", batch_size=3)
    trainer, _ = trained("large", "0", "-tr", "nnDiffSegTrainerLDSeg", "--option", "latent=paper")
    assert trainer.configuration_manager.batch_size == 3 and trainer.method.options.latent == "paper"
    assert trained("3d_fullres", "0", "-tr", "nnDiffSegTrainerLDSeg")[0].method.options.latent == "planned"


def test_a_flag_that_is_not_given_changes_nothing(
    preprocessed: Path, trained: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:  # third table
    assert trained("3d_fullres", "0")[0].num_iterations_per_epoch == 250
    assert trained("3d_fullres", "0", "--iterations_per_epoch", "7")[0].num_iterations_per_epoch == 7

    class Own(nnDiffSegTrainer):
        def __init__(self, plans: dict, configuration: str, fold: int, dataset_json: dict, device: torch.device):
            super().__init__(plans, configuration, fold, dataset_json, device)
            self.num_iterations_per_epoch = 11

    monkeypatch.setattr("nndiffseg.cli.train.find_trainer", lambda _: Own)
    assert trained("3d_fullres", "0")[0].num_iterations_per_epoch == 11


def test_without_checkpoints_the_fold_is_validated_as_in_nnunet(trained: Callable[..., Any]) -> None:  # third table
    assert trained("3d_fullres", "0", "--disable_checkpointing")[1] == ["run_training", "perform_actual_validation"]
    asked = trained("3d_fullres", "0", "--disable_checkpointing", "--val")[1]
    assert asked == ["load_checkpoint", "perform_actual_validation"]


def test_the_best_checkpoint_needs_checkpoints(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["901", "3d_fullres", "0", "--val_best", "--disable_checkpointing"]) == 2
    assert "--val_best needs the checkpoints" in capsys.readouterr().err


def spoil(folder: Path, **changes: Any) -> None:
    file = folder / "nnDiffSegPlans.json"
    plans = json.loads(file.read_text())
    for configuration in plans["configurations"].values():
        configuration["architecture"]["arch_kwargs"].update(changes)
    file.write_text(json.dumps(plans))


def test_a_command_in_foreign_plans_is_not_run(preprocessed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mark = tmp_path / "mark"
    spoil(preprocessed, nonlin="subprocess.Popen", nonlin_kwargs={"args": ["touch", str(mark)]})
    flags = [f"--{kind}={tmp_path / kind}" for kind in ("raw", "preprocessed", "results")]
    code = main(["901", "3d_fullres", "0", "-device", "cpu", "--epochs", "1", *flags])
    error = capsys.readouterr().err
    assert code == 2 and "subprocess.Popen" in error and error.count("\n") == 1
    assert not mark.exists() and not (tmp_path / "results").exists()


def test_a_trainer_that_is_no_trainer_is_told(preprocessed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [f"--{kind}={tmp_path / kind}" for kind in ("raw", "preprocessed", "results")]
    for name in ("os", "Path", "subprocess.Popen"):
        assert main(["901", "3d_fullres", "0", "-tr", name, "-device", "cpu", *flags]) == 2
        error = capsys.readouterr().err
        assert f"no nndiffseg trainer {name}" in error and error.count("\n") == 1


def test_a_trainer_of_nnunets_is_sent_to_nnunets_command(
    preprocessed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [f"--{kind}={tmp_path / kind}" for kind in ("raw", "preprocessed", "results")]
    for name in ("nnUNetTrainer", "nnUNetTrainerDA5"):
        assert main(["901", "3d_fullres", "0", "-tr", name, "-device", "cpu", *flags]) == 2
        error = capsys.readouterr().err
        assert f"{name} trains no diffusion; train it with nnUNetv2_train" in error and error.count("\n") == 1
    assert not (tmp_path / "results").exists()
