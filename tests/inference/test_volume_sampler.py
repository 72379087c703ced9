"""The sampler's contracts: coherent noise, no seams, and results that depend on seed and case alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nndiffseg.diffusion.noise.field import NoiseField
from nndiffseg.diffusion.noise.source import FieldNoise
from nndiffseg.inference import volume_sampler
from nndiffseg.inference.sampling import SamplingOptions, in_chunks, samples_of_fold
from nndiffseg.inference.stages import PreviousStage
from nndiffseg.inference.volume_sampler import VolumeSampler
from nndiffseg.nn.tiling import Frame, common_multiple
from nndiffseg.uncertainty.statistics import FusedSums, PartSums

OPTIONS = SamplingOptions(samples=4, precision="float32")


def image(shape=(18, 30, 26), channels=1, seed=0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(channels, *shape, generator=generator)
    return torch.nn.functional.avg_pool3d(noise[None], 3, 1, 1)[0] * 3


def run(network, data, labels, options=OPTIONS, *, patch=(8, 16, 16), case="case", samples=None, weight=None, **kwargs):
    """Sums and label maps of one fold."""
    samples = list(range(options.samples)) if samples is None else samples
    sampler = VolumeSampler(network.eval(), patch, labels, torch.device("cpu"), options, **kwargs)
    size = labels.num_segmentation_heads, tuple(data.shape[1:]), torch.device("cpu")
    sums = PartSums(*size) if weight is None else FusedSums(*size, weight)
    maps = np.zeros((options.samples, *data.shape[1:]), np.uint8)
    sampler.run(data, case, samples, sums, maps)
    return sums, maps


@pytest.fixture
def network(tiny_network):
    return tiny_network()


def test_equals_a_plain_computation_on_the_whole_volume(network, three_labels):
    """With one tile the result is encode, sample, decode of the whole padded image, done here by hand."""
    data = image((10, 30, 26))
    sums, labels = run(network, data, three_labels, patch=(12, 32, 28))
    frame = Frame.around((10, 30, 26), (12, 32, 28), common_multiple(network))
    inside = (slice(None), slice(1, 11), slice(1, 31), slice(1, 27))
    with torch.inference_mode():
        maps = network.encode(frame.pad(data[None]))
        fields = [NoiseField(0, "case", n) for n in range(4)]
        z = network.sample(maps, lambda s, c, k: torch.stack([f.draw(s, c, (6, 8, 7), scale=k) for f in fields]))
        p = network.decode(z, maps).softmax(1)
    torch.testing.assert_close(sums.sampled, p.mean(0)[inside], atol=1e-5, rtol=0)
    torch.testing.assert_close(sums.deterministic, maps[0].softmax(1)[0][inside], atol=1e-5, rtol=0)
    assert (labels == p.argmax(1)[inside].numpy()).mean() > 0.9999


def test_slabs_equal_the_whole(network, three_labels):
    data = image()
    whole, whole_labels = run(network, data, three_labels)
    slabs, slab_labels = run(network, data, three_labels, replace(OPTIONS, memory=1))
    torch.testing.assert_close(slabs.sampled, whole.sampled, atol=1e-5, rtol=0)
    assert (slab_labels == whole_labels).mean() > 0.9999


def test_chunks_do_not_change_a_sample(network, three_labels):
    data = image()
    _, together = run(network, data, three_labels)
    for n in range(4):
        _, alone = run(network, data, three_labels, samples=[n])
        assert (alone[n] == together[n]).mean() > 0.9999


def test_on_the_cpu_few_samples_of_a_large_slab_are_decoded_at_once(network, three_labels, monkeypatch):
    """Large tensors cost twice their time there; the slab itself may use all the memory."""
    data, decode, seen = image(), network.decode, []
    whole, _ = run(network, data, three_labels)

    def watch(latents, maps):
        seen.append((len(latents), latents.shape[2]))
        return decode(latents, maps)

    monkeypatch.setattr(network, "decode", watch)
    run(network, data, three_labels)
    rows = max(r for _, r in seen)
    assert {n for n, _ in seen} == {4}, "all four samples fit"
    monkeypatch.setattr(volume_sampler, "CPU_BATCH_BYTES", 1)
    seen.clear()
    one_by_one, _ = run(network, data, three_labels)
    assert set(seen) == {(1, rows)}, "one sample at a time, slabs as thick as before"
    torch.testing.assert_close(one_by_one.sampled, whole.sampled, atol=1e-5, rtol=0)


def test_same_seed_is_identical_and_another_is_not(network, three_labels):
    data = image()
    first, labels = run(network, data, three_labels)
    again, labels_again = run(network, data, three_labels)
    other, labels_other = run(network, data, three_labels, replace(OPTIONS, seed=1))
    _, labels_case = run(network, data, three_labels, case="another case")
    assert torch.equal(first.sampled, again.sampled) and np.array_equal(labels, labels_again)
    assert torch.equal(first.deterministic, other.deterministic)
    assert all((labels[n] != labels_other[n]).mean() > 0.01 for n in range(4))
    assert (labels != labels_case).mean() > 0.01 and (labels[0] != labels[1]).mean() > 0.01


@pytest.mark.parametrize("step_size", [0.3, 0.5, 1.0])
def test_noise_does_not_depend_on_the_step_size(network, three_labels, step_size, monkeypatch):
    drawn = []
    original = FieldNoise.__call__

    def record(self, *args):
        drawn.append(original(self, *args))
        return drawn[-1]

    monkeypatch.setattr(FieldNoise, "__call__", record)
    run(network, image(), three_labels, replace(OPTIONS, step_size=step_size), patch=(8, 16, 16))
    expected = NoiseField(0, "case", 2).draw(0, 2, (9, 8, 7))
    assert torch.equal(drawn[0][2], expected)


def test_a_convolution_gives_the_same_maps_at_any_step_size(network, three_labels):
    """Away from tile borders a convolution does not see its tile, so blending must reproduce it."""
    data = image((16, 32, 32))
    fine, _ = run(network, data, three_labels, replace(OPTIONS, step_size=0.25))
    whole, _ = run(network, data, three_labels, patch=(16, 32, 32))
    # The Gaussian weighs tile borders, where zero padding is seen, down to less than one per cent.
    assert (fine.deterministic - whole.deterministic).abs().mean() < 0.01


def test_no_seams(tiny_network, three_labels):
    """The jump of a sample's probability across tile borders is not larger than elsewhere (ratio at most 1.1)."""
    network = tiny_network(norm=True)  # instance norm over the tile makes tiles disagree, as in a real network
    data = image((32, 64, 64))
    sums, _ = run(network, data, three_labels, samples=[0], patch=(16, 32, 32))
    for axis, borders in ((1, range(8, 32, 8)), (2, range(16, 64, 16)), (3, range(16, 64, 16))):
        jump = sums.sampled.diff(dim=axis).abs().mean([i for i in range(4) if i != axis])
        at = torch.zeros(len(jump), dtype=torch.bool)
        at[[b - 1 for b in borders]] = True
        # Compare with the other borders of latent cells: nearest up-sampling jumps there in every network.
        cell = torch.arange(1, len(jump) + 1) % network.stride[axis - 1] == 0
        assert jump[at].mean() / jump[cell & ~at].mean() < 1.1


@pytest.mark.parametrize("axes", [(0,), (1, 2), (0, 1, 2)])
def test_a_mirrored_pass_of_a_symmetric_network_changes_nothing(tiny_network, three_labels, axes):
    """Flips commute with a network of symmetric kernels, so any error of flip, noise or placement shows."""
    network = tiny_network()
    for module in network.modules():
        if isinstance(module, torch.nn.Conv3d):
            w = module.weight.data
            module.weight.data = sum(w.flip(f) for f in ([], [2], [3], [4], [2, 3], [2, 4], [3, 4], [2, 3, 4])) / 8 * 2
    data = image((11, 19, 30))  # odd sizes: padding is not symmetric
    plain, labels = run(network, data, three_labels, patch=(12, 20, 32))
    mirrored, mirrored_labels = run(network, data, three_labels, replace(OPTIONS, mirror_axes=axes), patch=(12, 20, 32))
    torch.testing.assert_close(mirrored.deterministic, plain.deterministic, atol=1e-5, rtol=0)
    torch.testing.assert_close(mirrored.sampled, plain.sampled, atol=1e-5, rtol=0)
    assert (labels == mirrored_labels).mean() > 0.9999


def test_mirroring_is_spread_over_the_samples(network, three_labels):
    data, tiles = image((8, 16, 16)), []
    options = replace(OPTIONS, mirror_axes=(1, 2))
    run(network, data, three_labels, options, on_tile=lambda: tiles.append(1))
    assert len(tiles) == 4  # four flips, one tile each, whatever the number of samples
    _, plain = run(network, data, three_labels)
    _, mirrored = run(network, data, three_labels, options)
    assert np.array_equal(plain[0], mirrored[0])  # the first sample sees the unmirrored image
    assert all((plain[n] != mirrored[n]).any() for n in range(1, 4))


def test_fused_sums_equal_the_weighted_parts(network, three_labels):
    data = image((8, 16, 16))
    parts, _ = run(network, data, three_labels)
    fused, _ = run(network, data, three_labels, weight=0.3)
    expected = 0.3 * parts.deterministic + 0.7 * parts.sampled
    torch.testing.assert_close(fused.fused, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(fused.fused.sum(0), torch.ones(8, 16, 16), atol=1e-5, rtol=0)


def test_slices_of_a_volume_share_their_noise(tiny_network, three_labels):
    """In a 2D configuration two equal slices get equal samples, so a sample is coherent through the volume."""
    network = tiny_network(stride=(4, 4))
    data = image((3, 30, 26))[:, 1:2].repeat(1, 5, 1, 1)
    sums, labels = run(network, data, three_labels, patch=(16, 16), slice_batch=2)
    assert all(np.array_equal(labels[:, 0], labels[:, z]) for z in range(5))
    assert (labels[0] != labels[1]).any()
    torch.testing.assert_close(sums.sampled.sum(0), torch.ones(5, 30, 26), atol=1e-5, rtol=0)


def test_slice_batches_do_not_change_a_sample(tiny_network, three_labels):
    network, data = tiny_network(stride=(4, 4)), image((5, 30, 26))
    options = replace(OPTIONS, mirror_axes=(0,))
    _, one = run(network, data, three_labels, options, patch=(16, 16), slice_batch=1)
    _, all_ = run(network, data, three_labels, options, patch=(16, 16), slice_batch=8)
    assert (one == all_).mean() > 0.9999


def test_regions_use_the_sigmoid_and_the_order_of_the_dataset(tiny_network):
    regions = LabelManager({"background": 0, "whole": (1, 2), "core": (2,)}, [1, 2])
    network, data = tiny_network(heads=2), image((8, 16, 16))
    sums, labels = run(network, data, regions, samples=[0])
    p = sums.sampled
    expected = torch.where(p[1] > 0.5, 2, torch.where(p[0] > 0.5, 1, 0))
    assert np.array_equal(labels[0], expected.numpy())
    assert set(np.unique(labels)) == {0, 1, 2}


def test_patch_must_fit_the_strides(network, three_labels):
    with pytest.raises(ValueError, match="multiple"):
        VolumeSampler(network, (9, 16, 16), three_labels, torch.device("cpu"), OPTIONS)


def test_samples_are_dealt_out_to_the_folds():
    assert [samples_of_fold(7, k, 3) for k in range(3)] == [[0, 3, 6], [1, 4], [2, 5]]
    assert [samples_of_fold(1, k, 3) for k in range(3)] == [[0], [1], [2]]
    assert samples_of_fold(4, 0, 1) == [0, 1, 2, 3]


def test_chunks_shrink_on_a_full_gpu_only():
    sizes = []

    def work(chunk):
        sizes.append(len(chunk))
        if len(chunk) > 2:
            raise torch.cuda.OutOfMemoryError("full")
        return sum(chunk)

    assert sum(result for _, result in in_chunks(work, range(10), 8)) == 45
    assert sizes[:3] == [8, 4, 2] and max(sizes[2:]) == 2
    with pytest.raises(torch.cuda.OutOfMemoryError):
        list(in_chunks(lambda _: (_ for _ in ()).throw(torch.cuda.OutOfMemoryError()), range(3), 1))
    with pytest.raises(RuntimeError, match="a bug"):
        list(in_chunks(lambda _: (_ for _ in ()).throw(RuntimeError("a bug")), range(3), 3))


def test_maps_and_sums_stay_on_the_cpu_where_that_is_asked_for(network, three_labels):
    """``--not_on_device``; on the CPU itself it changes nothing."""
    data, gpu = image((8, 16, 16)), torch.device("cuda")
    plenty = replace(OPTIONS, memory=2**40)
    asked = replace(plenty, sums_on_device=False)
    devices = [VolumeSampler(network, (8, 16, 16), three_labels, gpu, o).sums_device(data).type for o in (plenty, asked)]
    assert devices == ["cuda", "cpu"]
    plain, labels = run(network, data, three_labels)
    kept, kept_labels = run(network, data, three_labels, replace(OPTIONS, sums_on_device=False))
    assert torch.equal(plain.sampled, kept.sampled) and np.array_equal(labels, kept_labels)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_sums_on_the_cpu_are_those_of_the_gpu(network, three_labels):
    data, results = image((8, 16, 16)), []
    for on_device in (True, False):
        options = replace(OPTIONS, sums_on_device=on_device)
        sampler = VolumeSampler(network.eval().cuda(), (8, 16, 16), three_labels, torch.device("cuda"), options)
        store = sampler.sums_device(data)
        assert (store.type == "cuda") == on_device
        sums = PartSums(three_labels.num_segmentation_heads, tuple(data.shape[1:]), store)
        sampler.run(data, "case", range(4), sums, np.zeros((4, *data.shape[1:]), np.uint8))
        results.append(sums.sampled.cpu())
    torch.testing.assert_close(*results, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("stride", "patch"), [((2, 4, 4), (8, 16, 16)), ((4, 4), (16, 16))])
def test_a_stage_before_is_seen_as_one_channel_for_each_label(tiny_network, three_labels, stride, patch):
    """As nnU-Net's further channels, in volumes and in slices, mirrored too; samples start from samples."""
    network, data = tiny_network(stride, channels=3), image()
    rng = np.random.default_rng(0)
    segmentation, start = rng.integers(0, 3, (2, *data.shape[1:])).astype(np.uint8)
    options = replace(OPTIONS, samples=2, mirror_axes=(1,))

    def with_channels(labels):
        return torch.cat([data, torch.stack([torch.from_numpy(labels == value) for value in (1, 2)]).float()])

    def run_after(samples):
        sampler = VolumeSampler(network.eval(), patch, three_labels, torch.device("cpu"), options)
        sums, maps = PartSums(3, tuple(data.shape[1:]), torch.device("cpu")), np.zeros((2, *data.shape[1:]), np.uint8)
        sampler.run(data, "case", [0, 1], sums, maps, PreviousStage(segmentation, samples))
        return sums, maps

    expected, expected_maps = run(network, with_channels(segmentation), three_labels, options, patch=patch)
    found, maps = run_after(start[None][:0])
    torch.testing.assert_close(found.deterministic, expected.deterministic)
    assert (maps == expected_maps).all()
    started, started_maps = run_after(start[None])
    torch.testing.assert_close(started.deterministic, expected.deterministic)
    unmirrored = replace(options, mirror_axes=())
    _, from_start = run(network, with_channels(start), three_labels, unmirrored, patch=patch)
    assert (started_maps == from_start).mean() > 0.9999 and (started_maps != expected_maps).any()
