"""The label decoder against the same network in plain torch, slab by slab, and with images that share a batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nndiffseg.methods.latent.label_decoder import GAIN, LabelDecoder

CHANNELS, LATENT = (4, 6, 8), 5
STRIDES = [((2, 2),), ((2, 2), (2, 2)), ((2, 2, 2), (2, 2, 2)), ((1, 2, 3), (2, 2, 2))]

strides_of = pytest.mark.parametrize("strides", STRIDES, ids=str)
#: both ways to order the products of the finest stage
heads_of = pytest.mark.parametrize("heads", [3, 9], ids=["fewer heads than channels", "more heads than channels"])


def make(strides, heads: int = 3) -> LabelDecoder:
    torch.manual_seed(0)
    return LabelDecoder(len(strides[0]), heads, strides, CHANNELS[: len(strides) + 1], LATENT)


def cumulative(strides) -> list[tuple[int, ...]]:
    """Voxels per cell of each stage, full resolution first."""
    out = [(1,) * len(strides[0])]
    for s in strides:
        out.append(tuple(a * b for a, b in zip(out[-1], s, strict=True)))
    return out


def inputs(strides, samples: int, images: int = 1, grid=(3, 4, 5)) -> tuple[Tensor, list[Tensor]]:
    """Latents ``(samples * images, ...)`` and the images' guides."""
    g = torch.Generator().manual_seed(1)
    grid, steps = grid[: len(strides[0])], cumulative(strides)
    patch = [n * s for n, s in zip(grid, steps[-1], strict=True)]
    guides = [
        torch.randn(images, c, *(n // s for n, s in zip(patch, stride, strict=True)), generator=g)
        for c, stride in zip(CHANNELS, steps, strict=False)
    ]
    return torch.randn(samples * images, LATENT, *grid, generator=g), guides


def plain(decoder: LabelDecoder, latent: Tensor, guides: list[Tensor | None]) -> Tensor:
    """One item with its own guides, as the definition reads."""
    h = decoder.stem(latent)
    for s in range(len(decoder.strides), 0, -1):
        if s < len(decoder.strides):
            h = decoder.narrow[s - 1](h)
            for axis, factor in enumerate(decoder.strides[s], start=2):
                h = h.repeat_interleave(factor, axis)
        h = h if guides[s] is None else h + guides[s]
        h = h + decoder.convs[s - 1](F.silu(decoder.norms[s - 1](h)))
    h = decoder.finest(h) if guides[0] is None else decoder.finest(h) + guides[0]
    return GAIN * decoder.head(F.silu(h))


@strides_of
@heads_of
@pytest.mark.parametrize("images", [1, 2])
def test_it_is_the_plain_network_item_by_item_with_the_guides_of_image_i_mod_g(strides, heads, images):
    decoder, (latents, guides) = make(strides, heads), inputs(strides, 3, images)
    expected = torch.cat([plain(decoder, z[None], [g[i % images, None] for g in guides]) for i, z in enumerate(latents)])
    assert expected.shape[1] == heads and expected.shape[2:] == guides[0].shape[2:]
    torch.testing.assert_close(decoder(latents, guides), expected, rtol=1e-4, atol=1e-5)
    before = [x.clone() for x in (latents, *guides)]
    with torch.no_grad():
        torch.testing.assert_close(decoder(latents, guides), expected, rtol=1e-4, atol=1e-5)
    assert all(map(torch.equal, before, (latents, *guides))), "it overwrites its own results, never what it was given"


@strides_of
@heads_of
def test_every_stage_does_without_its_guide(strides, heads):
    decoder, (latents, guides) = make(strides, heads), inputs(strides, 2)
    for missing in range(len(guides)):
        some = [None if s == missing else g for s, g in enumerate(guides)]
        expected = plain(decoder, latents, some)
        torch.testing.assert_close(decoder(latents, some), expected, rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            torch.testing.assert_close(decoder(latents, some), expected, rtol=1e-4, atol=1e-5)


@heads_of
def test_gradients_are_those_of_the_plain_network(heads):
    strides = STRIDES[2]
    decoder, (latents, guides) = make(strides, heads), inputs(strides, 2)
    for x in (latents, *guides):
        x.requires_grad_()
    wanted = [latents, *guides, *decoder.parameters()]
    expected = plain(decoder, latents, guides)
    probe = torch.randn_like(expected)
    for mine, reference in zip(
        torch.autograd.grad((decoder(latents, guides) * probe).sum(), wanted),
        torch.autograd.grad((expected * probe).sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=2e-3)


@pytest.mark.parametrize(
    ("strides", "rows"),
    [(((2, 2, 2), (2, 2, 2)), 12), (((1, 2, 2), (1, 2, 2)), 24), (((2, 2), (2, 2)), 12), (((2, 2),), 10)],
    ids=str,
)
def test_a_slab_with_halo_decodes_as_the_whole(strides, rows):
    decoder, (latents, guides) = make(strides), inputs(strides, 2, grid=(rows, 4, 4))
    steps = cumulative(strides)
    row = steps[-1][0]  # voxels
    whole, first, last = decoder(latents, guides), rows // 2 - 1, rows // 2 + 1
    low, high = first - decoder.halo, last + decoder.halo
    assert low > 0 and high < rows, "the slab must be cut on both sides for this test to say something"
    slab = decoder(
        latents[:, :, low:high],
        [g[:, :, low * row // s[0] : high * row // s[0]] for g, s in zip(guides, steps, strict=True)],
    )
    inner = slab[:, :, (first - low) * row : (last - low) * row]
    torch.testing.assert_close(inner, whole[:, :, first * row : last * row])


def test_the_halo_is_not_wider_than_needed_by_a_whole_cell():
    """A narrower one is wrong for two stages: the outermost cell of the halo reaches the slab."""
    strides = ((2, 2), (2, 2))
    decoder, (latents, guides) = make(strides), inputs(strides, 1, grid=(13, 3))
    latents.requires_grad_()
    decoder(latents, guides)[:, :, 6 * 4 : 7 * 4].square().sum().backward()
    rows = latents.grad.abs().amax((0, 1, 3)).nonzero().flatten()
    assert [int(rows.min()), int(rows.max())] == [6 - decoder.halo, 6 + decoder.halo]
