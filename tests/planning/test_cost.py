"""The closed-form costs against torch's own count on the real networks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from nndiffseg.diffusion.schedules import Cosine
from nndiffseg.methods.latent.label_decoder import LabelDecoder
from nndiffseg.methods.latent.losses import LatentLosses
from nndiffseg.methods.latent.network import LatentDiffusionSegmenter
from nndiffseg.methods.protocol import Batch, SegmentationLoss
from nndiffseg.methods.settings import DiffusionSettings
from nndiffseg.nn.denoiser import Denoiser
from nndiffseg.nn.heads import Heads
from nndiffseg.nn.label_encoder import LabelEncoder
from nndiffseg.planning import cost
from nndiffseg.planning.memory import saved_bytes

HEADS = 3


def architecture(dim: int) -> dict[str, Any]:
    anisotropic = [1, 2, 2][-dim:]
    return {
        "n_stages": 4,
        "features_per_stage": [8, 16, 32, 32],
        "kernel_sizes": [[1, 3, 3][-dim:], *[[3] * dim] * 3],
        "strides": [[1] * dim, anisotropic, [2] * dim, [2] * dim],
        "n_blocks_per_stage": [1, 3, 2, 2],
        "n_conv_per_stage_decoder": [1, 2, 1],
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


PATCH = {2: (24, 32), 3: (8, 24, 32)}
dimensions = pytest.mark.parametrize("dim", [2, 3])


def count(module: nn.Module, *inputs: Any) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module.eval()(*inputs)
    return counter.get_total_flops()


def unet(dim: int, kwargs: dict[str, Any] | None = None) -> ResidualEncoderUNet:
    conv, norm = (nn.Conv2d, nn.InstanceNorm2d) if dim == 2 else (nn.Conv3d, nn.InstanceNorm3d)
    return ResidualEncoderUNet(
        2,
        conv_op=conv,
        norm_op=norm,
        num_classes=HEADS,
        deep_supervision=False,
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        norm_op_kwargs={"affine": True},
        conv_bias=True,
        **(kwargs or architecture(dim)),
    )


@dimensions
def test_image_network_flops(dim: int) -> None:
    expected = count(unet(dim), torch.zeros(1, 2, *PATCH[dim]))
    assert cost.image_network(architecture(dim), 2, HEADS, PATCH[dim]).flops == expected


@dimensions
def test_image_network_elements_follow_nnunets_own_measure(dim: int) -> None:
    """nnU-Net counts the deep supervision heads too and a few outputs twice, hence the tolerance."""
    expected = unet(dim).compute_conv_feature_map_size(PATCH[dim])
    assert cost.image_network(architecture(dim), 2, HEADS, PATCH[dim]).elements == pytest.approx(expected, rel=0.15)


@dimensions
def test_denoiser_flops(dim: int) -> None:
    s = settings(dim)
    grid = (4, 7, 8)[-dim:]  # 7 is not divisible by the stride: the network pads
    xi = len(s.noise_scales) * s.noise_channels
    network = Denoiser(dim, s.latent_channels, xi, s.denoiser_channels, s.denoiser_strides, Cosine())
    condition, prior = torch.zeros(1, s.denoiser_channels[0], *grid), torch.zeros(1, 6, *grid)
    inputs = torch.zeros(1, 6, *grid), torch.ones(1), condition, prior, torch.zeros(1, xi, *grid)
    # the time embedding's dense layers are left out of the closed form
    assert cost.denoiser(s, grid).flops == pytest.approx(count(network, *inputs), rel=0.03)


@dimensions
def test_label_decoder_flops(dim: int) -> None:
    s, strides = settings(dim), architecture(dim)["strides"]
    grids = cost.stage_grids(PATCH[dim], strides)
    network = LabelDecoder(dim, HEADS, strides[1:3], s.decoder_channels, s.latent_channels)
    expected = count(network, torch.zeros(1, 6, *grids[2]), [None] * 3)
    assert cost.label_decoder(s, HEADS, grids).flops == expected


@dimensions
def test_label_encoder_flops(dim: int) -> None:
    s, strides = settings(dim), architecture(dim)["strides"]
    network = LabelEncoder(dim, HEADS, strides[1:3], s.encoder_channels, s.latent_channels)
    expected = count(network, torch.zeros(1, HEADS, *PATCH[dim]))
    assert cost.label_encoder(s, HEADS, PATCH[dim], strides).flops == expected


def test_a_sample_is_all_steps_and_one_decode() -> None:
    s = settings(3)
    grids = cost.stage_grids(PATCH[3], architecture(3)["strides"])
    expected = s.steps * cost.denoiser(s, grids[2]).flops + cost.label_decoder(s, HEADS, grids).flops
    assert cost.sample(s, HEADS, grids).flops == expected


@dimensions
def test_training_overhead_is_what_autograd_keeps(dim: int) -> None:
    """Of a whole pass with its losses, relative to the image network alone."""
    patch, regular = {2: (48, 64), 3: (16, 32, 32)}[dim], [[1] * dim, *[[2] * dim] * 3]
    arch = {
        **architecture(dim),
        "features_per_stage": [16, 32, 64, 128],
        "strides": regular,
        "n_blocks_per_stage": [1, 3, 4, 6],
        "n_conv_per_stage_decoder": [1, 1, 1],
    }
    s = replace(
        settings(dim),
        latent_stride=(4,) * dim,
        denoiser_channels=(24, 64),
        encoder_channels=(16, 32),
        decoder_channels=(8, 12, 24),
    )
    image, label = torch.zeros(2, 2, *patch), torch.randint(HEADS, (2, *patch))
    onehot = functional.one_hot(label, HEADS).movedim(-1, 1).float()
    network = unet(dim, arch).train()
    alone = saved_bytes(network, lambda: network(image))
    model = LatentDiffusionSegmenter(unet(dim, arch), regular[1:], Heads(HEADS), s).train()

    def cross_entropy(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(logits, target)

    loss = LatentLosses(SegmentationLoss(lambda x, y: cross_entropy(x[0], y[0]), cross_entropy), Heads(HEADS))
    batch = Batch(image, [label], onehot, 1.0, (0,))
    whole = saved_bytes(model, lambda: sum(loss.terms(model(image, onehot), batch).values()))
    predicted = 1 + cost.training_overhead(s, arch, HEADS, patch) / cost.image_network(arch, 2, HEADS, patch).elements
    assert whole / alone == pytest.approx(predicted, rel=0.1)
