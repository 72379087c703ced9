"""Semantic condition by the spectrum-space transformer, SS-Former (MedSegDiff-V2, arXiv 2301.11798).

The embedding of a noisy label and that of an image differ in their frequencies above all. The SS-Former lets them
attend to each other in Fourier space, frequency by frequency, and a *neural band-pass filter* decides for each time
step which frequencies pass.

Notation: ``F`` is the unitary discrete Fourier transform over the spatial axes, nu a frequency in cycles per cell. The
spectrum of a real signal is conjugate-symmetric, X(-nu) = conj X(nu). Each operation between F and its inverse keeps
that: affinities are real and equal at (nu, nu') and (-nu, -nu'), gains are real and even. So the result is real.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nndiffseg.nn.layers import ChannelNorm, conv, zero

#: Fourier features of a frequency: cos and sin of 2 pi k nu, k = 1 .. HARMONICS, along each axis
HARMONICS = 4
#: channels of one attention head
HEAD_CHANNELS = 16


def _full_precision(device: torch.device) -> AbstractContextManager:
    """No autocast; the meta device, on which memory is planned, has none."""
    known = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if known else nullcontext()


def to_spectrum(x: Tensor) -> Tensor:
    """Real ``(B, C, *grid)`` -> complex spectrum of the same shape (float32 inside: half precision has no transform)."""
    return torch.fft.fftn(x.float(), dim=tuple(range(2, x.ndim)), norm="ortho")


def from_spectrum(spectrum: Tensor) -> Tensor:
    """Inverse of :func:`to_spectrum` for conjugate-symmetric spectra; the imaginary part is rounding."""
    return torch.fft.ifftn(spectrum, dim=tuple(range(2, spectrum.ndim)), norm="ortho").real


def frequency_features(shape: Sequence[int], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Cosines and sines of all frequencies of a grid, each ``(cells, axes * HARMONICS)``.

    They have period 1 in nu, as the discrete spectrum itself. So the highest frequency of an even axis, which is its
    own negative, gets the same features whichever sign it is written with.
    """
    axes = [torch.fft.fftfreq(n, device=device) for n in shape]
    nu = torch.stack([a.flatten() for a in torch.meshgrid(*axes, indexing="ij")], 1)  # (cells, axes)
    angle = 2 * torch.pi * (nu[:, :, None] * torch.arange(1, HARMONICS + 1, device=device)).flatten(1)
    return angle.cos(), angle.sin()


class NeuralBandPass(nn.Module):
    """A small network from a frequency to gains in (0, 2), one for each head; at first all are 1.

    The time step scales and shifts its normalised hidden layer (adaptive layer norm).
    """

    def __init__(self, dim: int, heads: int, embedding: int, hidden: int = 32):
        super().__init__()
        self.first = nn.Linear(2 * dim * HARMONICS, hidden)
        self.film = zero(nn.Linear(embedding, 2 * hidden))
        self.last = zero(nn.Linear(hidden, heads))

    def forward(self, shape: Sequence[int], embedding: Tensor) -> Tensor:
        """Gains ``(B, heads, *shape)`` at the time embedding ``(B, E)``, even in the frequency."""
        cos, sin = frequency_features(shape, embedding.device)
        scale, shift = self.film(embedding)[:, None].chunk(2, -1)  # (B, 1, hidden)

        def response(features: Tensor) -> Tensor:
            h = self.first(features)
            return self.last(F.silu(F.layer_norm(h, h.shape[-1:]) * (1 + scale) + shift))

        even = (response(torch.cat([cos, sin], 1)) + response(torch.cat([cos, -sin], 1))) / 2  # nu and -nu
        return (2 * even.sigmoid()).transpose(1, 2).unflatten(2, tuple(shape))


class SpectralCrossAttention(nn.Module):
    """``y = x + W_o F^-1[H . softmax(Re(Q K*) / sqrt(2 d)) V]``, then ``y + MLP(y)``: x asks, the context answers.

    Q is the spectrum of x, K and V are spectra of the context, H is the neural band-pass filter. An affinity is the
    inner product of two frequencies' channel vectors. Q and K are normalised at each frequency, because the mean of an
    embedding outweighs its other frequencies by orders of magnitude. Each frequency also has a learnt code, added to Q
    and K, so that frequencies can find their like in the context even where x is pure noise.

    ``spatial`` is the published form: values v stay in space, and it is the affinity map that is filtered and transformed
    back along both of its axes, ``y = x + W_o softmax(F^-1[H . Q K*] / sqrt(2 d)) v``.
    """

    def __init__(self, dim: int, channels: int, embedding: int, band_pass: bool = True, spatial: bool = False):
        """``channels`` of x and of the context, a multiple of ``HEAD_CHANNELS``; without ``band_pass`` H = 1."""
        super().__init__()
        self.heads, self.spatial = channels // HEAD_CHANNELS, spatial
        self.norm_x, self.norm_context, self.norm_mlp = (ChannelNorm(channels) for _ in range(3))
        self.query, self.key, self.value = (conv(dim, channels, channels, 1) for _ in range(3))
        n = dim * HARMONICS
        self.code = nn.Parameter(torch.randn(self.heads, n, HEAD_CHANNELS) * (2 / n) ** 0.5)  # numbers of variance 1
        self.band_pass = NeuralBandPass(dim, self.heads, embedding) if band_pass else None
        self.out = zero(conv(dim, channels, channels, 1))
        self.mlp = nn.Sequential(conv(dim, channels, 2 * channels, 1), nn.SiLU(), zero(conv(dim, 2 * channels, channels, 1)))

    def forward(self, x: Tensor, context: Tensor, embedding: Tensor) -> Tensor:
        """x, context ``(B, C, *grid)``, time embedding ``(B, E)`` -> ``(B, C, *grid)``."""
        shape = x.shape[2:]
        # Rounding to half precision would break the symmetry of the spectra.
        with _full_precision(x.device):
            x, context, embedding = x.float(), context.float(), embedding.float()
            gains = None if self.band_pass is None else self.band_pass(shape, embedding).flatten(2)[..., None]
            if self.spatial:
                x = x + self.out(self._spatial_answer(x, context, gains))
                return x + self.mlp(self.norm_mlp(x))
            weights = self.affinity(x, context).softmax(-1)
            answer = weights @ self._frequencies(self.value(self.norm_context(context)))  # (B, heads, cells, 2 d)
            if gains is not None:
                answer = answer * gains
            x = x + self.out(from_spectrum(self._spectrum(answer, shape)))
            return x + self.mlp(self.norm_mlp(x))

    def _spatial_answer(self, x: Tensor, context: Tensor, gains: Tensor | None) -> Tensor:
        """The published form, ``(B, C, *grid)``: F^-1[H Q K*] is (F^-1[H Q]) (F^-1 K)^T, so the map itself is never complex."""
        shape = x.shape[2:]
        q, k = self._coded(self.query(self.norm_x(x))), self._coded(self.key(self.norm_context(context)))
        q = self._cells(from_spectrum(self._spectrum(q if gains is None else q * gains, shape)))
        k = self._cells(from_spectrum(self._spectrum(k, shape)))
        v = self._cells(self.value(self.norm_context(context)))
        weights = (q @ k.transpose(2, 3) / (2 * HEAD_CHANNELS) ** 0.5).softmax(-1)
        return (weights @ v).transpose(2, 3).flatten(1, 2).unflatten(2, shape)

    def _cells(self, x: Tensor) -> Tensor:  # (B, C, *grid) -> (B, heads, cells, d)
        return x.flatten(2).unflatten(1, (self.heads, -1)).transpose(2, 3)

    def affinity(self, x: Tensor, context: Tensor) -> Tensor:
        """Of each frequency of x to each one of the context ``(B, heads, cells, cells)``, before the softmax."""
        q = self._coded(self.query(self.norm_x(x)))
        k = self._coded(self.key(self.norm_context(context)))
        return q @ k.transpose(2, 3) / q.shape[-1] ** 0.5

    def _coded(self, x: Tensor) -> Tensor:
        tokens = self._frequencies(x)
        tokens = tokens * torch.rsqrt(tokens.square().mean(-1, keepdim=True) + 1e-5)
        cos, sin = frequency_features(x.shape[2:], x.device)
        # Real weights on exp(2 pi i k nu): the code of -nu is the conjugate of that of nu.
        return tokens + torch.stack([cos @ self.code, sin @ self.code], -1).flatten(-2)

    def _frequencies(self, x: Tensor) -> Tensor:
        """``(B, C, *grid)`` -> spectrum as real numbers ``(B, heads, cells, 2 d)``, real and imaginary parts in turn."""
        tokens = to_spectrum(x).flatten(2).unflatten(1, (self.heads, -1)).transpose(2, 3)
        return torch.view_as_real(tokens).flatten(-2)

    def _spectrum(self, tokens: Tensor, shape: Sequence[int]) -> Tensor:
        """Inverse of :meth:`_frequencies`, still in Fourier space: ``(B, C, *grid)`` complex."""
        spectrum = torch.view_as_complex(tokens.unflatten(-1, (-1, 2)).contiguous())
        return spectrum.transpose(2, 3).flatten(1, 2).unflatten(2, tuple(shape))


class SSFormerBlock(nn.Module):
    """Two symmetric cross-attentions: the semantic embedding asks the noise embedding, then the noise asks the blend."""

    def __init__(self, dim: int, channels: int, embedding: int, band_pass: bool = True, spatial: bool = False):
        super().__init__()
        self.semantic_asks = SpectralCrossAttention(dim, channels, embedding, band_pass, spatial)
        self.noise_asks = SpectralCrossAttention(dim, channels, embedding, band_pass, spatial)

    def forward(self, semantic: Tensor, noise: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
        semantic = self.semantic_asks(semantic, noise, embedding)
        return semantic, self.noise_asks(noise, semantic, embedding)


class FigureBlock(nn.Module):
    """Roles of the published figure: the noise asks the image, the result asks the noise, and the result goes on."""

    def __init__(self, dim: int, channels: int, embedding: int, band_pass: bool = True, spatial: bool = False):
        super().__init__()
        self.noise_asks = SpectralCrossAttention(dim, channels, embedding, band_pass, spatial)
        self.result_asks = SpectralCrossAttention(dim, channels, embedding, band_pass, spatial)

    def forward(self, semantic: Tensor, noise: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
        return semantic, self.result_asks(self.noise_asks(noise, semantic, embedding), noise, embedding)


class SSFormer(nn.Module):
    """Blocks in a row; what comes out is the noise embedding that the diffusion model's decoder goes on with."""

    def __init__(
        self,
        dim: int,
        channels: int,
        embedding: int,
        blocks: int,
        *,
        figure_roles: bool = False,
        band_pass: bool = True,
        spatial: bool = False,
    ):
        super().__init__()
        block = FigureBlock if figure_roles else SSFormerBlock
        self.blocks = nn.ModuleList(block(dim, channels, embedding, band_pass, spatial) for _ in range(blocks))

    def forward(self, semantic: Tensor, noise: Tensor, embedding: Tensor) -> Tensor:
        """semantic ``(1 or N, C, *grid)``, noise ``(N, C, *grid)``, time embedding ``(N, E)`` -> ``(N, C, *grid)``."""
        semantic = semantic.expand_as(noise)
        for block in self.blocks:
            semantic, noise = block(semantic, noise, embedding)
        return noise
