"""Costs counted on the meta device, against an independent count on the real networks and what autograd keeps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import Tensor, nn
from torch.nn import functional

from nndiffseg.errors import UserError
from nndiffseg.methods.latent.losses import LatentLosses
from nndiffseg.methods.latent.network import LatentDiffusionSegmenter
from nndiffseg.methods.protocol import Batch, SegmentationLoss
from nndiffseg.methods.settings import DiffusionSettings
from nndiffseg.nn.heads import Heads
from nndiffseg.nn.layers import conv, pointwise, transposed
from nndiffseg.planning.cost import Architecture, Cost, LightCost, count, saved_bytes, stage_grids

HEADS = 3
PATCH = {2: (24, 32), 3: (8, 24, 32)}
dimensions = pytest.mark.parametrize("dim", [2, 3])


def section(dim: int, **changes: Any) -> dict[str, Any]:
    """A configuration's ``architecture`` as nnU-Net plans it, anisotropic in 3D."""
    anisotropic = [1, 2, 2][-dim:]
    kwargs = {
        "n_stages": 4,
        "features_per_stage": [8, 16, 32, 32],
        "conv_op": f"torch.nn.modules.conv.Conv{dim}d",
        "kernel_sizes": [[1, 3, 3][-dim:], *[[3] * dim] * 3],
        "strides": [[1] * dim, anisotropic, [2] * dim, [2] * dim],
        "n_blocks_per_stage": [1, 3, 2, 2],
        "n_conv_per_stage_decoder": [1, 2, 1],
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dim}d",
        "norm_op_kwargs": {"affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
        "arch_kwargs": {**kwargs, **changes},
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def settings(dim: int) -> DiffusionSettings:
    return DiffusionSettings(
        latent_stage=2,
        latent_stride=(2, 4, 4)[-dim:],
        latent_channels=6,
        denoiser_channels=(8, 24),
        denoiser_strides=((2,) * dim,),
        encoder_channels=(8, 12),
        decoder_channels=(4, 6, 8),
    )


def unet(architecture: dict[str, Any], deep_supervision: bool = False) -> nn.Module:
    return get_network_from_plans(
        architecture["network_class_name"],
        architecture["arch_kwargs"],
        architecture["_kw_requires_import"],
        2,
        HEADS,
        deep_supervision=deep_supervision,
    )


def by_hand(module: nn.Module, run: Callable[[], Any]) -> Cost:
    """Adds up ``2 * taps * C_in * C_out * cells`` of every convolution that really runs, seen by hooks."""
    total = []

    def add(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        cells = (inputs[0] if layer.transposed else output)[0, 0].numel()  # a transposed one makes a block of every cell
        operations = 2 * math.prod(layer.kernel_size) * layer.in_channels * layer.out_channels * cells
        total.append(Cost(operations * len(output), output.numel()))

    convolutions = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    handles = [m.register_forward_hook(add) for m in module.modules() if isinstance(m, convolutions)]
    with torch.no_grad():
        run()
    for handle in handles:
        handle.remove()
    return sum(total, Cost())


# ---- one layer --------------------------------------------------------------------------------------------------------


@dimensions
def test_a_convolution_costs_a_multiplication_and_an_addition_per_tap(dim: int) -> None:
    layer, x = conv(dim, 5, 7, (3, 3, 1)[:dim]).to("meta"), torch.zeros(1, 5, *PATCH[dim], device="meta")
    cells = math.prod(PATCH[dim])
    assert count(lambda: layer(x))[0] == Cost(2 * 9 * 5 * 7 * cells, 7 * cells)


@dimensions
def test_a_transposed_convolution_makes_a_block_of_every_cell(dim: int) -> None:
    layer, x = transposed(dim, 5, 7, (2,) * dim).to("meta"), torch.zeros(1, 5, *PATCH[dim], device="meta")
    blocks = math.prod(PATCH[dim]) * 2**dim
    cost, answer = count(lambda: layer(x))
    assert cost == Cost(2 * 5 * 7 * blocks, 7 * blocks)
    assert answer.shape[2:] == tuple(2 * n for n in PATCH[dim])


@dimensions
def test_a_convolution_computed_as_a_matrix_product_costs_the_same(dim: int) -> None:
    layer, x = conv(dim, 5, 7, 1).to("meta"), torch.zeros(1, 5, *PATCH[dim], device="meta")
    assert count(lambda: pointwise(layer, x))[0] == count(lambda: layer(x))[0]


def test_norms_activations_and_dense_layers_cost_nothing() -> None:
    module = nn.Sequential(nn.Linear(4, 9), nn.SiLU(), nn.LayerNorm(9)).to("meta")
    assert count(lambda: module(torch.zeros(3, 4, device="meta")))[0] == Cost()


def test_time_is_operations_and_300_for_each_element() -> None:
    assert (Cost(5.0, 2.0) + 3 * Cost(1.0, 1.0)).time == 8 + 300 * 5


# ---- networks ---------------------------------------------------------------------------------------------------------


@dimensions
def test_the_image_network_costs_what_really_runs(dim: int) -> None:
    network = unet(section(dim))
    expected = by_hand(network, lambda: network(torch.zeros(1, 2, *PATCH[dim])))
    assert Architecture(section(dim), 2, HEADS, PATCH[dim]).image == expected


@dimensions
def test_elements_of_the_image_network_follow_nnunets_own_measure(dim: int) -> None:
    """nnU-Net counts the deep supervision heads too and a few outputs twice, hence the tolerance."""
    expected: Any = unet(section(dim))
    measure = expected.compute_conv_feature_map_size(PATCH[dim])
    assert Architecture(section(dim), 2, HEADS, PATCH[dim]).image.elements == pytest.approx(measure, rel=0.15)


@dimensions
def test_the_light_networks_cost_what_really_runs(dim: int) -> None:
    s, strides = settings(dim), section(dim)["arch_kwargs"]["strides"]
    network = LatentDiffusionSegmenter(unet(section(dim), True), strides[1:], Heads(HEADS), s).eval()
    grids = stage_grids(PATCH[dim], strides)
    light = Architecture(section(dim), 2, HEADS, PATCH[dim]).light(s)

    xi = torch.zeros(1, len(s.noise_scales) * s.noise_channels, *grids[2])
    z, condition = torch.zeros(1, 6, *grids[2]), torch.zeros(1, 8, *grids[2])
    denoise = by_hand(network.denoiser, lambda: network.denoiser(z, torch.ones(1), condition, z, xi))
    assert light.denoise == denoise

    # The decoder's finest stage and the guides are matrix products, which the hooks do not see.
    def pointwise_cost(c_in: int, c_out: int, stage: int) -> Cost:
        cells = math.prod(grids[stage])
        return Cost(2 * c_in * c_out * cells, c_out * cells)

    guides = [torch.zeros(1, c, *grid) for c, grid in zip(s.decoder_channels, grids, strict=False)]
    decode = by_hand(network.label_decoder, lambda: network.label_decoder(z, guides))
    assert light.decode == decode + pointwise_cost(6, 4, 0) + pointwise_cost(4, HEADS, 0)

    image = torch.zeros(1, 2, *PATCH[dim])
    encode = by_hand(network, lambda: network.encode(image))
    whole = Architecture(section(dim), 2, HEADS, PATCH[dim]).image + light.encode
    features = section(dim)["arch_kwargs"]["features_per_stage"]
    assert whole == sum((pointwise_cost(features[i], c, i) for i, c in enumerate(s.decoder_channels)), encode)


def test_a_sample_is_all_steps_and_one_decode() -> None:
    light = LightCost(Cost(1, 2), Cost(10, 20), Cost(100, 200))
    assert light.sample(3) == Cost(130, 260)


def test_costs_of_the_same_networks_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    architecture = Architecture(section(2), 2, HEADS, PATCH[2])
    first = architecture.light(settings(2))
    monkeypatch.setattr(Architecture, "_count_light", None)
    assert architecture.light(settings(2)) is first


def test_plans_that_name_what_no_planner_writes_are_refused() -> None:
    with pytest.raises(UserError, match="The plans"):
        _ = Architecture(section(2, nonlin="subprocess.Popen"), 2, HEADS, PATCH[2]).image


# ---- memory -----------------------------------------------------------------------------------------------------------


@dimensions
def test_the_memory_overhead_is_what_autograd_keeps(dim: int) -> None:
    """Of a whole pass with its losses, relative to the image network alone."""
    patch, regular = {2: (48, 64), 3: (16, 32, 32)}[dim], [[1] * dim, *[[2] * dim] * 3]
    architecture = section(
        dim,
        features_per_stage=[16, 32, 64, 128],
        strides=regular,
        n_blocks_per_stage=[1, 3, 4, 6],
        n_conv_per_stage_decoder=[1, 1, 1],
    )
    s = replace(
        settings(dim),
        latent_stride=(4,) * dim,
        denoiser_channels=(24, 64),
        encoder_channels=(16, 32),
        decoder_channels=(8, 12, 24),
    )
    image, label = torch.zeros(2, 2, *patch), torch.randint(HEADS, (2, *patch))
    onehot = functional.one_hot(label, HEADS).movedim(-1, 1).float()
    network = unet(architecture).train()
    alone = saved_bytes(network, lambda: network(image))
    model = LatentDiffusionSegmenter(unet(architecture), regular[1:], Heads(HEADS), s).train()

    def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(logits, target)

    loss = LatentLosses(SegmentationLoss(lambda x, y: cross_entropy(x[0], y[0]), cross_entropy), Heads(HEADS))
    batch = Batch(image, [label], onehot, 1.0, (0,))
    whole = saved_bytes(model, lambda: sum(loss.terms(model(image, onehot), batch).values()))
    overhead = Architecture(architecture, 2, HEADS, patch).memory_overhead(s)
    assert whole / alone == pytest.approx(1 + overhead, rel=0.1)
