"""Stochastic segmentation networks on a finished nnU-Net: a low-rank Gaussian over the logits of the whole image.

Monteiro et al. 2020, arXiv 2006.06015: logits are normal, eta ~ N(mu(x), P(x) P(x)^T + D(x)), with a factor P of rank R and a
diagonal D; 1 x 1 convolutions on the last features of a network give all three. Here the network is a finished nnU-Net that
stays as it is, and the convolution of mu begins as nnU-Net's own segmentation layer. P and D are trained, and mu on, by the
paper's Monte Carlo estimate of the log-likelihood of a whole patch,

    -log E_eta prod_i p(y_i | eta_i) ~ log M - logsumexp_m sum_i log p(y_i | eta_i^m).

As in the paper logits have no variance outside the image proper, where every channel is exactly zero: nothing bounds it there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nndiffseg.diffusion.noise.field import NoiseField
from nndiffseg.nn.heads import Heads

#: of the factor, as in the paper
RANK = 10
#: Monte Carlo samples of a training step, as in the paper
DRAWS = 20
#: least variance, as in the paper's code
LEAST_VARIANCE = 1e-5
#: numbers of the noise's draws: of the volume, of every voxel
COMMON, OWN = 2000, 2001


class LowRankGaussian(NamedTuple):
    """Normal logits of N images.

    Attributes:
        mean: ``(N, heads, *grid)``.
        factor: P, ``(N, heads, rank, *grid)``.
        deviation: square root of D, ``(N, heads, *grid)``.
    """

    mean: Tensor
    factor: Tensor
    deviation: Tensor

    def logits(self, common: Tensor, own: Tensor) -> Tensor:
        """mu + P n + sqrt(D) n'.

        Args:
            common: standard normal numbers of each sample ``(N, M, rank)``, or ``(1, M, rank)`` for all images.
            own: standard normal numbers of every voxel ``(N, M, heads, *grid)``.

        Returns:
            ``(N, M, heads, *grid)``.
        """
        shared = torch.einsum("nmr,nkrv->nmkv", common.expand(len(self.mean), -1, -1), self.factor.flatten(3))
        return self.mean[:, None] + shared.reshape(own.shape) + self.deviation[:, None] * own


class StochasticSegmentationNetwork(nn.Module):
    """A finished nnU-Net, frozen, with 1 x 1 convolutions for mean, factor and diagonal.

    Args:
        unet: nnU-Net's planned network.
        rank: of the factor.
    """

    def __init__(self, unet: Any, rank: int = RANK):
        super().__init__()
        unet.decoder.deep_supervision = False
        self.unet, self.rank = unet.requires_grad_(False), rank
        last = unet.decoder.seg_layers[-1]
        self.heads, dim = last.out_channels, len(last.kernel_size)
        conv, features = type(last), last.in_channels
        self.mean = conv(features, self.heads, 1)
        self.factor = conv(features, self.heads * rank, 1) if rank else None
        self.log_variance = conv(features, self.heads, 1)
        # What tiled prediction asks a network for: all maps are as fine as the image.
        self.stride = (1,) * dim
        self.map_strides = (self.stride,) * (3 if rank else 2)

    def start_at_finished(self) -> None:
        """The mean becomes nnU-Net's own segmentation layer; call it once its weights are loaded."""
        self.mean.load_state_dict(self.unet.decoder.seg_layers[-1].state_dict())

    def train(self, mode: bool = True) -> StochasticSegmentationNetwork:
        super().train(mode)
        self.unet.eval()
        return self

    def features(self, image: Tensor) -> Tensor:
        """Input of nnU-Net's last segmentation layer: ``(B, C_in, *patch)`` -> ``(B, features, *patch)`` float32."""
        found: list[Tensor] = []
        hook = self.unet.decoder.seg_layers[-1].register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
        try:
            with torch.no_grad():
                self.unet(image)
        finally:
            hook.remove()
        return found[0].float()

    def gaussian(self, features: Tensor, image: Tensor) -> LowRankGaussian:
        """The logits' distribution; ``image`` says where there is nothing."""
        inside = (image != 0).any(1, keepdim=True).float()  # (B, 1, *patch)
        shape = (len(image), self.heads, self.rank, *image.shape[2:])
        factor = features.new_zeros(shape) if self.factor is None else self.factor(features).view(shape) * inside[:, :, None]
        variance = self.log_variance(features).exp() * inside + LEAST_VARIANCE
        return LowRankGaussian(self.mean(features), factor, variance.sqrt())

    def encode(self, image: Tensor) -> list[Tensor]:
        """Mean, factor ``(B, heads * rank, *patch)`` and deviation: maps to blend over tiles."""
        found = self.gaussian(self.features(image), image)
        return [m for m in (found.mean, found.factor.flatten(1, 2), found.deviation) if m.shape[1]]

    def forward(self, image: Tensor) -> Tensor:
        """The mean of the logits ``(B, heads, *patch)``."""
        return self.mean(self.features(image))


def negative_log_likelihood(
    gaussian: LowRankGaussian, target: Tensor, heads: Heads, draws: int = DRAWS, generator: torch.Generator | None = None
) -> Tensor:
    """Monte Carlo estimate of -log p(target), mean over images, divided by the number of voxels.

    Args:
        gaussian: of N images.
        target: of nnU-Net's loader ``(N, 1 or regions, *grid)``.
        heads: meaning of the channels.
        draws: M.
        generator: of the draws; None for torch's own.
    """
    mean, device = gaussian.mean, gaussian.mean.device
    n, grid = len(mean), mean.shape[2:]
    common = torch.randn((n, draws, gaussian.factor.shape[2]), generator=generator, device=device)
    own = torch.randn((n, draws, *mean.shape[1:]), generator=generator, device=device)
    logits = gaussian.logits(common, own).flatten(0, 1)  # (N * M, heads, *grid)
    repeated = target.repeat_interleave(draws, 0)
    if heads.regions:
        losses = F.binary_cross_entropy_with_logits(logits, repeated.float(), reduction="none").sum(1)
    else:
        losses = F.cross_entropy(logits, repeated[:, 0].long(), reduction="none")
    by_draw = -losses.view(n, draws, -1).sum(-1)
    return (math.log(draws) - by_draw.logsumexp(1)).mean() / math.prod(grid)


def drawn_noise(
    seed: int, case: str, sample: int, rank: int, heads: int, shape: Sequence[int], origin: Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    """The normal numbers of one sample: those of the whole volume ``(rank,)``, and a window's ``(heads, *shape)``."""
    field = NoiseField(seed, case, sample)
    return field.vector(COMMON, rank), field.draw(OWN, heads, shape, origin)
