"""The contract that every noise source passes, that of prediction and that of training alike."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from nndiffseg.diffusion.noise.field import NoiseField
from nndiffseg.diffusion.noise.source import ORIGINS, FieldNoise, NoiseSource, patch_noise

GRID = (6, 9, 8)


def volume(seed: int = 0, samples=(0, 1, 2), grid=GRID, origin=None) -> NoiseSource:
    """As prediction draws: three samples of one case."""
    return FieldNoise([NoiseField(seed, "case", n) for n in samples], grid, origin=origin)


def patches(seed: int = 0, samples=(0,), grid=GRID) -> NoiseSource:
    """As training draws: one sample of each of three patches."""
    return patch_noise(seed, 3, samples, grid)


SOURCES = pytest.mark.parametrize("make", [volume, patches])


@SOURCES
@pytest.mark.parametrize("scale", [1, 4])
def test_the_same_call_gives_the_same_noise_whatever_was_drawn_before(make: Callable[..., NoiseSource], scale):
    source, other = make(), make()
    first = source(3, 2, scale)
    other(0, 5, 1)
    other.vector(3, 4)
    assert first.shape == (3, 2, *GRID)
    assert torch.equal(source(3, 2, scale), first) and torch.equal(other(3, 2, scale), first)
    assert torch.equal(source.vector(3, 7), other.vector(3, 7))


@SOURCES
def test_another_stream_scale_seed_channel_or_sample_is_other_noise(make: Callable[..., NoiseSource]):
    source = make()
    noise = source(1, 2, 1)
    others = [source(2, 2, 1), source(1, 2, 2), make(seed=1)(1, 2, 1), noise.flip(1), noise.roll(1, 0), source(1, 4, 1)[:, 2:]]
    for other in others:
        correlation = torch.corrcoef(torch.stack([noise.flatten(), other.flatten()]))[0, 1]
        assert correlation.abs() < 0.1
    vectors = [source.vector(1, 50), source.vector(2, 50), make(seed=1).vector(1, 50), source.vector(1, 50).roll(1, 0)]
    assert all((vectors[0] - v).abs().mean() > 0.5 for v in vectors[1:])


@SOURCES
def test_more_channels_begin_with_the_same_ones(make: Callable[..., NoiseSource]):
    assert torch.equal(make()(1, 3, 4), make()(1, 8, 4)[:, :3])
    assert torch.equal(make().vector(1, 3), make().vector(1, 8)[:, :3])


@SOURCES
@pytest.mark.parametrize("scale", [1, 2, 5])
def test_it_is_standard_normal(make: Callable[..., NoiseSource], scale):
    noise = torch.stack([make(seed=s)(1, 50, scale) for s in range(20)])
    assert noise.mean().abs() < 0.02 and (noise.var() - 1).abs() < 0.03


@pytest.mark.parametrize("scale", [1, 3, 8])
def test_windows_agree_where_they_overlap(scale):
    """A shift of the coordinates is a shift of the noise."""
    shift = (2, 5, 1)
    whole = volume(grid=(12, 16, 12))(1, 2, scale)
    window = volume(origin=shift)(1, 2, scale)
    inside = tuple(slice(a, a + n) for a, n in zip(shift, GRID, strict=True))
    torch.testing.assert_close(window, whole[(slice(None), slice(None), *inside)], atol=1e-6, rtol=0)


def test_samples_do_not_depend_on_their_companions():
    together, alone = volume(samples=(0, 4, 7))(1, 2, 4), volume(samples=(4,))(1, 2, 4)
    assert torch.equal(together[1:2], alone)


def test_several_samples_of_a_batch_are_those_that_are_drawn_alone():
    """The order is that of the losses: sample 0 of all items, then sample 1."""
    both = patches(samples=(0, 1))(1, 2, 4)
    assert torch.equal(both, torch.cat([patches(samples=(0,))(1, 2, 4), patches(samples=(1,))(1, 2, 4)]))
    assert (both[:3] - both[3:]).abs().mean() > 0.5


def test_patches_of_different_steps_lie_at_different_places():
    """Otherwise the nodes of correlated noise would sit at fixed cells, where the interpolated noise looks different."""
    origins = {tuple(patch_noise(seed, 1, (0,), GRID).origin) for seed in range(20)}
    assert len({tuple(v % 16 for v in origin) for origin in origins}) > 15


def test_a_mirrored_window_sees_mirrored_noise_and_a_cache_keeps_it():
    cache: dict = {}
    fields = [NoiseField(0, "case", n) for n in range(3)]
    mirrored = FieldNoise(fields, GRID, flip=(1,), cache=cache)
    assert torch.equal(mirrored(1, 2, 4), volume()(1, 2, 4).flip(3))
    assert torch.equal(FieldNoise(fields, GRID, flip=(1,), cache=cache)(1, 2, 4), mirrored(1, 2, 4)) and len(cache) == 1
    assert torch.equal(mirrored.vector(1, 5), volume().vector(1, 5)), "a vector has no place to mirror"


@pytest.mark.parametrize("origin", [None, (9, 1, 4)])
@pytest.mark.parametrize("scale", [1, 2, 4])
def test_every_sample_has_the_window_of_its_own_field(scale, origin):
    source, fields = volume(5, origin=origin), [NoiseField(5, "case", n) for n in range(3)]
    assert torch.equal(source(6, 3, scale), torch.stack([f.draw(6, 3, GRID, origin, scale) for f in fields]))
    assert torch.equal(source.vector(6, 5), torch.stack([f.vector(6, 5) for f in fields]))
    assert torch.equal(source(6, 3), source(6, 3, 1)), "cells are independent unless a scale is given"


def test_a_cache_tells_all_draws_apart():
    cache: dict = {}
    fields = [NoiseField(0, "case", n) for n in range(3)]
    cached, reversed_ = FieldNoise(fields, GRID, cache=cache), FieldNoise(fields[::-1], GRID, cache=cache)
    for _ in range(2):  # the second time from the cache
        for key in ((0, 2, 1), (1, 2, 1), (0, 3, 1), (0, 2, 4)):
            assert torch.equal(cached(*key), volume()(*key))
            assert torch.equal(reversed_(*key), volume()(*key).flip(0))
    assert cached(0, 2) is FieldNoise(fields, GRID, cache=cache)(0, 2, 1) and len(cache) == 8


def test_noise_is_drawn_on_the_asked_device():
    for source in (FieldNoise([NoiseField(0, "case", 0)], GRID, device="meta"), patch_noise(0, 2, [0], GRID, "meta")):
        assert source(0, 2).device.type == source(0, 2, 4).device.type == source.vector(0, 2).device.type == "meta"


def test_items_of_a_batch_do_not_depend_on_its_size_and_share_nothing():
    for draw in (lambda n: n(5, 2), lambda n: n(5, 2, 4), lambda n: n.vector(5, 2)):
        noise = draw(patch_noise(4, 3, [0, 1], GRID))
        assert torch.equal(draw(patch_noise(4, 2, [0], GRID)), noise[:2])
        values = torch.cat([noise, draw(patch_noise(5, 3, [0, 1], GRID))]).flatten(1)
        assert len(values.unique(dim=0)) == 12, "no two items, samples or seeds share their noise"


def test_places_of_patches_are_uniform_in_the_field_with_axes_of_their_own():
    origins = torch.tensor([patch_noise(seed, 1, [0], GRID).origin for seed in range(400)]).double()
    assert origins.shape == (400, 3) and origins.min() >= 0 and origins.max() < ORIGINS
    torch.testing.assert_close(origins.mean(0) / ORIGINS, torch.full((3,), 0.5).double(), atol=0.06, rtol=0)  # 4 errors
    assert torch.corrcoef(origins.T).triu(1).abs().max() < 0.2
