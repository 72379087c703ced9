"""Memory of the methods: counted without values as with them, and patch and batch that fit it."""

from __future__ import annotations

import copy
import functools
import math
from typing import Any

import pytest
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn
from torch.nn import functional as F

from nndiffseg import trainers
from nndiffseg.methods import METHODS, Method
from nndiffseg.methods.protocol import MethodPlan
from nndiffseg.methods.settings import DiffusionSettings
from nndiffseg.planning import memory
from nndiffseg.planning.cost import CountAttention, image_network_bytes, method_bytes, saved_bytes
from nndiffseg.trainers import nnDiffSegTrainerCDAL

CDAL = "nnDiffSegTrainerCDAL"
#: all but the flagship
OTHERS = {trainer: method for trainer, method in METHODS.items() if trainer != "nnDiffSegTrainer"}
PATCH = {2: [48, 32], 3: [16, 24, 16]}


def plans(dim: int = 2, batch: int = 8) -> PlansManager:
    strides = [[1] * dim, [2] * dim, [2] * dim]
    settings = DiffusionSettings(1, (2,) * dim, 4, (8, 16), ((2,) * dim,), (8,), (8, 8))
    architecture = {
        "n_stages": 3,
        "features_per_stage": [8, 16, 16],
        "conv_op": f"torch.nn.modules.conv.Conv{dim}d",
        "kernel_sizes": [[3] * dim] * 3,
        "strides": strides,
        "n_blocks_per_stage": [1, 1, 1],
        "n_conv_per_stage_decoder": [1, 1],
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dim}d",
        "norm_op_kwargs": {"affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    return PlansManager(
        {
            "plans_name": "plans",
            "configurations": {
                "c": {
                    "patch_size": PATCH[dim],
                    "batch_size": batch,
                    "diffusion": {"settings": settings.to_plan(), "regions": False},
                    "architecture": {
                        "network_class_name": "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
                        "arch_kwargs": architecture,
                        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
                    },
                }
            },
        }
    )


# ---- counting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_each_kept_tensor_counts_once_and_weights_do_not(device):
    layer, x = nn.Linear(4, 3, device=device), torch.zeros(5, 4, device=device)

    def training_pass():
        y = layer(x)  # keeps x, and its own weight if x had a gradient
        return y * y, y.exp()  # keep y, once, and the exponential

    assert saved_bytes(layer, training_pass) == 4 * (5 * 4 + 5 * 3 + 5 * 3)


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("method_class", METHODS.values())
def test_the_meta_device_counts_what_the_cpu_keeps(method_class: type[Method], dim: int) -> None:
    configuration = plans(dim).get_configuration("c")
    method = method_class(MethodPlan.of(configuration, 2, 3))
    network = method.network()
    image, onehot = torch.randn(3, 2, *PATCH[dim]), torch.zeros(3, 3, *PATCH[dim])
    with CountAttention():
        real = saved_bytes(network, lambda: method.training_pass(network, image, onehot))
    assert 3 * method_bytes(method_class, configuration, 2, 3) == pytest.approx(real, rel=0.02)


def test_attention_counts_as_its_fused_kernel_keeps_it():
    def attention(device: str) -> int:
        q, k, v = (torch.randn(2, 4, 300, 16, device=device, requires_grad=True) for _ in range(3))
        return saved_bytes(nn.Identity(), lambda: F.scaled_dot_product_attention(q * 1, k * 1, v * 1))

    with CountAttention():
        counted = attention("meta")
    assert counted == pytest.approx(attention("cpu"), rel=0.03)
    assert attention("meta") > 4 * counted, "the formula would keep cells x cells"


# ---- fitting ----------------------------------------------------------------------------------------------------------


def linear(patch: tuple[int, ...]) -> float:
    return 1e-3 * math.prod(patch)


STRIDES = [[1, 1], [2, 2], [2, 2], [1, 2]]  # multiples of 4 and 8


@pytest.mark.parametrize(
    ("target", "batch", "expected"),
    [
        (40.0, 10, ((40, 64), 10)),  # 2.56 each: all fit
        (12.0, 10, ((40, 64), 4)),  # fewer
        (5.2, 10, ((40, 64), 2)),  # two at least
        (4.9, 10, ((40, 56), 2)),  # the longest axis gives way
        (3.0, 10, ((36, 40), 2)),  # several steps, each of the axis that is longest by then
        (0.1, 10, ((16, 32), 2)),  # four cells of the deepest grid are left
        (2.6, 1, ((40, 64), 1)),  # never more than planned
    ],
)
def test_the_batch_gives_way_before_the_patch(target, batch, expected):
    chosen = memory.fit(linear, target, (40, 64), batch, STRIDES)
    assert (chosen.patch, chosen.batch) == expected
    assert chosen.gb == pytest.approx(chosen.batch * linear(chosen.patch))
    assert chosen.gb <= target or chosen.patch == (16, 32)


def test_memory_that_is_not_proportional_to_the_patch_is_asked_for():
    asked = []

    def stepwise(patch: tuple[int, ...]) -> float:
        asked.append(patch)
        return linear(patch) + (1.0 if math.prod(patch) > 1200 else 0.0)

    chosen = memory.fit(stepwise, 4.9, (40, 64), 2, STRIDES)
    assert asked[-1] == chosen.patch and chosen.gb == chosen.batch * stepwise(chosen.patch) <= 4.9
    assert len(asked) < 5, "only where a patch may fit"


# ---- plans ------------------------------------------------------------------------------------------------------------


@functools.cache
def entries_for(target: float) -> dict[str, dict[str, Any]]:
    methods = OTHERS if target > 1e6 else {CDAL: METHODS[CDAL]}
    return memory.plan_entries(methods, plans(), "c", 2, 3, 10.0, target)


def fitted(share: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """Plans with an entry for cDAL that may have this share of the memory it needs, and this entry."""
    entries = entries_for(share * entries_for(1e9)[CDAL]["training_memory_gb"])
    content = copy.deepcopy(plans().plans)
    content["configurations"]["c"]["diffusion"]["trainers"] = copy.deepcopy(entries)
    return content, copy.deepcopy(entries[CDAL])


def test_entries_state_the_memory_relative_to_the_image_network():
    entries = entries_for(1e9)
    assert list(entries) == list(OTHERS)
    configuration = plans().get_configuration("c")
    image = image_network_bytes(configuration, 2, 3)
    for trainer, method_class in OTHERS.items():
        entry = entries[trainer]
        own = method_bytes(method_class, configuration, 2, 3)
        assert entry["training_memory_gb"] == pytest.approx(10 * own / image)
        assert (entry["patch_size"], entry["batch_size"]) == ([48, 32], 8)


@pytest.mark.parametrize(("target", "told"), [(1e9, None), (50.0, 0), (10.0, 1)])
def test_entries_are_added_where_memory_is_scarce_and_trainers_that_do_not_fit_are_told(target, told):
    """The image network needs 10 GB; of the methods, only cDAL is asked."""
    content = copy.deepcopy(plans().plans)
    section = content["configurations"]["c"]["diffusion"]
    section["cost"] = {"training_memory_gb": {"image_network": 10.0}}
    notes = memory.add_entries({CDAL: METHODS[CDAL]}, content, "c", 2, 3, target)
    assert (memory.KEY in section) == (told is not None)
    assert len(notes) == (told or 0)
    assert all(note.startswith(f"c, {CDAL}: With the patch") for note in notes)


def test_only_the_trainer_with_an_entry_changes_the_plans_and_says_so():
    content, entry = fitted(0.2)
    assert entry["batch_size"] == 2 and math.prod(entry["patch_size"]) < 48 * 32
    before = copy.deepcopy(content)
    changed, note = memory.adapted_plans(content, "c", nnDiffSegTrainerCDAL)
    assert content == before, "the given plans stay as they are"
    configuration = PlansManager(changed).get_configuration("c")
    assert (configuration.patch_size, configuration.batch_size) == (entry["patch_size"], 2)
    assert note is not None and "patch 48x32 and batch size 8" in note and note.count(". ") == 0
    assert "x".join(map(str, entry["patch_size"])) + " and batch size 2" in note
    same, nothing = memory.adapted_plans(content, "c", trainers.nnDiffSegTrainer)
    assert same is content and nothing is None
    again, nothing = memory.adapted_plans(changed, "c", nnDiffSegTrainerCDAL)
    assert again is changed and nothing is None, "plans of a results folder are adapted already"


def test_derived_trainers_and_derived_configurations_inherit():
    class MyTrainer(nnDiffSegTrainerCDAL):
        pass

    content, entry = fitted(0.2)
    content["configurations"]["mine"] = {"inherits_from": "c"}
    changed, note = memory.adapted_plans(content, "mine", MyTrainer)
    assert PlansManager(changed).get_configuration("mine").patch_size == entry["patch_size"] and note
    assert PlansManager(changed).get_configuration("c").patch_size == [48, 32]


def test_plans_without_entries_and_edited_plans_are_used_as_they_are():
    content, _ = fitted(0.2)
    edited, old = copy.deepcopy(content), copy.deepcopy(content)
    edited["configurations"]["c"]["batch_size"] = 4
    del old["configurations"]["c"]["diffusion"]["trainers"]
    stock = copy.deepcopy(old)
    del stock["configurations"]["c"]["diffusion"]
    for each in (edited, old, stock, fitted(1.1)[0]):
        same, note = memory.adapted_plans(each, "c", nnDiffSegTrainerCDAL)
        assert same is each and note is None


def test_the_sentence_admits_what_cannot_be_had():
    scarce, enough = fitted(0.01)[1], fitted(0.5)[1]
    assert scarce["patch_size"] == [16, 16] and memory.sentence(scarce).endswith(", the least there is.")
    assert not memory.sentence(enough).endswith(", the least there is.")
    scarce["planned"].update(patch_size=[16, 16], batch_size=2)
    assert memory.sentence(scarce).endswith("planned for, and neither can be smaller.")
