"""Model folders of stock nnU-Net on tiny preprocessed data, with untrained weights."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoMirroring import nnUNetTrainerNoMirroring

from nndiffseg.data import preprocessing
from nndiffseg.data.check import training_cases

TRAINERS = {"nnUNetTrainer": nnUNetTrainer, "nnUNetTrainerNoMirroring": nnUNetTrainerNoMirroring}
#: of the fixture :func:`stock`
DATA, MODEL = Path("preprocessed/Dataset901_Tiny"), Path("results/Dataset901_Tiny/nnUNetTrainer__nnUNetPlans__2d")
KINDS = ("raw", "preprocessed", "results")


@functools.cache
def _plain_2d(make_dataset: Callable[..., Path]) -> Path:
    base = Path(tempfile.mkdtemp(prefix="nndiffseg_stock_"))
    atexit.register(shutil.rmtree, base, ignore_errors=True)
    write_stock_model(base, *preprocess(base, "2d", ExperimentPlanner, make_dataset), "2d", folds=2)
    return base


@pytest.fixture
def stock(make_dataset: Callable[..., Path], tmp_path: Path) -> Path:
    """Folders ``preprocessed`` and ``results`` with a plain 2D model of two folds (:data:`MODEL`), for one test alone."""
    base = tmp_path / "stock"
    shutil.copytree(_plain_2d(make_dataset), base)
    return base


def preprocess(
    base: Path,
    configuration: str,
    planner: type,
    make_dataset: Callable[..., Path],
    *,
    regions: bool = False,
    ignore: bool = False,
) -> tuple[Path, str]:
    """A tiny dataset that is planned by nnU-Net, with few features, and preprocessed.

    Returns:
        Its folder of preprocessed data, and the name of the plans.
    """
    raw = make_dataset(base / "raw", cases=4, splits=True, regions=regions, ignore=ignore)
    folder, dataset_json = base / "preprocessed" / raw.name, json.loads((raw / "dataset.json").read_text())
    cases = training_cases(raw, dataset_json)
    preprocessing.extract_fingerprint(cases, dataset_json, folder, progress=False)
    with environment(base, processes=1):  # nnU-Net's planner asks for that many threads
        plans = planner(raw.name).plan_experiment()
        name = plans["plans_name"]
        for content in plans["configurations"].values():
            arguments = content["architecture"]["arch_kwargs"]
            arguments["features_per_stage"] = [n // 4 for n in arguments["features_per_stage"]]
        (folder / f"{name}.json").write_text(json.dumps(plans))
        preprocessing.preprocess_configuration(cases, dataset_json, plans, configuration, folder, progress=False)
    preprocessing.copy_ground_truth(cases, folder, ".nii.gz")
    return folder, name


@contextmanager
def environment(base: Path, processes: int = 0) -> Iterator[None]:
    """nnU-Net's folders below ``base``, and so many worker processes."""
    with pytest.MonkeyPatch.context() as patch:
        for kind in KINDS:
            patch.setenv(f"nnUNet_{kind}", str(base / kind))
        patch.setenv("nnUNet_compile", "f")
        patch.setenv("nnUNet_n_proc_DA", str(processes))
        yield


def write_stock_model(
    base: Path, preprocessed: Path, plans_name: str, configuration: str, *, trainer: str = "nnUNetTrainer", folds: int = 1
) -> Path:
    """What ``nnUNetv2_train`` leaves, but for its training; written by nnU-Net's own trainer. Returns the model folder."""
    plans, dataset_json = (json.loads((preprocessed / f"{name}.json").read_text()) for name in (plans_name, "dataset"))
    with environment(base):
        for fold in range(folds):
            torch.manual_seed(fold)
            made = TRAINERS[trainer](
                {**plans, "continue_training": False}, configuration, fold, dataset_json, torch.device("cpu")
            )
            made.initialize()
            made.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
            for layer in made.network.decoder.seg_layers:
                torch.nn.init.normal_(layer.weight)  # as sure as a trained one
            made.save_checkpoint(str(Path(made.output_folder) / "checkpoint_final.pth"))
    folder = Path(made.output_folder_base)
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset_json))
    return folder
