"""Label-space sampling: tiles make one volume, and noise and vectors depend on seed, case and sample alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from scipy import stats
from torch import Tensor, nn

from nndiffseg.diffusion.ancestral import sample_ancestral
from nndiffseg.diffusion.noise.field import NoiseField
from nndiffseg.diffusion.noise.source import FieldNoise
from nndiffseg.diffusion.schedules import Linear, timesteps
from nndiffseg.inference.sampling import SamplingOptions
from nndiffseg.inference.volume_sampler import VolumeSampler
from nndiffseg.methods.label_space import LabelSpaceNetwork
from nndiffseg.nn.heads import Heads
from nndiffseg.uncertainty.statistics import PartSums

LABELS = LabelManager({"background": 0, "anterior": 1, "posterior": 2}, None)
OPTIONS = SamplingOptions(samples=4, precision="float32")


class Pointwise(LabelSpaceNetwork):
    """Each voxel's x0 is a function of that voxel alone, so tiles must not be visible at all."""

    vector_channels = 5

    def __init__(self, patch: Sequence[int], steps: int = 3):
        super().__init__(Heads(3), patch, Linear(), "ancestral", steps)
        generator = torch.Generator().manual_seed(0)
        conv = nn.Conv2d if len(patch) == 2 else nn.Conv3d
        self.image, self.label = conv(1, 3, 1, bias=False), conv(3, 3, 1, bias=False)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)

    def deterministic(self, image: Tensor) -> Tensor:
        return self.image(image)

    def condition(self, image: Tensor) -> Tensor:
        return self.image(image)

    def denoise(self, x: Tensor, t: Tensor, condition: Tensor, vector: Tensor | None) -> Tensor:
        assert vector is not None and vector.shape == (len(x), 5)
        ones = [1] * (x.ndim - 2)
        return torch.tanh(self.label(x) * (1.5 - t).view(-1, 1, *ones) + condition + vector[:, :3].view(-1, 3, *ones))

    def to_logits(self, x0: Tensor) -> Tensor:
        return 3 * x0


class Smoothing(Pointwise):
    """Sees its neighbours and the end of its tile, as a real network does."""

    def denoise(self, x: Tensor, t: Tensor, condition: Tensor, vector: Tensor | None) -> Tensor:
        pool = nn.functional.avg_pool2d if x.ndim == 4 else nn.functional.avg_pool3d
        return super().denoise(pool(x, 3, 1, 1), t, pool(condition, 3, 1, 1), vector)


def image(shape: Sequence[int], seed: int = 0) -> Tensor:
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed))


def draw_for(samples: Sequence[int], grid: Sequence[int]) -> FieldNoise:
    return FieldNoise([NoiseField(0, "case", n) for n in samples], grid)


@pytest.mark.parametrize("patch", [(12, 16), (6, 8, 10)])
@pytest.mark.parametrize("network", [Pointwise, Smoothing])
def test_one_tile_equals_the_plain_sampler(network, patch):
    model, data = network(patch).eval(), image(patch)[None]
    draw = draw_for(range(4), patch)
    x0 = model.sample(model.encode(data), draw)
    expected = sample_ancestral(
        lambda x, t, i: model.denoise(x, t, model.condition(data), draw.vector(1 + 2 * i, 5)),
        draw(0, 3),
        timesteps(3),
        schedule=model.schedule,
        step_noise=lambda i, x: draw(2 + 2 * i, 3),
    )
    torch.testing.assert_close(x0, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("patch", "volume"), [((12, 16), (30, 35)), ((6, 8, 10), (13, 8, 22))])
def test_tiles_of_a_pointwise_denoiser_equal_the_whole(patch, volume):
    data = image(volume)[None]
    tiled, whole = Pointwise(patch).eval(), Pointwise(volume).eval()
    a, b = (model.sample(model.encode(data), draw_for(range(3), volume)) for model in (tiled, whole))
    torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_tiles_are_blended_in_every_step_and_not_at_the_end():
    """Tiles that were sampled one by one would each follow their own estimates; blended ones see each other's."""
    patch, volume = (12, 16), (12, 28)
    data, model = image(volume)[None], Smoothing((12, 16)).eval()
    maps, draw = model.encode(data), draw_for(range(2), volume)
    seen: list[Tensor] = []
    inner = model.denoise

    def denoise(x, t, condition, vector):
        seen.append(x)
        return inner(x, t, condition, vector)

    model.denoise = denoise  # type: ignore[method-assign]
    model.sample(maps, draw)
    tiles = len(seen) // 3
    assert tiles == 3 and patch[1] + (tiles - 1) * 6 == volume[1]
    for step in range(3):
        left, middle = seen[tiles * step], seen[tiles * step + 1]
        assert torch.equal(left[..., 6:], middle[..., :10]), "overlapping tiles must hold the same x_t"


@pytest.mark.parametrize(("budget", "kept"), [(2**30, 16), (7 * 4 * 3 * 12 * 16, 7), (1, 0)])
def test_conditions_are_computed_once_per_tile_as_far_as_the_memory_goes_and_samples_stay_the_same(budget, kept):
    model, data, tiles, steps = Smoothing((12, 16)).eval(), image((30, 35))[None], 16, 3
    model.condition_bytes = 0
    expected = model.sample(model.encode(data), draw_for(range(3), (30, 35)))
    model.condition_bytes, calls, inner = budget, [], model.condition
    model.condition = lambda part: (calls.append(part), inner(part))[1]  # type: ignore[method-assign]
    x0 = model.sample(model.encode(data), draw_for(range(3), (30, 35)))
    torch.testing.assert_close(x0, expected, atol=1e-5, rtol=0)
    assert len(calls) == kept + (tiles - kept) * steps


def test_the_number_of_steps_is_the_networks_own_unless_told():
    patch = (12, 16)
    model = Pointwise(patch, steps=2).eval()
    maps, times = model.encode(image(patch)[None]), []
    inner = model.denoise
    model.denoise = lambda x, t, c, v: (times.append(float(t[0])), inner(x, t, c, v))[1]  # type: ignore[method-assign]
    model.sample(maps, draw_for([0], patch))
    model.sample(maps, draw_for([0], patch), sampler="ddim", steps=4)
    assert times == [1.0, 0.5, 1.0, 0.75, 0.5, 0.25]


def run(
    data: Tensor, options: SamplingOptions = OPTIONS, *, patch=(8, 16, 16), case="case", network=Smoothing, samples=None
) -> tuple[PartSums, np.ndarray]:
    sampler = VolumeSampler(network(patch).eval(), patch, LABELS, torch.device("cpu"), options, slice_batch=2)
    sums = PartSums(3, tuple(data.shape[1:]), torch.device("cpu"))
    labels = np.zeros((options.samples, *data.shape[1:]), np.uint8)
    sampler.run(data, case, samples or list(range(options.samples)), sums, labels)
    return sums, labels


def test_volumes_depend_on_seed_case_and_sample_alone():
    data = image((11, 20, 26))
    sums, labels = run(data)
    again, labels_again = run(data)
    _, other_seed = run(data, replace(OPTIONS, seed=1))
    _, other_case = run(data, case="another")
    assert torch.equal(sums.sampled, again.sampled) and np.array_equal(labels, labels_again)
    assert all((labels[n] != other[n]).mean() > 0.01 for other in (other_seed, other_case) for n in range(4))
    assert (labels[0] != labels[1]).mean() > 0.01
    for n in range(4):
        _, alone = run(data, samples=[n])
        assert (alone[n] == labels[n]).mean() > 0.9999


@pytest.mark.parametrize("step_size", [0.3, 1.0])
def test_samples_do_not_depend_on_the_step_between_the_image_tiles(step_size):
    data = image((11, 20, 26))
    _, labels = run(data)
    _, others = run(data, replace(OPTIONS, step_size=step_size))
    assert (labels == others).mean() > 0.9999


@pytest.mark.parametrize("axes", [(0,), (1, 2), (0, 1, 2)])
def test_mirroring_changes_nothing_for_a_symmetric_network(axes):
    """The noise is mirrored with the image and the vector stays, so only an error of either would show."""
    data, patch = image((7, 13, 15)), (8, 14, 16)
    plain, labels = run(data, patch=patch)
    mirrored, mirrored_labels = run(data, replace(OPTIONS, mirror_axes=axes), patch=patch)
    torch.testing.assert_close(mirrored.sampled, plain.sampled, atol=1e-5, rtol=0)
    assert (labels == mirrored_labels).mean() > 0.9999


def test_slices_of_a_volume_share_noise_and_vector():
    data = image((3, 12, 14))[:, 1:2].repeat(1, 3, 1, 1)
    _, labels = run(data, patch=(12, 16))
    assert all(np.array_equal(labels[:, 0], labels[:, z]) for z in range(3))
    assert (labels[0] != labels[1]).mean() > 0.01


# ---- vectors ----------------------------------------------------------------------------------------------------------


def test_a_vector_is_a_function_of_seed_case_sample_and_stream():
    vector = NoiseField(0, "case", 0).vector(1, 100)
    assert vector.shape == (100,) and torch.equal(vector, NoiseField(0, "case", 0).vector(1, 100))
    assert torch.equal(NoiseField(0, "case", 0).vector(1, 7), vector[:7]), "fewer channels are the first channels"
    others = [
        NoiseField(1, "case", 0).vector(1, 100),
        NoiseField(0, "b", 0).vector(1, 100),
        NoiseField(0, "case", 1).vector(1, 100),
        NoiseField(0, "case", 0).vector(2, 100),
        NoiseField(0, "case", 0).draw(1, 1, (100,))[0],
        NoiseField(0, "case", 0).draw(1, 100, (1,))[:, 0],
    ]
    assert all(not torch.isclose(vector, other).any() for other in others)


def test_vectors_are_standard_normal_and_independent():
    vectors = torch.stack([torch.stack([NoiseField(3, "brain", n).vector(s, 101) for s in range(4)]) for n in range(200)])
    values = vectors.double().numpy()  # (sample, stream, channel)
    assert stats.kstest(values.ravel(), "norm").pvalue > 1e-4
    for axis in range(3):
        a, b = np.take(values, range(values.shape[axis] - 1), axis), np.take(values, range(1, values.shape[axis]), axis)
        for f in (lambda x: x, lambda x: (x**2 - 1) / np.sqrt(2)):  # a Box-Muller pair shares its radius's word
            assert abs(float(np.mean(f(a) * f(b)))) * np.sqrt(a.size) < 5


def test_the_samplers_draw_gives_each_sample_its_own_vector():
    draw = draw_for((2, 5), (4, 4))
    assert torch.equal(draw.vector(3, 10), torch.stack([NoiseField(0, "case", n).vector(3, 10) for n in (2, 5)]))
    cache: dict[tuple, Tensor] = {}
    draw = FieldNoise([NoiseField(0, "case", n) for n in (2, 5)], (4, 4), flip=(1,), cache=cache)
    noise = draw(3, 10)
    assert torch.equal(draw.vector(3, 10), draw_for((2, 5), (4, 4)).vector(3, 10)), "a vector has no place to mirror"
    assert torch.equal(draw(3, 10), noise), "a cached field must not be mixed up with a vector"
