"""The setting of the published methods: what ``paper`` changes, what counts beside it, and what the optimiser gets."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from nndiffseg.errors import UserError
from nndiffseg.methods.cdal.method import CDAL, CDALOptions
from nndiffseg.methods.ldseg.method import LDSegMethod
from nndiffseg.methods.medsegdiff.method import MedSegDiffV2
from nndiffseg.methods.protocol import Recipe
from nndiffseg.training.trainer import DiffusionTrainer

METHODS = [LDSegMethod, CDAL, MedSegDiffV2]


@pytest.mark.parametrize("method", METHODS)
def test_the_paper_setting_changes_every_option_that_it_names(method):
    planned, paper = method.read_options({}), method.read_options({"setting": "paper"})
    assert planned == method.read_options({"setting": "planned"}) and planned.setting == "planned"
    assert planned.paper
    for name, value in planned.paper.items():
        assert getattr(paper, name) == value != getattr(planned, name), name


@pytest.mark.parametrize("method", METHODS)
def test_options_come_back_from_a_checkpoint_as_they_were(method):
    for given in ({}, {"setting": "paper"}, {"setting": "paper", "steps": 3, "gradient_clipping": True}):
        options = method.read_options(given)
        assert method.read_options(options.to_plan()) == options


def test_a_checkpoint_from_before_an_option_has_its_default():
    old = {"steps": 4, "adversarial_weight": 0.0, "attention": True, "r1_gamma": 1.0, "deterministic_share": 0.25}
    assert CDAL.with_defaults(old) == CDAL.read_options({}).to_plan()
    assert CDAL.with_defaults(old | {"steps": 3}) != CDAL.read_options({}).to_plan()


def test_what_is_given_counts_beside_the_setting():
    options = CDAL.read_options({"setting": "paper", "image_blocks": 6})
    assert (options.image_blocks, options.mapping_width) == (6, 256)
    assert options == CDALOptions(setting="paper", image_blocks=6), "however the options are made"
    with pytest.raises(UserError, match="invalid setting: input should be 'planned' or 'paper'"):
        CDAL.read_options({"setting": "papr"})


def recipe_of(method, **options) -> Recipe:
    return method(SimpleNamespace(), method.read_options(options)).recipe


@pytest.mark.parametrize("method", METHODS)
def test_planned_methods_share_one_recipe(method):
    assert recipe_of(method) == Recipe()


def test_the_optimiser_works_with_the_methods_numbers():
    trainer = DiffusionTrainer.__new__(DiffusionTrainer)
    trainer.device, trainer.network = torch.device("cpu"), nn.Linear(2, 1)
    trainer.method = SimpleNamespace(recipe=recipe_of(CDAL, setting="paper", learning_rate=0.5))
    trainer.initial_lr, trainer.weight_decay = trainer.method.recipe[:2]
    optimizer, _ = trainer.configure_optimizers()
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["betas"]) == (0.5, 0.0, (0.5, 0.9))


@pytest.mark.parametrize(("clipping", "norm"), [(True, 1.0), (False, 200.0)])
def test_gradients_are_clipped_where_the_options_say_so(clipping, norm):
    trainer = DiffusionTrainer.__new__(DiffusionTrainer)
    trainer.network, trainer.grad_scaler = nn.Linear(1, 1, bias=False), None
    trainer.method = SimpleNamespace(recipe=recipe_of(CDAL, gradient_clipping=clipping))
    trainer.optimizer = torch.optim.SGD(trainer.network.parameters(), lr=0.0)
    assert trainer._step(200 * trainer.network.weight.sum())
    assert float(trainer.network.weight.grad.norm()) == pytest.approx(norm, rel=1e-4)
