"""MedSegDiff-V2 through the ordinary commands: it learns, resumes exactly, predicts; labels and regions, 2D and 3D."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import SimpleITK as sitk
import torch

from nndiffseg import Predictor, predict_folder
from nndiffseg.cli import plan_and_preprocess, train
from nndiffseg.data.checkpoint import load_checkpoint
from nndiffseg.methods.medsegdiff.method import MedSegDiffV2
from nndiffseg.methods.protocol import MethodPlan
from nndiffseg.trainers.nnDiffSegTrainerMedSegDiffV2 import nnDiffSegTrainerMedSegDiffV2
from nndiffseg.training import epoch_log as log

TRAINER = nnDiffSegTrainerMedSegDiffV2.__name__
PLANS = "nnDiffSegPlansS"


@pytest.fixture(
    scope="module",
    params=[("2d", False), pytest.param(("3d_fullres", True), marks=pytest.mark.slow)],
    ids=["2d labels", "3d regions"],
)
def setting(request, tmp_path_factory, make_dataset) -> tuple[Path, str]:
    """A preprocessed tiny dataset and a configuration."""
    configuration, regions = request.param
    base = tmp_path_factory.mktemp("nn")
    make_dataset(base / "raw", cases=4, splits=True, regions=regions)
    flags = [f"--{kind}={base / kind}" for kind in ("raw", "preprocessed", "results")]
    assert plan_and_preprocess.main(["-d", "901", "-pl", "DiffSegPlannerS", "-c", configuration, "-np", "1", *flags]) == 0
    path = base / "preprocessed" / "Dataset901_Tiny" / f"{PLANS}.json"
    plans = json.loads(path.read_text())
    section = plans["configurations"][configuration]["diffusion"]
    section["settings"]["samples"], section["options"] = 2, {"medsegdiff": {"steps": 3}}  # in full would take minutes
    plans["configurations"][configuration]["batch_size"] = 2 if regions else 6
    path.write_text(json.dumps(plans))
    return base, configuration


def arguments(base: Path, configuration: str, results: str, *more: str) -> list[str]:
    return [
        "901",
        configuration,
        "0",
        "-p",
        PLANS,
        "-tr",
        TRAINER,
        "-device",
        "cpu",
        "--disable_progress_bar",
        *(f"--{kind}={base / kind}" for kind in ("raw", "preprocessed")),
        f"--results={base / results}",
        *more,
    ]


def model(base: Path, configuration: str, results: str) -> Path:
    return base / results / "Dataset901_Tiny" / f"{TRAINER}__{PLANS}__{configuration}"


def test_it_learns_and_predicts(setting, tmp_path):
    base, configuration = setting
    iterations = "15" if configuration == "2d" else "8"
    assert train.main(arguments(*setting, "learn", "--epochs", "2", "--iterations_per_epoch", iterations)) == 0
    folder = model(*setting, "learn")
    rows = log.read(folder / "fold_0")
    first, last = rows[0]["losses"], rows[-1]["losses"]
    assert set(first) == {"anchor", "denoising", "total"}
    assert last["anchor"] < first["anchor"] and last["denoising"] < 0.9 * first["denoising"]
    assert (folder / "fold_0" / "validation" / "summary.json").is_file()
    predictor = Predictor.from_folder(folder, device="cpu", samples=2, mirroring=False)
    images = base / "raw" / "Dataset901_Tiny" / "imagesTr"
    assert predict_folder(predictor, images, tmp_path, num_parts=4, save_samples=True, progress=False) == ["case_000"]
    for name in ("case_000", "uncertainty/case_000_total", "samples/case_000_s01"):
        assert sitk.ReadImage(str(tmp_path / f"{name}.nii.gz")).GetSize() == (20, 24, 20)
    regions = configuration == "3d_fullres"
    assert predictor.model.folds[0].network.heads.regions is regions


def test_a_stopped_training_resumes_where_it_stopped(setting, monkeypatch):
    if setting[1] != "2d":
        pytest.skip("once is enough: what is resumed does not depend on the configuration")
    length = ("--epochs", "2", "--iterations_per_epoch", "3", "--disable_checkpointing")
    assert train.main(arguments(*setting, "whole", *length)) == 0
    step = nnDiffSegTrainerMedSegDiffV2.train_step

    def interrupted(self, batch):
        if self.iteration == 4:
            self.save_checkpoint(str(Path(self.output_folder) / "checkpoint_latest.pth"))
            raise KeyboardInterrupt
        return step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(nnDiffSegTrainerMedSegDiffV2, "train_step", interrupted)
        assert train.main(arguments(*setting, "stopped", *length[:-1])) != 0
    stopped = model(*setting, "stopped") / "fold_0"
    assert load_checkpoint(stopped / "checkpoint_latest.pth")["iteration"] == 4
    assert train.main(arguments(*setting, "stopped", *length, "--c")) == 0
    keys = ("losses", "dice_deterministic", "dice_samples", "spread", "iteration")
    expected, resumed = (
        [{k: row[k] for k in keys} for row in log.read(folder)] for folder in (model(*setting, "whole") / "fold_0", stopped)
    )
    assert resumed == expected


@pytest.mark.parametrize(("option", "module"), [("uncertain_attention", "attention."), ("ss_former", "ss_former.")])
def test_options_switch_the_published_parts_off(setting, option, module):
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    base, configuration = setting
    plans = PlansManager(str(base / "preprocessed" / "Dataset901_Tiny" / f"{PLANS}.json"))
    plan = MethodPlan.of(plans.get_configuration(configuration), 1, 3)
    names = [
        set(MedSegDiffV2(plan, MedSegDiffV2.read_options(options)).network().state_dict()) for options in ({}, {option: False})
    ]
    assert any(module in name for name in names[0]) and not any(module in name for name in names[1])


def test_the_weight_of_the_cross_entropy_can_be_the_published_one(setting):
    base, configuration = setting
    folder = base / "preprocessed" / "Dataset901_Tiny"
    plans, dataset = (json.loads((folder / name).read_text()) for name in (f"{PLANS}.json", "dataset.json"))
    section, values = plans["configurations"][configuration]["diffusion"], []
    for weight in (1.0, 10.0):
        section["options"] = {"medsegdiff": {"ce_weight": weight}}
        plans["continue_training"] = False
        trainer = nnDiffSegTrainerMedSegDiffV2(plans, configuration, 0, dataset, torch.device("cpu"))
        loss = trainer._build_loss().segmentation.full
        shape = (1, trainer.label_manager.num_segmentation_heads, *trainer.configuration_manager.patch_size)
        target = torch.zeros(shape if trainer.label_manager.has_regions else (1, 1, *shape[2:]))
        loss.weight_dice = 0
        values.append(float(loss(torch.randn(shape, generator=torch.Generator().manual_seed(0)), target)))
    assert values[1] == pytest.approx(10 * values[0], rel=1e-5)
