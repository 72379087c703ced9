"""Training with nnU-Net's ignore label: ignored voxels teach nothing, in every method, and patches of them alone do no harm."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from stock_model import environment, preprocess, write_stock_model
from torch import Tensor, nn

from nndiffseg import trainers
from nndiffseg.cli import plan_and_preprocess
from nndiffseg.methods.protocol import unwrapped
from nndiffseg.planners import DiffSegPlannerS
from nndiffseg.planning.attach import attached_plans, read_model
from nndiffseg.training.budget import Budget

TRAINERS = ("nnDiffSegTrainer", "nnDiffSegTrainerLDSeg", "nnDiffSegTrainerCDAL", "nnDiffSegTrainerMedSegDiffV2")
DATASETS = {"Dataset901_Tiny": False, "Dataset902_Regions": True}
CPU = torch.device("cpu")
Make = Callable[..., Any]


@pytest.fixture(scope="module")
def planned(tmp_path_factory, make_dataset) -> Path:
    """Two tiny preprocessed datasets whose labels are half ignored, the second one with regions."""
    base = tmp_path_factory.mktemp("nn")
    for name, regions in DATASETS.items():
        make_dataset(base / "raw", name=name, cases=2, shape=(8, 24, 20), splits=True, regions=regions, ignore=True)
        flags = [f"--{kind}={base / kind}" for kind in ("raw", "preprocessed", "results")]
        words = ["-d", name, "-pl", "DiffSegPlannerS", "-c", "2d", "-np", "1", "-npfp", "1", "--no_pbar"]
        assert plan_and_preprocess.main([*words, *flags]) == 0
    return base


@pytest.fixture
def make(planned: Path) -> Iterator[Make]:
    """Makes an initialised trainer; cDAL with its adversarial term."""

    def build(name: str, dataset: str = "Dataset901_Tiny") -> Any:
        folder = planned / "preprocessed" / dataset
        plans, dataset_json = (json.loads((folder / f"{n}.json").read_text()) for n in ("nnDiffSegPlansS", "dataset"))
        plans["continue_training"] = False
        plans["configurations"]["2d"]["batch_size"] = 2
        plans["configurations"]["2d"]["diffusion"]["options"] = {"cdal": {"adversarial_weight": 0.5}}
        return started(getattr(trainers, name)(plans, "2d", 0, dataset_json, CPU))

    with environment(planned):
        yield build


def started(made: Any) -> Any:
    torch.manual_seed(0)
    made.initialize()
    made.budget, made.precision = Budget(1, 10), "float32"
    for group in made.optimizer.param_groups:
        group["lr"] = 1e-3
    return made


def ignoring(batch: dict, rows: Callable[[int], slice], made: Any) -> dict:
    """A batch of the loader, annotated everywhere but on some rows (of so many) of every patch."""
    heads, targets = made.method.plan.heads, []
    for target in batch["target"]:
        target = target.clone()
        ignored = target[:, heads.number :] if heads.regions else target
        ignored[ignored != 0 if heads.regions else ignored == heads.number] = 0
        ignored[:, :, rows(target.shape[2])] = 1 if heads.regions else heads.number
        targets.append(target)
    return batch | {"target": targets}


def half(n: int) -> slice:
    return slice(n // 2)


def everything(n: int) -> slice:
    return slice(n)


class Replay(nn.Module):
    """A network whose outputs are leaves, so that their gradients can be read."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.__dict__["network"], self.leaves = network, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["network"], name)

    def forward(self, *arguments: Any, **named: Any) -> Any:
        with torch.no_grad():
            return self._leaf(self.__dict__["network"](*arguments, **named))

    def _leaf(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            if not value.is_floating_point():
                return value
            self.leaves.append(value.clone().requires_grad_())
            return self.leaves[-1]
        made = [self._leaf(v) for v in value]
        return type(value)(*made) if hasattr(value, "_fields") else made


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("name", TRAINERS)
def test_no_gradient_comes_from_an_ignored_voxel(make: Make, name: str, dataset: str):
    made = make(name, dataset)
    batch = ignoring(next(made.validation_batches()), half, made)
    one, replay = made.as_batch(batch), Replay(made.network)
    sum(made.loss(replay, one).values()).backward()
    used = 0
    for leaf in (x for x in replay.leaves if x.grad is not None and x.grad.any()):
        grid = leaf.shape[-2:]
        gradient = leaf.grad.reshape(-1, *grid)
        assert torch.isfinite(gradient).all() and not gradient[:, : grid[0] // 2].any(), tuple(leaf.shape)
        assert gradient[:, grid[0] // 2 :].any()
        used += 1
    assert used >= (1 if "CDAL" in name else 2)


@pytest.mark.parametrize("dataset", DATASETS)
def test_encoders_see_the_label_and_the_networks_own_segmentation_where_there_is_none(make: Make, dataset: str):
    made = make("nnDiffSegTrainer", dataset)
    batch, seen = ignoring(next(made.validation_batches()), half, made), []
    one, heads = made.as_batch(batch), made.method.plan.heads
    made.network.label_encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    made.loss(made.network, one)
    rows = one.image.shape[2] // 2
    with torch.no_grad():
        own = heads.hard(heads.probabilities(made.network(batch["data"]))).float()
    assert not one.annotated[:, :, :rows].any() and one.annotated[:, :, rows:].all()
    assert torch.equal(one.onehot[:, :, :rows], own[:, :, :rows])
    assert torch.equal(one.onehot[:, :, rows:], heads.onehot(batch["target"][0])[:, :, rows:])
    encoded = [x for x in seen if torch.equal(x, one.onehot)]  # the other one is the prior, of the prediction
    assert len(encoded) == 1 and len(seen) == 2


@pytest.mark.parametrize("name", TRAINERS)
def test_what_lies_under_the_ignore_label_changes_nothing(make: Make, name: str):
    """The same patch, whose ignored half belongs to one structure or to another: what the loader gives is the same step."""
    found = []
    for value in (0, 2):
        made = make(name)
        batch = next(made.validation_batches())
        whole = batch | {"target": [torch.full_like(t, value).where(t == 3, t) for t in batch["target"]]}
        made.train_step(ignoring(whole, half, made))
        found.append({k: v.clone() for k, v in unwrapped(made.network).state_dict().items()})
    assert all(torch.equal(found[0][k], found[1][k]) for k in found[0])


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("name", TRAINERS)
def test_patches_without_any_annotated_voxel_do_no_harm(make: Make, name: str, dataset: str):
    made = make(name, dataset)
    empty = ignoring(next(made.validation_batches()), everything, made)
    one = made.as_batch(empty)
    replay = Replay(made.network)
    sum(made.loss(replay, one).values()).backward()
    assert not any(leaf.grad.any() for leaf in replay.leaves if leaf.grad is not None)
    terms = made.train_step(empty)
    assert all(math.isfinite(v) for v in terms.values())
    assert all(torch.isfinite(v).all() for v in made.network.state_dict().values())
    scored = made.validation_step(empty)
    assert scored["loss"] == 0 and not scored["fused"].any()
    if name == TRAINERS[0]:
        assert not any(int(c.updates) for c in made.loss.control.values())


def test_batches_of_the_loader_are_scored_and_trained_on(make: Make):
    """Slices are whole in 2D: half of them are ignored, but the loader centres patches on annotated ones."""
    made = make("nnDiffSegTrainer")
    batch = next(made.validation_batches())
    assert batch["target"][0].amax() <= 3
    assert all(math.isfinite(v) for v in made.train_step(batch).values())


def test_a_finished_network_is_attached_to(make_dataset, tmp_path):
    preprocessed, name = preprocess(tmp_path, "2d", ExperimentPlanner, make_dataset, ignore=True)
    model = read_model(write_stock_model(tmp_path, preprocessed, name, "2d"), None, "checkpoint_final.pth")
    with environment(tmp_path):
        plans, _ = attached_plans(model, preprocessed, "nnUNetPlansAttached", DiffSegPlannerS.size, resume=False)
        assert set(plans["configurations"]["2d"]["diffusion"]["thickness"]) == {"shell", "core"}
        made = trainers.nnDiffSegTrainerAttached(plans | {"continue_training": False}, "2d", 0, model.dataset_json, CPU)
        made = started(made)
        made.load_pretrained_weights(str(model.weights("0")))
        for rows in (half, everything):
            batch = ignoring(next(made.validation_batches()), rows, made)
            assert all(math.isfinite(v) for v in made.train_step(batch).values())
