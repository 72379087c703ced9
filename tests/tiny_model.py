"""An untrained model folder with real plans and real networks, made once per test process."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

import nndiffseg
from nndiffseg.calibration import Calibration
from nndiffseg.cli.plan_and_preprocess import main as plan
from nndiffseg.methods.latent.method import LatentDiffusion
from nndiffseg.methods.protocol import MethodPlan

TRAINER = "nnDiffSegTrainer"


@functools.cache
def _planned(make_dataset: Callable[..., Path]) -> tuple[dict, dict]:
    """Plans and dataset.json of a tiny dataset with two channels."""
    root = _root()
    dataset = make_dataset(root / "raw", channels=2)
    flags = [f"--{kind}={root / kind}" for kind in ("raw", "preprocessed", "results")]
    assert plan(["-d", "901", "-pl", "DiffSegPlannerS", "--no_pp", "--no_pbar", "-np", "1", "-npfp", "1", *flags]) == 0
    plans = json.loads((root / "preprocessed" / dataset.name / "nnDiffSegPlansS.json").read_text())
    return plans, json.loads((dataset / "dataset.json").read_text())


@functools.cache
def _root() -> Path:
    root = Path(tempfile.mkdtemp(prefix="nndiffseg_test_"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return root


def write_model(
    make_dataset: Callable[..., Path],
    results: Path,
    configuration: str = "3d_fullres",
    folds: int = 2,
    *,
    trainer: str = TRAINER,
    calibrations: Sequence[Calibration] = (),
) -> Path:
    """A model folder whose folds hold different random weights, and calibrations where they are given."""
    plans, dataset_json = _planned(make_dataset)
    folder = results / "Dataset901_Tiny" / f"{trainer}__{plans['plans_name']}__{configuration}"
    folder.mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset_json))
    manager = PlansManager(plans).get_configuration(configuration)
    for fold in range(folds):
        with torch.random.fork_rng():
            torch.manual_seed(fold)
            method = LatentDiffusion(MethodPlan.of(manager, 2, 3))
            network = method.network()
            torch.nn.init.normal_(network.denoiser.head.weight, std=0.5)  # an untrained one answers with the prior
        for module in network.label_decoder.modules():  # lively samples
            if isinstance(module, (torch.nn.Conv2d, torch.nn.Conv3d)):
                module.weight.data *= 2
        checkpoint = {
            "network_weights": network.state_dict(),
            "nndiffseg_version": nndiffseg.__version__,
            "trainer_name": trainer,
            "init_args": {"configuration": configuration},
            "options": method.options.to_plan(),
            "calibration": (calibrations[fold] if calibrations else Calibration()).to_json(),
            "inference_allowed_mirroring_axes": tuple(range(len(manager.patch_size))),
        }
        (folder / f"fold_{fold}").mkdir()
        torch.save(checkpoint, folder / f"fold_{fold}" / "checkpoint_final.pth")
    return folder


@pytest.fixture(scope="session")
def raw_images(make_dataset) -> Path:
    """The tiny dataset's images ``case_000 ... case_003`` with two channels."""
    _planned(make_dataset)
    return _root() / "raw" / "Dataset901_Tiny" / "imagesTr"


@pytest.fixture(scope="session")
def results(make_dataset, tmp_path_factory) -> Path:
    """A results folder with one model, 3d_fullres, of two folds."""
    folder = tmp_path_factory.mktemp("results")
    write_model(make_dataset, folder)
    return folder


@pytest.fixture(scope="session")
def model_folder(results: Path) -> Path:
    """The model's folder."""
    return next(results.glob("*/*"))


@pytest.fixture(scope="session")
def model_folder_2d(make_dataset, tmp_path_factory) -> Path:
    """A model of the 2d configuration."""
    return write_model(make_dataset, tmp_path_factory.mktemp("results_2d"), "2d", folds=1)
