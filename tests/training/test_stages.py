"""A cascade is trained: what the first stage's validations leave, and how the second stage is trained and validated on it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import blosc2
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from cascade_world import FIRST, PLANS, SECOND, TRAINER, CascadeWorld, make_world
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

from nndiffseg.cli.predict import main as predict
from nndiffseg.cli.train import main as train
from nndiffseg.data.cases import find_cases
from nndiffseg.data.folders import configure_folders
from nndiffseg.data.plans_schema import check_plans
from nndiffseg.errors import UserError
from nndiffseg.ext_path import ext_path
from nndiffseg.inference.predictor import Predictor
from nndiffseg.inference.stages import read_stages, with_previous
from nndiffseg.trainers import nnDiffSegTrainer
from nndiffseg.training.loader import IndexedBatches
from nndiffseg.training.stages import read_previous, write_next_stages
from nndiffseg.uncertainty.statistics import CaseStatistics

SHORT = ("--epochs", "1", "--iterations_per_epoch", "2", "-device", "cpu", "--disable_progress_bar", "-p", PLANS)


def run(world: CascadeWorld, configuration: str, fold: str, *flags: str) -> int:
    return train(["901", configuration, fold, *SHORT, *flags, *world.flags])


def trainer_of(world: CascadeWorld, fold: int | str = 0, configuration: str = SECOND) -> nnDiffSegTrainer:
    plans = json.loads((world.preprocessed / f"{PLANS}.json").read_text()) | {"continue_training": False}
    content = json.loads((world.preprocessed / "dataset.json").read_text())
    return nnDiffSegTrainer(plans, configuration, fold, content, torch.device("cpu"))


@pytest.fixture(scope="module")
def world(make_dataset: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> CascadeWorld:
    """The first stage is trained in both folds, the second one in fold 0; what it said before it could be is kept."""
    made = make_world(make_dataset, tmp_path_factory.mktemp("cascade"))
    assert run(made, FIRST, "0") == 0
    return made


@pytest.fixture(scope="module")
def refusal(world: CascadeWorld, tmp_path_factory) -> str:
    """What a second stage says while the first one's fold 1 is missing."""
    with pytest.raises(UserError) as error:
        trainer_of(world).run_training()
    return str(error.value)


@pytest.fixture(scope="module")
def trained(world: CascadeWorld, refusal: str) -> CascadeWorld:
    assert run(world, FIRST, "1") == 0
    assert run(world, SECOND, "0") == 0
    return world


def test_missing_predictions_of_the_first_stage_are_told_with_the_command(world: CascadeWorld, refusal: str) -> None:
    folder = world.model(FIRST) / "predicted_next_stage" / SECOND
    assert refusal == (
        f"3d_cascade_fullres needs the segmentations of 3d_lowres, and 2 cases have none in {folder}, such as case_002; run "
        f"nndiffseg_train 901 3d_lowres FOLD -tr {TRAINER} -p {PLANS} for FOLD 1, with --val where that is trained already."
    )


def test_the_first_stage_leaves_nnunets_files_and_samples(trained: CascadeWorld) -> None:
    """The segmentation that it wrote, on the second stage's grid; samples of the same case in the same way."""
    folder, first = trained.model(FIRST) / "predicted_next_stage" / SECOND, trained.model(FIRST)
    assert {f.name for f in folder.iterdir()} == {"samples", *(f"case_{n:03d}.b2nd" for n in range(4))}
    for case, fold in (("case_000", 0), ("case_003", 1)):
        written = sitk.GetArrayFromImage(sitk.ReadImage(str(first / f"fold_{fold}" / "validation" / f"{case}.nii.gz")))
        labels = np.asarray(blosc2.open(str(folder / f"{case}.b2nd"), mode="r")[:])
        assert labels.dtype == np.uint8 and (labels == written).all()  # both have the images' spacing
        with np.load(folder / "samples" / f"{case}.npz") as saved:
            assert saved["samples"].shape == (4, *labels.shape) and str(saved["fold"]) == str(fold)
    assert not (trained.model(SECOND) / "predicted_next_stage").exists()


def test_the_second_stage_is_trained_on_the_first_ones_segmentation(trained: CascadeWorld) -> None:
    trainer = trainer_of(trained)
    trainer.initialize()
    batch = next(trainer.validation_batches())
    assert batch["data"].shape[1] == 3  # one channel of the image, two labels
    previous = read_previous(trainer, "case_000").segmentation
    found = batch["data"][:, 1:].sum((0, 2, 3, 4))
    assert set(np.unique(batch["data"][:, 1:])) <= {0, 1}
    assert ((found > 0).numpy() == [(previous == 1).any(), (previous == 2).any()]).all()


def test_batches_of_a_second_stage_do_not_depend_on_those_before(trained: CascadeWorld) -> None:
    """nnU-Net's augmentations of a cascade shuffle a list of channels; a training that goes on must meet the same batches."""
    trainer = trainer_of(trained)
    trainer.initialize()
    loaders = [trainer._plain_loaders()[0] for _ in range(2)]
    straight, resumed = (IndexedBatches(loader, 7) for loader in loaders)
    wanted = [straight[i]["data"] for i in range(12)]
    for i in reversed(range(12)):
        assert torch.equal(resumed[i]["data"], wanted[i]), i


def test_the_second_stages_validation_is_its_prediction(trained: CascadeWorld) -> None:
    """Parts of a validation case equal those of a prediction from what the first stage's validation wrote of it."""
    first = trained.model(FIRST) / "fold_0" / "validation"
    predictor = Predictor.from_folder(trained.model(SECOND), [0], device="cpu")
    case = next(c for c in find_cases(trained.images, predictor.dataset_json) if c.id == "case_000")
    (given,) = with_previous([case], first, predictor.dataset_json, FIRST)
    stage = read_stages(given, predictor.plans.plans, SECOND, predictor.dataset_json)
    trainer = trainer_of(trained)
    trainer.initialize()
    validated = read_previous(trainer, "case_000")
    assert stage.previous is not None and (stage.previous.segmentation == validated.segmentation).all()
    data = np.asarray(trainer.dataset_class(trainer.preprocessed_dataset_folder, ["case_000"]).load_case("case_000")[0][:])
    assert np.allclose(data, stage.data, atol=1e-6)
    written = sitk.GetArrayFromImage(sitk.ReadImage(str(trained.model(SECOND) / "fold_0" / "validation" / "case_000.nii.gz")))
    assert written.shape == data.shape[1:]
    settings = json.loads((trained.model(SECOND) / "fold_0/validation/uncertainty/case_000.json").read_text())["settings"]
    assert settings["configuration"] == SECOND


def test_fold_all_does_not_replace_what_was_predicted_out_of_fold(trained: CascadeWorld, tmp_path: Path) -> None:
    copy = CascadeWorld(tmp_path, trained.dataset)
    shutil.copytree(trained.root, tmp_path, dirs_exist_ok=True)
    configure_folders(*(str(tmp_path / kind) for kind in ("raw", "preprocessed", "results")))
    folder = copy.model(FIRST) / "predicted_next_stage" / SECOND
    for file in folder.rglob("case_000.*"):
        file.unlink()
    before = {f: f.read_bytes() for f in folder.rglob("case_001.*")}
    trainer = trainer_of(copy, "all", configuration=FIRST)
    for case in ("case_000", "case_001"):
        source = trainer.preprocessed_dataset_folder
        data, _, _, properties = infer_dataset_class(source)(source, [case]).load_case(case)
        labels = np.ones((8, *data.shape[1:]), np.uint8)
        statistics = CaseStatistics(torch.zeros(3, *data.shape[1:]), {}, labels, ())
        segmentation = copy.model(FIRST) / "fold_0" / "validation" / f"{case}.nii.gz"
        write_next_stages(trainer, case, statistics, properties, segmentation)
    assert {f: f.read_bytes() for f in folder.rglob("case_001.*")} == before and len(before) == 2
    with np.load(folder / "samples" / "case_000.npz") as saved:
        assert str(saved["fold"]) == "all" and (saved["samples"] == 1).all()
    assert (folder / "case_000.b2nd").is_file()


def test_predictions_on_another_grid_and_damaged_samples_are_told(trained: CascadeWorld, tmp_path: Path, capsys) -> None:
    copy = CascadeWorld(tmp_path, trained.dataset)
    shutil.copytree(trained.root, tmp_path, dirs_exist_ok=True)
    file = copy.model(FIRST) / "predicted_next_stage" / SECOND / "case_001.b2nd"
    file.unlink()
    blosc2.asarray(np.zeros((4, 5, 6), np.uint8), urlpath=str(file))
    assert run(copy, SECOND, "0", "--val") == 2
    assert "holds case_001 on another grid" in capsys.readouterr().err
    samples = copy.model(FIRST) / "predicted_next_stage" / SECOND / "samples"
    (samples / "case_000.npz").write_text("x")
    trainer = trainer_of(copy)
    trainer.initialize()
    with pytest.raises(UserError, match=r"case_000\.npz is damaged or of other data"):
        read_previous(trainer, "case_000")


def test_both_trained_stages_predict(trained: CascadeWorld, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    shutil.copy(trained.images / "case_000_0000.nii.gz", tmp_path / "in")
    flags = ["-d", "901", "-c", SECOND, "-f", "0", "--samples", "4", "-device", "cpu", "--disable_progress_bar"]
    assert predict(["-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), *flags, *trained.flags]) == 0
    assert (tmp_path / "out" / "case_000.nii.gz").is_file()


def test_plans_whose_stages_lead_nowhere_or_back_are_refused(world: CascadeWorld) -> None:
    plans = json.loads((world.preprocessed / f"{PLANS}.json").read_text())
    configurations = plans["configurations"]
    check_plans(plans, "The plans")
    for wrong, words in (("../elsewhere", "which is no configuration"), (SECOND, "leads back"), ([1], "previous_stage")):
        configurations[SECOND]["previous_stage"] = wrong
        with pytest.raises(UserError, match=words):
            check_plans(plans, "The plans")
    configurations[SECOND]["previous_stage"] = FIRST
    configurations[FIRST]["previous_stage"] = SECOND
    with pytest.raises(UserError, match="leads back"):
        check_plans(plans, "The plans")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nnDiffSegTrainerLDSeg", "nnDiffSegTrainerCDAL", "nnDiffSegTrainerMedSegDiffV2"])
def test_published_methods_train_and_predict_both_stages(make_dataset, tmp_path: Path, name: str) -> None:
    made = make_world(make_dataset, tmp_path)
    for configuration, fold in ((FIRST, "0"), (FIRST, "1"), (SECOND, "0")):
        assert run(made, configuration, fold, "-tr", name) == 0
    assert (made.model(SECOND, name) / "fold_0" / "validation" / "uncertainty.json").is_file()
    flags = ["-d", "901", "-c", SECOND, "-tr", name, "-f", "0", "--samples", "2", "-device", "cpu", "--disable_progress_bar"]
    assert predict(["-i", str(made.images), "-o", str(tmp_path / "out"), *flags, *made.flags]) == 0


@pytest.mark.slow
def test_nnunets_own_commands_validate_and_predict_a_cascade(trained: CascadeWorld, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("nnUNet_extTrainer", str(ext_path()))
    for kind in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{kind}", str(trained.root / kind))
    summary = trained.model(SECOND) / "fold_0" / "validation" / "summary.json"
    summary.unlink()
    model = ["-d", "901", "-tr", TRAINER, "-p", PLANS, "-f", "0", "-device", "cpu", "-npp", "1", "-nps", "1"]
    images = ["-i", str(trained.images), "-o"]
    first, out = str(tmp_path / "first"), str(tmp_path / "out")
    for command in (
        [
            "nnunetv2.run.run_training",
            "run_training_entry",
            "901",
            SECOND,
            "0",
            "-tr",
            TRAINER,
            "-p",
            PLANS,
            "-device",
            "cpu",
            "--val",
        ],
        ["nnunetv2.inference.predict_from_raw_data", "predict_entry_point", *images, first, "-c", FIRST, *model],
        [
            *("nnunetv2.inference.predict_from_raw_data", "predict_entry_point", *images, out, "-c", SECOND, *model),
            *("-prev_stage_predictions", first),
        ],
    ):
        module, entry, *words = command
        code = f"if __name__ == '__main__':\n    import {module} as m\n    m.{entry}()"
        file = tmp_path / "command.py"
        file.write_text(code)
        subprocess.run([sys.executable, str(file), *words], check=True)
    assert summary.is_file()
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 4
