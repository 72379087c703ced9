"""Exponential moving average of all weights that are trained."""

from __future__ import annotations

import copy

import torch
from torch import nn


class WeightAverage:
    """Keeps an averaged copy of a network (DDPM, arXiv 2006.11239, appendix B; warm-up as in TensorFlow's).

    The decay grows as (1 + n) / (10 + n) up to ``decay``, so that short trainings are not dominated by the start.
    """

    def __init__(self, network: nn.Module, decay: float = 0.999):
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Call once after every optimiser step."""
        self.updates += 1
        rate = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        averaged = self.network.state_dict()
        live, frozen = network.state_dict(), _frozen(network)
        floats = [k for k, v in averaged.items() if v.is_floating_point() and k not in frozen]
        torch._foreach_lerp_([averaged[k] for k in floats], [live[k] for k in floats], rate)
        for key in averaged.keys() - frozen - set(floats):
            averaged[key].copy_(live[key])


def _frozen(network: nn.Module) -> set[str]:
    """Names of the parameters that are not trained."""
    return {name for name, p in network.named_parameters(remove_duplicate=False) if not p.requires_grad}
