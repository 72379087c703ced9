"""The image network is nnU-Net's own network, with its features in the open."""

from __future__ import annotations

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import Tensor, nn

from nndiffseg.nn.image_network import ImageNetwork

FEATURES = [4, 6, 8, 10]


def make(unet: type[nn.Module] = ResidualEncoderUNet, dim: int = 2, deep_supervision: bool = True) -> ImageNetwork:
    torch.manual_seed(0)
    blocks = {"n_blocks_per_stage" if unet is ResidualEncoderUNet else "n_conv_per_stage": [1, 1, 1, 1]}
    conv, norm = (nn.Conv2d, nn.InstanceNorm2d) if dim == 2 else (nn.Conv3d, nn.InstanceNorm3d)
    network = unet(
        2,
        4,
        FEATURES,
        conv,
        3,
        [[1] * dim, [1, 2, 2][-dim:], [2] * dim, [2] * dim],
        num_classes=3,
        n_conv_per_stage_decoder=[1, 2, 1],
        norm_op=norm,
        norm_op_kwargs={"affine": True},
        nonlin=nn.LeakyReLU,
        deep_supervision=deep_supervision,
        **blocks,
    )
    return ImageNetwork(network).eval()


def image(dim: int = 2) -> Tensor:
    return torch.randn(2, 2, *(8, 16, 24)[-dim:], generator=torch.Generator().manual_seed(1))


unets = pytest.mark.parametrize("unet", [ResidualEncoderUNet, PlainConvUNet])
dimensions = pytest.mark.parametrize("dim", [2, 3])


@unets
@dimensions
def test_logits_are_those_of_nnunets_own_forward_full_resolution_first(unet, dim):
    network, x = make(unet, dim), image(dim)
    ours, theirs = network(x, deep_supervision=True).logits, network.unet(x)
    assert [tuple(o.shape[2:]) for o in ours] == sorted((tuple(t.shape[2:]) for t in theirs), reverse=True)
    assert ours[0].shape[2:] == x.shape[2:]
    for o, t in zip(ours, theirs, strict=True):
        torch.testing.assert_close(o, t)


@unets
def test_without_deep_supervision_there_is_one_answer_the_same(unet):
    network, x = make(unet), image()
    (logits,) = network(x).logits
    torch.testing.assert_close(logits, network.unet(x)[0])
    plain = make(unet, deep_supervision=False)
    torch.testing.assert_close(plain(x).logits[0], plain.unet(x))


@unets
@dimensions
def test_features_are_what_the_decoder_computes_bottleneck_last(unet, dim):
    network, x, stages = make(unet, dim), image(dim), []
    for stage in network.unet.decoder.stages:
        stage.register_forward_hook(lambda module, inputs, output: stages.append(output))
    with torch.no_grad():
        network.unet(x)
        expected = [*stages[::-1], network.unet.encoder(x)[-1]]
        features = network(x).features
    assert [f.shape[1] for f in features] == network.channels == FEATURES
    for f, e in zip(features, expected, strict=True):
        torch.testing.assert_close(f, e)
    torch.testing.assert_close(network.unet.decoder.seg_layers[-1](features[0]), network(x).logits[0])


def test_features_do_not_depend_on_deep_supervision():
    network, x = make(), image()
    for a, b in zip(network(x, True).features, network(x, False).features, strict=True):
        assert torch.equal(a, b)


def test_weights_keep_nnunets_names():
    network = make()
    assert list(network.state_dict()) == [f"unet.{name}" for name in network.unet.state_dict()]
