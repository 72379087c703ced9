"""Holds a training with kernel scores to the identity error = spread that every calibrated sampler obeys.

A kernel score hardly feels rare outliers: a share e of samples at distance D costs e^2 D, since what its first term
charges the second gives back. Short trainings would end with some samples that fail altogether, and with volumes that
vary twice as much as they should. With a weight lambda below 1 on the spread term the same outliers cost
(1 - lambda) e D more. But a forecast trained with a fixed lambda < 1 ends too narrow (for a Gaussian of unit deviation
and d = |x - y| at lambda / sqrt(2 - lambda^2)).

So lambda follows what is measured. Where P is the distribution of y, the means of d(X, y) and d(X, X') are equal; as
long as the running ratio ``r = spread / error`` exceeds 1, samples are certainly too wide, and lambda falls with it.
At r <= 1 it is 1 and the score is proper. A rising ceiling keeps samples narrow at first, so that the spread grows from
below. It reaches 1 while the learning rate can still widen the samples.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nndiffseg.nn.ranks import item_mean

#: lambda falls by this much for every unit of r above 1
GAIN = 4.0
#: share of the training after which the ceiling is 1
RISE = 0.7
#: updates over which the running means forget
HORIZON = 100


class SpreadControl(nn.Module):
    """Running error and spread of one kernel score, with one lambda for each of its scales.

    Its buffers belong to a training's state: a resumed training needs them.
    """

    error: Tensor
    spread: Tensor
    updates: Tensor

    def __init__(self, scales: int):
        super().__init__()
        self.register_buffer("error", torch.zeros(scales))
        self.register_buffer("spread", torch.zeros(scales))
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    @property
    def ratio(self) -> Tensor:
        """r ``(scales,)``; 1 before the first update."""
        return torch.where(self.error > 0, self.spread / self.error.clamp_min(1e-12), torch.ones_like(self.error))

    @torch.no_grad()
    def update(self, error: Tensor, spread: Tensor) -> None:
        """Takes in distances ``(scales, items)`` of all processes; items may be none."""
        error, spread = (item_mean(distance.detach(), 1) for distance in (error, spread))
        if error.isnan().all():  # nobody has any
            return
        self.updates += 1
        # A plain mean until the horizon is reached, so that the start of a training does not linger.
        rate = 1 / self.updates.clamp_max(HORIZON).to(error.dtype)
        self.error.lerp_(error, rate)
        self.spread.lerp_(spread, rate)

    def weight(self, progress: float) -> Tensor:
        """lambda ``(scales,)`` after the share ``progress`` of the training."""
        ceiling = min(1.0, 0.5 + 0.5 * progress / RISE)
        return (1 - GAIN * (self.ratio - 1)).clamp(0.0, ceiling)
