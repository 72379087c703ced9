"""Stock nnU-Net model folders with random weights, their preprocessed data, and validation probabilities to calibrate on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from scipy.ndimage import gaussian_filter

from nndiffseg.cli.plan_and_preprocess import main as plan
from nndiffseg.methods.protocol import planned_network

TRAINER, PLANS = "nnUNetTrainer", "nnUNetPlansTiny"


@dataclass(frozen=True)
class StockWorld:
    """A dataset, raw and preprocessed, and a model of stock nnU-Net trained on it, as far as files tell.

    Attributes:
        raw, preprocessed, results: nnU-Net's folders.
        model: the model's folder.
        dataset: name.
    """

    raw: Path
    preprocessed: Path
    results: Path
    model: Path
    dataset: str

    @property
    def flags(self) -> list[str]:
        return [f"--raw={self.raw}", f"--preprocessed={self.preprocessed}", f"--results={self.results}"]

    @property
    def images(self) -> Path:
        return self.raw / self.dataset / "imagesTr"

    def keep_probabilities(self, sharpness: float = 12.0) -> None:
        """What ``nnUNetv2_train --npz`` leaves: over-confident probabilities around boundaries that are a little off."""
        splits = json.loads((self.preprocessed / self.dataset / "splits_final.json").read_text())
        dataset_json = json.loads((self.model / "dataset.json").read_text())
        rng = np.random.default_rng(0)
        for fold, split in enumerate(splits):
            folder = self.model / f"fold_{fold}" / "validation"
            folder.mkdir(parents=True, exist_ok=True)
            for case in split["val"]:
                file = self.preprocessed / self.dataset / "gt_segmentations" / f"{case}{dataset_json['file_ending']}"
                label = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
                label = np.roll(label, int(rng.integers(-2, 3)), rng.integers(1, label.ndim))
                if isinstance(dataset_json["labels"]["core"], list):
                    smooth = np.stack([gaussian_filter(m.astype(float), 1) for m in (label > 0, label == 2)])
                    p = 1 / (1 + np.exp(-sharpness * (smooth - 0.5)))
                else:
                    z = sharpness * np.stack([gaussian_filter((label == k).astype(float), 1) for k in range(3)])
                    p = np.exp(z - z.max(0)) / np.exp(z - z.max(0)).sum(0)
                np.savez_compressed(folder / f"{case}.npz", probabilities=p.astype(np.float32))


def make_stock_world(
    make_dataset: Callable[..., Path],
    root: Path,
    configuration: str = "3d_fullres",
    *,
    folds: int = 2,
    cases: int = 4,
    regions: bool = False,
    spacing: tuple[float, ...] | None = None,
    ignore: bool = False,
) -> StockWorld:
    """Plans, preprocesses and writes a model folder of stock nnU-Net with random weights."""
    dataset = make_dataset(root / "raw", cases=cases, regions=regions, splits=True, spacing=spacing, ignore=ignore)
    world = StockWorld(root / "raw", root / "preprocessed", root / "results", Path(), dataset.name)
    assert (
        plan(["-d", "901", "-pl", "DiffSegPlannerS", "-c", configuration, "--no_pbar", "-np", "1", "-npfp", "1", *world.flags])
        == 0
    )
    plans = json.loads((world.preprocessed / dataset.name / "nnDiffSegPlansS.json").read_text())
    plans["plans_name"] = PLANS
    for one in plans["configurations"].values():
        one.pop("diffusion", None)
    model = world.results / dataset.name / f"{TRAINER}__{PLANS}__{configuration}"
    model.mkdir(parents=True)
    (world.preprocessed / dataset.name / f"{PLANS}.json").write_text(json.dumps(plans))
    (model / "plans.json").write_text(json.dumps(plans))
    dataset_json = json.loads((dataset / "dataset.json").read_text())
    (model / "dataset.json").write_text(json.dumps(dataset_json))
    manager = PlansManager(plans).get_configuration(configuration)
    for fold in range(folds):
        with torch.random.fork_rng():
            torch.manual_seed(fold)
            network = planned_network(manager.configuration["architecture"], 1, 2 if regions else 3)
        checkpoint = {
            "network_weights": network.state_dict(),
            "trainer_name": TRAINER,
            "init_args": {"plans": plans, "configuration": configuration, "fold": fold, "dataset_json": dataset_json},
            "inference_allowed_mirroring_axes": tuple(range(len(manager.patch_size))),
            "logging": {"mean_fg_dice": [np.float64(0.1)]},
            "current_epoch": 1,
        }
        (model / f"fold_{fold}").mkdir()
        torch.save(checkpoint, model / f"fold_{fold}" / "checkpoint_final.pth")
    return StockWorld(world.raw, world.preprocessed, world.results, model, dataset.name)
