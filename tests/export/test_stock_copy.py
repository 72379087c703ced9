"""The head as a model of stock nnU-Net: weights, plans, checkpoint. tests/cli/test_export.py compares whole predictions."""

from __future__ import annotations

import io

import pytest
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from tiny_model import _planned

from nndiffseg.errors import UserError
from nndiffseg.export.stock_copy import stock_checkpoint, stock_plans, stock_weights
from nndiffseg.methods import METHODS
from nndiffseg.methods.latent.method import LatentDiffusion
from nndiffseg.methods.protocol import MethodPlan, planned_network


@pytest.fixture(scope="module")
def plans(make_dataset):
    return _planned(make_dataset)[0]


def built(plans, trainer, configuration="2d"):
    method = METHODS[trainer](MethodPlan.of(PlansManager(plans).get_configuration(configuration), 2, 3))
    return method, method.network().eval()


@pytest.mark.parametrize("trainer", ["nnDiffSegTrainer", "nnDiffSegTrainerMedSegDiffV2"])
@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_nnunets_own_network_takes_the_weights_and_answers_as_the_head(plans, trainer, configuration):
    method, network = built(plans, trainer, configuration)
    weights = stock_weights(method, network, trainer)
    architecture = stock_plans(plans)["configurations"][configuration]["architecture"]
    stock = planned_network(architecture, 2, 3).eval()
    stock.load_state_dict(weights)
    image = torch.randn(2, 2, *method.plan.patch)
    with torch.inference_mode():
        assert torch.equal(stock(image)[0], network(image))


@pytest.mark.parametrize("trainer", ["nnDiffSegTrainerLDSeg", "nnDiffSegTrainerCDAL"])
def test_a_network_without_nnunets_is_refused(plans, trainer):
    with pytest.raises(UserError, match=f"network of {trainer} does not contain nnU-Net's planned U-Net"):
        stock_weights(*built(plans, trainer), trainer)


def test_a_head_that_is_not_the_whole_answer_is_refused(plans):
    method, network = built(plans, "nnDiffSegTrainer")
    network.register_forward_hook(lambda module, inputs, logits: logits + 1e-6)
    with pytest.raises(UserError, match="answers otherwise than the whole network"):
        stock_weights(method, network, "nnDiffSegTrainer")


def test_weights_that_are_not_finite_are_refused(plans):
    method, network = built(plans, "nnDiffSegTrainer")
    network.get_submodule(LatentDiffusion.head).decoder.seg_layers[-1].bias.data[0] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        stock_weights(method, network, "nnDiffSegTrainer")


def test_the_plans_lose_what_nndiffseg_added_and_get_a_name_of_their_own(plans):
    stock = stock_plans(plans)
    assert stock["plans_name"] == "nnDiffSegPlansS_head" and plans["plans_name"] == "nnDiffSegPlansS"
    for name, configuration in plans["configurations"].items():
        assert "diffusion" in configuration
        rest = {k: v for k, v in configuration.items() if k != "diffusion"}
        assert stock["configurations"][name] == rest


@pytest.mark.parametrize(("fold", "axes", "kept"), [("3", (0, 1), (0, 1)), ("all", (), None)])
def test_the_checkpoint_has_nnunets_keys(plans, fold, axes, kept):
    content = stock_checkpoint(
        {"weight": torch.ones(3)},
        plans=plans,
        dataset_json={"labels": {}},
        configuration="2d",
        fold=fold,
        epoch=12,
        mirror_axes=axes,
    )
    checkpoint = torch.load(io.BytesIO(content), weights_only=True)
    assert checkpoint["trainer_name"] == "nnUNetTrainer" and checkpoint["current_epoch"] == 12
    assert checkpoint["inference_allowed_mirroring_axes"] == kept  # nnU-Net takes the maximum of a tuple
    assert checkpoint["init_args"]["fold"] == (fold if fold == "all" else 3)
    assert not any(checkpoint["logging"].values()) and "nndiffseg_version" not in checkpoint
