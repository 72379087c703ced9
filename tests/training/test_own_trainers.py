"""Trainers of a user's own, found in ``nnUNet_extTrainer``, and the axes of mirroring, on real preprocessed data."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.noise.blank_rectangle import BlankRectangleTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from nnunetv2.training.nnUNetTrainer.variants.benchmarking import nnUNetTrainerBenchmark_5epochs

from nndiffseg import trainers
from nndiffseg.cli import plan_and_preprocess, predict, train
from nndiffseg.data.checkpoint import load_checkpoint
from nndiffseg.methods.protocol import Losses

DATASET, PLANS = "Dataset901_Tiny", "nnDiffSegPlansS"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, make_dataset: Callable[..., Path]) -> Path:
    """A preprocessed tiny dataset, and a folder of trainers."""
    base = tmp_path_factory.mktemp("own")
    make_dataset(base / "raw", cases=4, splits=True)
    words = ["-d", "901", "-pl", "DiffSegPlannerS", "-c", "3d_fullres", "2d", "--no_pbar", "-np", "1", "-npfp", "1"]
    assert plan_and_preprocess.main([*words, *_folders(base)]) == 0
    (base / "trainers").mkdir()
    shutil.copy(Path(__file__).parents[1] / "own_trainers.py", base / "trainers")
    return base


@pytest.fixture(autouse=True)
def _ext_trainer(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_extTrainer", str(base / "trainers"))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setattr("nndiffseg.training.epoch_log.plot", lambda _: None)  # pictures take longer than the training
    monkeypatch.setattr("nnunetv2.training.logging.nnunet_logger.MetaLogger.plot_progress_png", lambda *_: None)


def _folders(base: Path) -> list[str]:
    return [f"--{kind}={base / kind}" for kind in ("raw", "preprocessed", "results")]


def run(base: Path, trainer: str, *words: str, configuration: str = "3d_fullres") -> int:
    flags = ["-tr", trainer, "-p", PLANS, "-device", "cpu", "--disable_progress_bar", *words, *_folders(base)]
    return train.main(["901", configuration, "0", *flags])


def fold(base: Path, trainer: str, configuration: str = "3d_fullres") -> Path:
    return base / "results" / DATASET / f"{trainer}__{PLANS}__{configuration}" / "fold_0"


@pytest.fixture
def made(base: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """The trainer that the command makes, and its loader of training patches; nothing is trained."""

    def make(trainer: str, *words: str, configuration: str = "3d_fullres", code: int = 0) -> Any:
        kept: list[Any] = []

        def keep(trainer: Any) -> None:
            trainer.initialize()
            kept.append(trainer)
            kept.append(trainer._plain_loaders()[0])

        from nndiffseg.training.trainer import DiffusionTrainer

        monkeypatch.setattr(DiffusionTrainer, "run_training", keep)
        monkeypatch.setattr(DiffusionTrainer, "perform_actual_validation", lambda *_: None)
        assert run(base, trainer, *words, configuration=configuration) == code
        return kept

    return make


@pytest.fixture
def trained(base: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Trains without a validation at the end; returns the trainer."""

    def train_only(trainer: str, *words: str) -> Any:
        kept: list[Any] = []
        monkeypatch.setattr(
            "nndiffseg.training.trainer.DiffusionTrainer.perform_actual_validation", lambda t, _: kept.append(t)
        )
        assert run(base, trainer, *words) == 0
        return kept[0]

    return train_only


def transforms_of(loader: Any, kind: type) -> list[Any]:
    """All transforms of a kind in nnU-Net's loader."""
    found, waiting = [], [loader.transforms]
    while waiting:
        transform = waiting.pop()
        if isinstance(transform, kind):
            found.append(transform)
        for name in ("transforms", "transform", "list_of_transforms"):
            inner = getattr(transform, name, None)
            waiting += list(inner) if isinstance(inner, (list, tuple)) else [inner] if inner is not None else []
    return found


def mirrored(trainer: Any, loader: Any) -> tuple[int, ...]:
    """The axes of the training's transform, which must be those that predictions may use."""
    axes = [tuple(transform.allowed_axes) for transform in transforms_of(loader, MirrorTransform)]
    assert tuple(trainer.inference_allowed_mirroring_axes or ()) == (axes[0] if axes else ())
    return axes[0] if axes else ()


def test_every_trainer_mirrors_along_the_axes_that_are_asked_for(made: Callable[..., Any]) -> None:
    for name in ("nnDiffSegTrainer", "nnDiffSegTrainerLDSeg", "nnDiffSegTrainerCDAL", "nnDiffSegTrainerMedSegDiffV2"):
        assert name in trainers.__all__
        assert mirrored(*made(name, "--mirror_axes", "1", "0")) == (0, 1)
    assert mirrored(*made("nnDiffSegTrainer", "--disable_mirroring")) == ()
    assert mirrored(*made("nnDiffSegTrainer")) == (0, 1, 2)
    assert mirrored(*made("nnDiffSegTrainer", "--mirror_axes", "1", configuration="2d")) == (1,)


def test_axes_of_mirroring_are_kept_in_the_checkpoint_when_going_on_and_in_predictions(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    short = ("--iterations_per_epoch", "2", "--epochs")
    assert run(base, "nnDiffSegTrainer", "--mirror_axes", "0", "1", *short, "1") == 0
    file = fold(base, "nnDiffSegTrainer") / "checkpoint_final.pth"
    assert load_checkpoint(file)["inference_allowed_mirroring_axes"] == (0, 1)
    capsys.readouterr()
    assert run(base, "nnDiffSegTrainer", "--disable_mirroring", "--c", *short, "2") == 2
    assert "mirrors along the axes 0 1, not along no axis" in capsys.readouterr().err
    assert run(base, "nnDiffSegTrainer", "--c", *short, "2") == 0
    checkpoint = load_checkpoint(file)
    assert checkpoint["current_epoch"] == 2 and checkpoint["inference_allowed_mirroring_axes"] == (0, 1)
    settings = json.loads(next((file.parent / "validation" / "uncertainty").glob("*.json")).read_text())["settings"]
    assert settings["mirror_axes"] == [0, 1]
    words = ["-i", str(base / "raw" / DATASET / "imagesTr"), "-o", str(tmp_path), "-m", str(file.parents[1])]
    monkeypatch.setattr("nndiffseg.inference.folder._write_report", lambda *_: None)
    assert predict.main([*words, "--samples", "2", "-num_parts", "4", "-device", "cpu", "--disable_progress_bar"]) == 0
    settings = json.loads((tmp_path / "uncertainty" / "case_000.json").read_text())["settings"]
    assert settings["mirror_axes"] == [0, 1]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--mirror_axes", "3"), "must lie between 0 and 2"),
        (("--mirror_axes", "0", "--disable_mirroring"), "give one of them"),
        (("--val", "--disable_mirroring"), "--val mirrors as the training did"),
    ],
)
def test_axes_that_cannot_be_are_one_sentence(
    base: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], sentence: str
) -> None:
    assert run(base, "nnDiffSegTrainer", *words) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1


def test_nnunets_variants_of_mirroring_mix_in_and_are_not_overruled(
    made: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert mirrored(*made("OwnNoMirroring")) == ()
    assert mirrored(*made("OwnOnlyMirror01")) == (0, 1)
    assert mirrored(*made("OwnOnlyMirror01", configuration="2d")) == (0,)
    made("OwnNoMirroring", "--mirror_axes", "0", code=2)
    assert "OwnNoMirroring mirrors along no axis by a rule of its own" in capsys.readouterr().err


def test_nnunets_variants_of_augmentation_mix_in(made: Callable[..., Any]) -> None:
    trainer, loader = made("OwnNoDA")
    assert mirrored(trainer, loader) == () and not transforms_of(loader, SpatialTransform)
    assert list(loader.patch_size) == list(trainer.configuration_manager.patch_size)  # no margin to rotate in
    assert len(transforms_of(made("OwnDA5")[1], BlankRectangleTransform)) == 1
    (spatial,) = transforms_of(made("OwnDASegOrd0")[1], SpatialTransform)
    assert spatial.mode_seg == "nearest"
    assert mirrored(*made("OwnNoDummy2DDA")) == (0, 1, 2)
    plain = made("nnDiffSegTrainer")[1]
    (spatial,) = transforms_of(plain, SpatialTransform)
    assert spatial.mode_seg != "nearest" and not transforms_of(plain, BlankRectangleTransform)


SHORT = ("--epochs", "2", "--iterations_per_epoch", "2")


def test_the_attributes_of_an_own_trainer_are_kept(
    base: Path, trained: Callable[..., Any], made: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = {"validation_step": 0, "save_latest": 0}
    for name in calls:
        method = getattr(trainers.nnDiffSegTrainer, name)

        def counted(trainer: Any, *rest: Any, name: str = name, method: Callable[..., Any] = method) -> Any:
            calls[name] += 1
            return method(trainer, *rest)

        monkeypatch.setattr(trainers.nnDiffSegTrainer, name, counted)
    own = trained("OwnNumbers")
    assert own.current_epoch == 2 and own.iteration == 6 and calls == {"validation_step": 10, "save_latest": 2}
    (group,) = own.optimizer.param_groups
    assert group["weight_decay"] == 0.02 and group["initial_lr" if "initial_lr" in group else "lr"] < 3e-4
    assert own.initial_lr == 3e-4 and own.seed == 11
    assert load_checkpoint(fold(base, "OwnNumbers") / "checkpoint_final.pth")["seed"] == 11
    loader = own._plain_loaders()[0]
    assert loader.oversample_foreground_percent == 1 and all(map(loader.get_do_oversample, range(loader.batch_size)))
    assert made("OwnNumbers", "--epochs", "1", "--seed", "3")[0].seed == 3
    plain, _ = made("nnDiffSegTrainer", *SHORT)
    assert (plain.num_val_iterations_per_epoch, plain.oversample_foreground_percent, plain.seed) == (1, 0.33, 0)


@pytest.mark.parametrize(
    ("name", "loss"),
    [("OwnDice", "MemoryEfficientSoftDiceLoss"), ("OwnCE", "RobustCrossEntropyLoss"), ("OwnTopk", "TopKLoss")],
)
def test_nnunets_losses_mix_in_as_that_of_the_segmentation(trained: Callable[..., Any], name: str, loss: str) -> None:
    own = trained(name, *SHORT)
    assert isinstance(own.loss, Losses) and type(own.loss.segmentation.full).__name__ == loss
    assert type(own.loss.segmentation.deep).__name__ == "DeepSupervisionWrapper"
    terms = {"deterministic", "reconstruction", "latent", "label", "jaccard"}
    assert terms <= own._row["losses"].keys() and np.isfinite(own._row["losses"]["deterministic"])


def test_nnunets_optimisers_and_schedules_mix_in(trained: Callable[..., Any], made: Callable[..., Any]) -> None:
    own = trained("OwnAdam", *SHORT)
    assert own.optimizer.param_groups[0]["amsgrad"] and own.initial_lr == 3e-4
    rates = own.logger.local_logger.my_fantastic_logging["lrs"]
    assert rates == pytest.approx([3e-4, 3e-4 * 0.5**0.9])  # nnU-Net's polynomial
    own = trained("OwnCosAnneal", *SHORT)
    assert isinstance(own.optimizer, torch.optim.SGD)
    peak = own.initial_lr
    assert own.logger.local_logger.my_fantastic_logging["lrs"] == pytest.approx([peak, peak / 2])
    plain, _ = made("nnDiffSegTrainer")
    assert isinstance(plain.optimizer, torch.optim.AdamW) and plain.lr_scheduler is None


def test_without_deep_supervision_the_full_resolution_alone_is_trained(trained: Callable[..., Any]) -> None:
    own = trained("OwnNoDeepSupervision", *SHORT)
    batch = own.as_batch(next(own.dataloader_train))
    assert [t.shape[2:] for t in batch.targets] == [batch.image.shape[2:]]
    with torch.no_grad():
        out = own.bare_network(batch.image, batch.onehot, deep_supervision=True, generator=batch.generator("noise"), seed=0)
        logits, segmentation = [x.float() for x in out.logits], own.loss.segmentation
        assert torch.equal(segmentation.deep(logits, batch.targets), segmentation.full(logits[0], batch.targets[0]))


def test_probabilistic_oversampling_mixes_in(made: Callable[..., Any]) -> None:
    trainer, loader = made("OwnOversampling")
    assert trainer.oversample_foreground_percent == 0.33 and trainer.probabilistic_oversampling
    assert loader.get_do_oversample == loader._probabilistic_oversampling
    plain = made("nnDiffSegTrainer")[1]
    assert plain.get_do_oversample != plain._probabilistic_oversampling


def test_nnunets_benchmark_mixes_in(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It wants a GPU, whose name and presence it is told here."""
    gpu = SimpleNamespace(is_available=lambda: True, get_device_name=lambda: "none")
    backends = SimpleNamespace(cudnn=SimpleNamespace(version=lambda: 0))
    fake = SimpleNamespace(cuda=gpu, backends=backends, device=torch.device, __version__=torch.__version__)
    monkeypatch.setattr(nnUNetTrainerBenchmark_5epochs, "torch", fake)
    assert run(base, "OwnBenchmark", "--iterations_per_epoch", "1") == 0
    (result,) = json.loads((fold(base, "OwnBenchmark") / "benchmark_result.json").read_text()).values()
    assert 0 < result["fastest_epoch"] < 600
    assert not list(fold(base, "OwnBenchmark").glob("*.pth")) and not (fold(base, "OwnBenchmark") / "validation").exists()


def test_batch_normalisation_is_a_setting_of_the_plans(base: Path, made: Callable[..., Any]) -> None:
    file = base / "preprocessed" / DATASET / f"{PLANS}.json"
    before = file.read_text()
    plans = json.loads(before)
    architecture = json.loads(json.dumps(plans["configurations"]["3d_fullres"]["architecture"]))
    architecture["arch_kwargs"] |= {"norm_op": "torch.nn.BatchNorm3d", "norm_op_kwargs": {"eps": 1e-5, "affine": True}}
    plans["configurations"]["batchnorm"] = {"inherits_from": "3d_fullres", "architecture": architecture}
    file.write_text(json.dumps(plans))
    try:
        trainer, _ = made("nnDiffSegTrainer", configuration="batchnorm")
    finally:
        file.write_text(before)
    assert any(isinstance(m, torch.nn.BatchNorm3d) for m in trainer.bare_network.image_network.modules())
    trainer.on_train_start()
    terms = trainer.train_step(next(trainer.dataloader_train))
    assert np.isfinite(terms["total"])
