"""Fitted numbers travel with the checkpoint, and networks that have none of some are served as well."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from nndiffseg.networks.fitted import FittedNumbers, volume_scale_of
from nndiffseg.training.validation import set_fitted


def test_a_checkpoint_of_before_volumes_had_a_scale_leaves_them_alone():
    network = FittedNumbers()
    network.volume_scale.fill_(2.0)
    outer = torch.nn.Sequential(network)  # under a prefix, as in a wrapped network
    outer.load_state_dict({"0.fusion_weight": torch.tensor([0.25])})
    assert network.fusion_weight.tolist() == [0.25] and volume_scale_of(network) == 1.0


def test_the_scale_of_a_checkpoint_is_kept():
    source, target = FittedNumbers(), FittedNumbers()
    set_fitted(source, {"fusion_weight": 0.75, "volume_scale": 0.5})
    target.load_state_dict(source.state_dict())
    assert volume_scale_of(target) == 0.5 and target.fusion_weight.tolist() == [0.75]


def test_a_network_without_a_volume_scale_has_the_scale_one():
    own = SimpleNamespace(fusion_weight=torch.tensor([0.5]))
    set_fitted(own, {"fusion_weight": 0.25, "volume_scale": 3.0, "detail_scale": 2.0})
    assert own.fusion_weight.tolist() == [0.25] and volume_scale_of(own) == 1.0
    assert not hasattr(own, "volume_scale") and not hasattr(own, "detail_scale")
