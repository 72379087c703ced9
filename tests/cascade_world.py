"""A small cascade: plans of two stages, data preprocessed for both, and untrained models of both with lively samples."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

import nndiffseg
from nndiffseg.calibration import Calibration
from nndiffseg.cli.plan_and_preprocess import main as plan
from nndiffseg.data.check import read_dataset_json, training_cases
from nndiffseg.data.preprocessing import copy_ground_truth, preprocess_configuration
from nndiffseg.methods.latent.method import LatentDiffusion
from nndiffseg.methods.protocol import MethodPlan

FIRST, SECOND, PLANS = "3d_lowres", "3d_cascade_fullres", "nnDiffSegPlansS"
TRAINER = "nnDiffSegTrainer"


@dataclass(frozen=True)
class CascadeWorld:
    """nnU-Net's folders with one dataset."""

    root: Path
    dataset: str

    @property
    def flags(self) -> list[str]:
        return [f"--{kind}={self.root / kind}" for kind in ("raw", "preprocessed", "results")]

    @property
    def images(self) -> Path:
        return self.root / "raw" / self.dataset / "imagesTr"

    @property
    def preprocessed(self) -> Path:
        return self.root / "preprocessed" / self.dataset

    def model(self, configuration: str, trainer: str = TRAINER) -> Path:
        return self.root / "results" / self.dataset / f"{trainer}__{PLANS}__{configuration}"


def cascade_plans(plans: dict[str, Any]) -> dict[str, Any]:
    """Plans of a dataset that is too small for a cascade, with one as nnU-Net plans it: half the resolution comes first."""
    plans = copy.deepcopy(plans)
    low = copy.deepcopy(plans["configurations"]["3d_fullres"])
    low |= {
        "spacing": [2 * s for s in low["spacing"]],
        "data_identifier": f"{PLANS}_{FIRST}",
        "median_image_size_in_voxels": [n / 2 for n in low["median_image_size_in_voxels"]],
        "next_stage": SECOND,
    }
    plans["configurations"] |= {FIRST: low, SECOND: {"inherits_from": "3d_fullres", "previous_stage": FIRST}}
    return plans


def make_world(
    make_dataset: Callable[..., Path], root: Path, *, preprocess: bool = True, cases: int = 4, **options: Any
) -> CascadeWorld:
    """A dataset, its plans and, if asked for, its preprocessed data; ``options`` of the dataset."""
    raw = make_dataset(root / "raw", splits=True, cases=cases, **options)
    world = CascadeWorld(root, raw.name)
    assert plan(["-d", "901", "-pl", "DiffSegPlannerS", "--no_pp", "--no_pbar", "-np", "1", "-npfp", "1", *world.flags]) == 0
    file = world.preprocessed / f"{PLANS}.json"
    plans = cascade_plans(json.loads(file.read_text()))
    file.write_text(json.dumps(plans))
    content = read_dataset_json(raw)
    cases_there = training_cases(raw, content)
    for configuration in ("3d_fullres", FIRST) if preprocess else ():
        preprocess_configuration(cases_there, content, plans, configuration, world.preprocessed, progress=False)
    if preprocess:
        copy_ground_truth(cases_there, world.preprocessed, content["file_ending"])
    return world


def write_models(world: CascadeWorld, *, folds: int = 2) -> None:
    """Untrained models of both stages, each fold with other random weights."""
    plans = json.loads((world.preprocessed / f"{PLANS}.json").read_text())
    dataset_json = json.loads((world.root / "raw" / world.dataset / "dataset.json").read_text())
    manager = PlansManager(plans)
    for number, configuration in enumerate((FIRST, SECOND)):
        folder, planned = world.model(configuration), manager.get_configuration(configuration)
        folder.mkdir(parents=True)
        (folder / "plans.json").write_text(json.dumps(plans))
        (folder / "dataset.json").write_text(json.dumps(dataset_json))
        heads = manager.get_label_manager(dataset_json).num_segmentation_heads
        channels = determine_num_input_channels(manager, planned, dataset_json)
        for fold in range(folds):
            with torch.random.fork_rng():
                torch.manual_seed(10 * number + fold)
                method = LatentDiffusion(MethodPlan.of(planned, channels, heads))
                network = method.network()
                torch.nn.init.normal_(network.denoiser.head.weight, std=0.5)  # an untrained one answers with the prior
            for module in network.label_decoder.modules():
                if isinstance(module, torch.nn.Conv3d):
                    module.weight.data *= 2
            (folder / f"fold_{fold}").mkdir()
            torch.save(
                {
                    "network_weights": network.state_dict(),
                    "nndiffseg_version": nndiffseg.__version__,
                    "trainer_name": TRAINER,
                    "init_args": {"configuration": configuration},
                    "options": method.options.to_plan(),
                    "calibration": Calibration().to_json(),
                    "inference_allowed_mirroring_axes": (0, 1, 2),
                },
                folder / f"fold_{fold}" / "checkpoint_final.pth",
            )
