"""The SS-Former against its equations: spectra, band-pass filter, symmetric cross-attention."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from nndiffseg.methods.medsegdiff.ss_former import (
    HEAD_CHANNELS,
    FigureBlock,
    NeuralBandPass,
    SpectralCrossAttention,
    SSFormer,
    SSFormerBlock,
    frequency_features,
    from_spectrum,
    to_spectrum,
)

SHAPES = [(6, 8), (5, 7), (1, 5), (4, 5, 6), (3, 1, 2)]
CHANNELS = 2 * HEAD_CHANNELS


def randomised(module: torch.nn.Module, seed: int = 0, scale: float = 0.3) -> torch.nn.Module:
    """No parameter at zero, so that every part shows in the output."""
    generator = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        p.data = scale * torch.randn(p.shape, generator=generator)
    return module


def negated(x: torch.Tensor, axes: range) -> torch.Tensor:
    """x at the frequencies -nu."""
    return x.flip(list(axes)).roll([1] * len(axes), list(axes))


def inputs(shape, batch: int = 2):
    torch.manual_seed(1)
    return torch.randn(batch, CHANNELS, *shape), torch.randn(batch, CHANNELS, *shape), torch.randn(batch, 12)


@pytest.mark.parametrize("shape", SHAPES)
def test_unit_gains_are_the_identity(shape):
    x = torch.randn(2, 4, *shape)
    fresh = NeuralBandPass(len(shape), 4, 12)(shape, torch.randn(2, 12))
    torch.testing.assert_close(fresh, torch.ones(2, 4, *shape))
    torch.testing.assert_close(from_spectrum(fresh * to_spectrum(x)), x)


@pytest.mark.parametrize("shape", SHAPES)
def test_gains_are_positive_bounded_and_even_so_that_the_filtered_signal_is_real(shape):
    filter_ = randomised(NeuralBandPass(len(shape), 4, 12))
    gains = filter_(shape, torch.randn(2, 12))
    axes = range(2, 2 + len(shape))
    assert gains.shape == (2, 4, *shape) and (gains > 0).all() and (gains < 2).all()
    torch.testing.assert_close(gains, negated(gains, axes), rtol=1e-4, atol=1e-5)
    spectrum = gains * to_spectrum(torch.randn(2, 4, *shape))
    signal = torch.fft.ifftn(spectrum, dim=tuple(axes), norm="ortho")
    assert signal.imag.abs().max() < 1e-4 * signal.real.abs().max()


def test_the_time_step_moves_the_band():
    filter_ = randomised(NeuralBandPass(2, 1, 12), scale=0.2)  # larger gains saturate
    early, late = filter_((6, 6), torch.randn(2, 12))
    assert not torch.allclose(early / early.mean(), late / late.mean(), rtol=0.01), "it must do more than scale the gains"


def test_a_filter_can_pass_a_band():
    """Coarse frequencies pass, fine ones do not, after a little training; a box cannot be fitted by a constant."""
    torch.manual_seed(0)
    filter_, time = NeuralBandPass(2, 1, 4), torch.zeros(1, 4)
    nu = np.hypot(*np.meshgrid(np.fft.fftfreq(12), np.fft.fftfreq(12)))
    wanted = torch.tensor((nu > 0.15) & (nu < 0.4)).float()
    optimiser = torch.optim.Adam(filter_.parameters(), 0.02)
    for _ in range(150):
        optimiser.zero_grad()
        (filter_((12, 12), time)[0, 0] - wanted).square().mean().backward()
        optimiser.step()
    assert ((filter_((12, 12), time)[0, 0] > 0.5) == (wanted > 0.5)).float().mean() > 0.95


def test_features_belong_to_the_frequency_not_to_the_size_of_the_grid():
    coarse, fine = (frequency_features((n, 4))[0].view(n, 4, -1) for n in (6, 12))
    torch.testing.assert_close(coarse[:3], fine[:6:2])  # nu = 0, 1/6, 2/6


@pytest.mark.parametrize("shape", SHAPES)
def test_attention_keeps_the_conjugate_symmetry(shape):
    attention = randomised(SpectralCrossAttention(len(shape), CHANNELS, 12))
    x, context, _ = inputs(shape)
    affinity = attention.affinity(x, context).unflatten(3, shape).unflatten(2, shape)
    axes = range(2, 2 + 2 * len(shape))
    torch.testing.assert_close(affinity, negated(affinity, axes), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 4)])
def test_cross_attention_is_its_equation(shape):
    """Against complex arithmetic, frequency by frequency, with the transform written as a matrix."""
    attention = randomised(SpectralCrossAttention(len(shape), CHANNELS, 12))
    x, context, time = inputs(shape, batch=1)
    q, k = attention.norm_x(x), attention.norm_context(context)
    q, k, v = attention.query(q), attention.key(k), attention.value(k)
    cells = list(itertools.product(*map(range, shape)))
    size, d = np.array(shape), HEAD_CHANNELS
    wave = np.array([[np.exp(-2j * np.pi * np.sum(np.array(m) * np.array(n) / size)) for n in cells] for m in cells])
    wave /= np.sqrt(len(cells))
    answer = np.zeros((CHANNELS, len(cells)), complex)
    gains = attention.band_pass(shape, time).flatten(2)[0].detach().numpy()
    for head in range(2):
        part = slice(head * d, (head + 1) * d)
        Q, K, V = (wave @ t[0, part].flatten(1).T.detach().numpy() for t in (q, k, v))  # (cells, d)
        code = attention.code[head].detach().numpy()  # (axes * harmonics, d)
        harmonics = code.shape[0] // len(shape)
        waves = np.array(
            [
                [np.exp(2j * np.pi * h * m[a] / size[a]) for a in range(len(shape)) for h in range(1, harmonics + 1)]
                for m in cells
            ]
        )
        Q, K = (s / np.sqrt((np.abs(s) ** 2).sum(1, keepdims=True) / (2 * d) + 1e-5) + waves @ code for s in (Q, K))
        logits = (Q @ K.conj().T).real / np.sqrt(2 * d)
        weights = np.exp(logits - logits.max(1, keepdims=True))
        weights /= weights.sum(1, keepdims=True)
        answer[part] = (gains[head][:, None] * (weights @ V)).T
    answer = answer @ wave.conj()  # back to space, (channels, cells)
    assert np.abs(answer.imag).max() < 1e-5
    expected = x + attention.out(torch.tensor(answer.real, dtype=torch.float32).view(1, CHANNELS, *shape))
    expected = expected + attention.mlp(attention.norm_mlp(expected))
    torch.testing.assert_close(attention(x, context, time), expected, rtol=1e-3, atol=1e-4)


def test_swapping_inputs_and_projections_transposes_the_affinity():
    attention = randomised(SpectralCrossAttention(2, CHANNELS, 12))
    x, context, _ = inputs((5, 4))
    there = attention.affinity(x, context)
    attention.query, attention.key = attention.key, attention.query
    attention.norm_x, attention.norm_context = attention.norm_context, attention.norm_x
    torch.testing.assert_close(attention.affinity(context, x), there.transpose(2, 3))


def test_a_blocks_two_attentions_are_symmetric():
    """With equal weights, the block does to swapped inputs what it did to the other one."""
    block = SSFormerBlock(3, CHANNELS, 12)
    randomised(block.semantic_asks)
    block.noise_asks.load_state_dict(block.semantic_asks.state_dict())
    semantic, noise, time = inputs((3, 4, 2))
    blended, answered = block(semantic, noise, time)
    torch.testing.assert_close(blended, block.noise_asks(semantic, noise, time))
    torch.testing.assert_close(answered, block.semantic_asks(noise, blended, time))
    torch.testing.assert_close(block(noise, semantic, time)[0], block.noise_asks(noise, semantic, time))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_former_is_real_and_finite_on_any_grid_and_starts_as_the_identity(shape):
    semantic, noise, time = inputs(shape)
    former = SSFormer(len(shape), CHANNELS, 12, blocks=2)
    torch.testing.assert_close(former(semantic[:1], noise, time), noise)
    out = randomised(former)(semantic[:1], noise, time)
    assert out.shape == noise.shape and out.dtype == torch.float32 and torch.isfinite(out).all()
    assert not torch.allclose(out, former(semantic[1:], noise, time)), "the image must matter"


def test_items_of_a_batch_do_not_touch_each_other():
    former = randomised(SSFormer(2, CHANNELS, 12, blocks=2))
    semantic, noise, time = inputs((5, 6))
    torch.testing.assert_close(former(semantic, noise, time)[1:], former(semantic[1:], noise[1:], time[1:]))


def test_every_parameter_gets_a_gradient():
    former = randomised(SSFormer(2, CHANNELS, 12, blocks=2))
    former(*inputs((5, 6))).square().mean().backward()
    assert [n for n, p in former.named_parameters() if p.grad is None] == []


def test_half_precision_around_it_changes_nothing():
    former = randomised(SSFormer(2, CHANNELS, 12, blocks=1))
    arguments = inputs((5, 6))
    expected = former(*arguments)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(former(*arguments), expected)


def test_information_passes_from_the_image_when_the_label_is_pure_noise():
    """The frequency code makes like attend to like: without it, the semantic embedding's layout would be lost."""
    torch.manual_seed(0)
    attention = SpectralCrossAttention(2, CHANNELS, 12)
    x, context, _ = inputs((6, 7))
    weights = attention.affinity(x, context).softmax(-1)
    own = weights.diagonal(dim1=2, dim2=3).mean()
    assert own > 5 / 42, "far more than an even share of the 42 frequencies"


def test_the_figures_roles_noise_asks_image_then_the_result_asks_noise_and_goes_on():
    former = randomised(SSFormer(2, CHANNELS, 12, blocks=2, figure_roles=True))
    semantic, noise, time = inputs((5, 4))
    expected = noise
    for block in former.blocks:
        assert isinstance(block, FigureBlock)
        expected = block.result_asks(block.noise_asks(expected, semantic, time), expected, time)
    torch.testing.assert_close(former(semantic, noise, time), expected)


def test_without_the_band_pass_filter_every_frequency_passes():
    plain, whole = (SpectralCrossAttention(2, CHANNELS, 12, band_pass) for band_pass in (False, True))
    randomised(plain)
    missing = whole.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert missing and all("band_pass" in name for name in missing)
    torch.testing.assert_close(plain(*inputs((5, 4))), whole(*inputs((5, 4))))  # a fresh filter's gains are 1
    randomised(whole.band_pass)
    assert not torch.allclose(plain(*inputs((5, 4))), whole(*inputs((5, 4))), atol=1e-3)


def test_values_in_space_are_weighted_by_the_filtered_affinity_map_transformed_back():
    """Against the published formula, with the transform written as a matrix: W softmax(F^-1[H . Q K*] / sqrt(2 d)) v."""
    shape = (4, 3)
    attention = randomised(SpectralCrossAttention(2, CHANNELS, 12, spatial=True))
    x, context, time = inputs(shape, batch=1)
    cells, eye = 12, torch.eye(12).view(12, 1, *shape)
    wave = to_spectrum(eye).view(cells, cells).T  # (frequencies, cells)
    coded = [attention._coded(layer(norm(f))) for layer, norm, f in (
        (attention.query, attention.norm_x, x), (attention.key, attention.norm_context, context),
    )]  # fmt: skip
    q, k = (torch.view_as_complex(c.unflatten(-1, (-1, 2)).contiguous())[0] for c in coded)  # (heads, frequencies, d)
    gains = attention.band_pass(shape, time).flatten(2)[0, :, :, None]
    affinity = wave.conj().T @ (gains * (q @ k.conj().transpose(1, 2))) @ wave
    assert affinity.imag.abs().max() < 1e-4 * affinity.real.abs().max()
    weights = (affinity.real / (2 * HEAD_CHANNELS) ** 0.5).softmax(-1)
    v = attention.value(attention.norm_context(context))[0].flatten(1).unflatten(0, (2, -1)).transpose(1, 2)
    answer = (weights @ v).transpose(1, 2).reshape(1, CHANNELS, *shape)
    expected = x + attention.out(answer)
    expected = expected + attention.mlp(attention.norm_mlp(expected))
    torch.testing.assert_close(attention(x, context, time), expected, rtol=1e-3, atol=1e-4)
