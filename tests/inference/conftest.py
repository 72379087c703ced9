"""A small network with the predictor's interface, built from convolutions with fixed random weights."""

from __future__ import annotations

import pytest
import torch
from tiny_model import model_folder, model_folder_2d, raw_images, results  # noqa: F401
from torch import Tensor, nn
from torch.nn import functional as F


class TinyNetwork(nn.Module):
    """Two-step denoiser and two-stage decoder on a latent of stride ``stride``; everything acts alike on any extent."""

    def __init__(
        self,
        stride: tuple[int, ...] = (2, 4, 4),
        channels: int = 1,
        heads: int = 3,
        latent: int = 2,
        seed: int = 0,
        norm: bool = False,
    ):
        super().__init__()
        dim = len(stride)
        conv = nn.Conv3d if dim == 3 else nn.Conv2d
        self.stride, self.dim, self.latent = stride, dim, latent
        self.map_strides = ((1,) * dim, stride, (1,) * dim)
        self.halo = 2
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.features = conv(channels, 6, 3, padding=1)
            self.norm = (nn.InstanceNorm3d if dim == 3 else nn.InstanceNorm2d)(6) if norm else nn.Identity()
            self.head = conv(6, heads, 3, padding=1)
            self.condition = conv(6, latent, stride, stride)
            self.guide = conv(6, 4, 1)
            self.denoiser = conv(3 * latent, latent, 3, padding=1)
            self.stem = conv(latent, 4, 3, padding=1)
            self.refine = conv(4, 4, 3, padding=1)
            self.out = conv(4, heads, 1)
        for module in (self.head, self.denoiser, self.stem, self.out):  # lively samples of all labels
            module.weight.data *= 3
            module.bias.data.zero_()
        self.default_sampler, self.default_steps = "ancestral", 2

    def encode(self, image: Tensor) -> list[Tensor]:
        f = F.silu(self.norm(self.features(image)))
        return [self.head(f), self.condition(f), self.guide(f)]

    def forward(self, image: Tensor) -> Tensor:
        return self.encode(image)[0]

    def sample(self, maps: list[Tensor], draw, *, sampler: str | None = None, steps: int | None = None) -> Tensor:
        z = draw(0, self.latent, 1)
        for i in range(steps or 2):
            xi = draw(i + 1, self.latent, 3)
            condition = maps[1].expand(len(z), *maps[1].shape[1:])
            z = z + torch.tanh(self.denoiser(torch.cat([z, xi, condition], 1)).float())
        return z

    def decode(self, latent: Tensor, maps: list[Tensor]) -> Tensor:
        h = self.stem(latent)
        h = F.interpolate(h, size=[n * s for n, s in zip(h.shape[2:], self.stride, strict=True)], mode="nearest")
        h = h + maps[2]
        return self.out(F.silu(h + self.refine(F.silu(h))))


@pytest.fixture
def tiny_network():
    """The class of the small network."""
    return TinyNetwork
