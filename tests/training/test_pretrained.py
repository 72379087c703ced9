"""Weights of another training: what is taken over, what starts anew, what is refused."""

from __future__ import annotations

import zipfile
from typing import Any

import numpy as np
import pytest
import torch
from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
from torch import nn
from torch.nn import functional as F

from nndiffseg.errors import UserError
from nndiffseg.methods.latent.network import LatentDiffusionSegmenter
from nndiffseg.methods.settings import DiffusionSettings
from nndiffseg.nn.heads import Heads
from nndiffseg.training.pretrained import load_pretrained_weights


def unet(heads: int, channels: int = 1, width: int = 8) -> ResidualEncoderUNet:
    return ResidualEncoderUNet(
        channels,
        3,
        [width, 2 * width, 2 * width],
        nn.Conv2d,
        3,
        [1, 2, 2],
        [1, 1, 1],
        heads,
        [1, 1],
        norm_op=nn.InstanceNorm2d,
        norm_op_kwargs={"affine": True},
        nonlin=nn.LeakyReLU,
        deep_supervision=True,
    )


def model(heads: int, seed: int, channels: int = 1, width: int = 8) -> LatentDiffusionSegmenter:
    torch.manual_seed(seed)
    settings = DiffusionSettings(2, (4, 4), 4, (8, 12), ((2, 2),), (8, 8), (4, 6, 8))
    return LatentDiffusionSegmenter(unet(heads, channels, width), [(2, 2), (2, 2)], Heads(heads), settings)


def nnunet_checkpoint(path, network: nn.Module) -> None:
    """With numpy scalars in its log, as nnU-Net writes it."""
    torch.save(
        {
            "network_weights": network.state_dict(),
            "logging": {"mean_fg_dice": [np.float64(0.5), np.float32(0.25)]},
            "trainer_name": "nnUNetTrainer",
            "_best_ema": np.float64(0.5),
        },
        path,
    )


def changed(network: nn.Module, before: dict[str, Any]) -> set[str]:
    return {k for k, v in network.state_dict().items() if not torch.equal(v, before[k])}


def test_all_but_segmentation_layers_come_from_a_model_of_the_same_kind(tmp_path):
    source, target = model(3, 0), model(3, 1)
    nnunet_checkpoint(tmp_path / "source.pth", source)
    fresh = {k: v.clone() for k, v in target.state_dict().items()}
    sentence = load_pretrained_weights(target, tmp_path / "source.pth")
    assert "the whole network" in sentence and "another shape" not in sentence
    for key, value in target.state_dict().items():
        assert torch.equal(value, fresh[key] if ".seg_layers." in key else source.state_dict()[key]), key


def test_the_statistics_of_the_whitening_go_on_where_they_were(tmp_path):
    """Their counter is loaded with them: a first step must not replace them by those of one batch."""
    source, target = model(3, 0), model(3, 1)
    source.label_encoder.whiten.mean.fill_(3.0)
    source.label_encoder.whiten.updates.fill_(1000)
    nnunet_checkpoint(tmp_path / "source.pth", source)
    load_pretrained_weights(target, tmp_path / "source.pth")
    onehot = F.one_hot(torch.randint(0, 3, (2, 16, 16)), 3).movedim(-1, 1).float()
    target.train()(torch.randn(2, 1, 16, 16), onehot, generator=torch.Generator().manual_seed(0))
    assert (target.label_encoder.whiten.mean - 3).abs().max() < 0.5


def test_other_labels_start_anew_where_the_shape_differs(tmp_path):
    source, target = model(3, 0), model(5, 1)
    nnunet_checkpoint(tmp_path / "source.pth", source)
    fresh = {k: v.clone() for k, v in target.state_dict().items()}
    assert "another shape" in load_pretrained_weights(target, tmp_path / "source.pth")
    assert torch.equal(target.state_dict()["denoiser.stem.weight"], source.state_dict()["denoiser.stem.weight"])
    assert torch.equal(target.state_dict()["label_decoder.head.weight"], fresh["label_decoder.head.weight"])


def test_stock_nnunet_fills_the_image_network_alone(tmp_path):
    torch.manual_seed(0)
    source, target = unet(3), model(3, 1)
    nnunet_checkpoint(tmp_path / "source.pth", source)
    before = {k: v.clone() for k, v in target.state_dict().items()}
    assert "nnU-Net's network (image_network.unet)" in load_pretrained_weights(target, tmp_path / "source.pth")
    different = changed(target, before)
    assert different and all(k.startswith("image_network.unet.") and ".seg_layers." not in k for k in different)
    for key, value in source.state_dict().items():
        if ".seg_layers." not in key:
            assert torch.equal(target.state_dict()[f"image_network.unet.{key}"], value), key


def test_checkpoints_of_numpy_1_and_2_are_read(tmp_path):
    torch.manual_seed(0)
    nnunet_checkpoint(tmp_path / "written.pth", unet(3))
    names = {core: f"cnumpy.{core}.multiarray\nscalar\n".encode() for core in ("core", "_core")}
    with zipfile.ZipFile(tmp_path / "written.pth") as written:
        entries = {name: written.read(name) for name in written.namelist()}
    assert any(n in pickled for n in names.values() for pickled in entries.values())
    for core, name in names.items():
        with zipfile.ZipFile(tmp_path / f"{core}.pth", "w") as rewritten:
            for entry, content in entries.items():
                for other in names.values():
                    content = content.replace(other, name)
                rewritten.writestr(entry, content)
        assert "nnU-Net's network" in load_pretrained_weights(model(3, 1), tmp_path / f"{core}.pth")


def test_weights_of_other_plans_are_refused_and_change_nothing(tmp_path):
    target = model(3, 1)
    before = {k: v.clone() for k, v in target.state_dict().items()}
    for name, source in {"wider": model(3, 0, width=16), "stranger": nn.Linear(3, 3)}.items():
        nnunet_checkpoint(tmp_path / name, source)
        with pytest.raises(UserError, match="choose a checkpoint"):
            load_pretrained_weights(target, tmp_path / name)
    assert not changed(target, before)


def test_what_is_no_checkpoint_is_told_in_one_sentence(tmp_path):
    (tmp_path / "text.pth").write_text("not a checkpoint")
    torch.save({"weights": {}}, tmp_path / "other.pth")
    messages = {"absent.pth": "There is no checkpoint", "text.pth": "cannot be read", "other.pth": "no network weights"}
    for name, message in messages.items():
        with pytest.raises(UserError, match=message):
            load_pretrained_weights(model(3, 0), tmp_path / name)


def test_nnunets_own_command_starts_from_a_checkpoint_of_ours(tmp_path):  # third table
    """``nnUNetv2_train -tr nnDiffSegTrainer -pretrained_weights`` asserts that every weight is there."""
    from nnunetv2.run.load_pretrained_weights import load_pretrained_weights as of_nnunet

    first, second = model(3, 0), model(3, 1)
    file = tmp_path / "checkpoint_final.pth"
    nnunet_checkpoint(file, first)
    of_nnunet(second, str(file))
    before, after = first.state_dict(), second.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items() if ".seg_layers." not in k)
