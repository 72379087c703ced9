"""Fitted numbers travel with the checkpoint, and networks that have none of some are served as well."""

from __future__ import annotations

import torch

from nndiffseg.methods.fitted import FittedNumbers, set_fitted, volume_scales_of


def test_a_checkpoint_of_before_volumes_had_a_scale_leaves_them_alone():
    network = FittedNumbers()
    network.volume_scale.fill_(2.0)
    outer = torch.nn.Sequential(network)  # under a prefix, as in a wrapped network
    outer.load_state_dict({"0.fusion_weight": torch.tensor([0.25])})
    assert network.fusion_weight.tolist() == [0.25] and volume_scales_of(network) == (1.0,)


def test_the_scales_of_a_checkpoint_are_kept_however_many_structures_it_has():
    source, target = FittedNumbers(), torch.nn.Sequential(FittedNumbers())
    set_fitted(source, {"fusion_weight": 0.75, "volume_scale": (0.5, 2.0, 1.0)})
    for scales in ((0.5, 2.0, 1.0), (0.25,)):
        set_fitted(source, {"volume_scale": scales})
        target.load_state_dict({f"0.{k}": v for k, v in source.state_dict().items()})
        assert volume_scales_of(target[0]) == scales and target[0].fusion_weight.tolist() == [0.75]


class OwnNetwork(torch.nn.Module):
    """Of someone's own trainer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("fusion_weight", torch.tensor([0.5]))
        self.volume_scale = "something else"


def test_a_network_of_ones_own_gets_the_numbers_that_it_has_buffers_for():
    own = OwnNetwork()
    set_fitted(own, {"fusion_weight": 0.25, "volume_scale": (3.0,), "detail_scale": 2.0})
    assert own.fusion_weight.tolist() == [0.25] and own.volume_scale == "something else"
    assert volume_scales_of(own) == (1.0,) and not hasattr(own, "detail_scale")
