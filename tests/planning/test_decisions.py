"""The choice of latent and denoiser from a curve and a budget."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nndiffseg.planning.cost import Architecture
from nndiffseg.planning.decisions import (
    MAX_LATENT_CHANNELS,
    THRESHOLD,
    Size,
    candidate,
    choose,
    curve_table,
    denoiser_levels,
    latent_stages,
    price,
)
from nndiffseg.planning.rate_distortion import RateDistortion


def size_of(*widths: tuple[int, int], budget: float = 1.0) -> Size:
    return Size("plans", memory_gb=8, widths=widths, budget=budget)


SIZE = size_of((16, 48), (24, 96))


def arch(dim: int = 3, stages: int = 5, features: int = 32, first: tuple[int, ...] | None = None) -> Architecture:
    kwargs: dict[str, Any] = {
        "n_stages": stages,
        "conv_op": f"torch.nn.modules.conv.Conv{dim}d",
        "features_per_stage": [min(320, features * 2**i) for i in range(stages)],
        "kernel_sizes": [[3] * dim] * stages,
        "strides": [[1] * dim, list(first or [2] * dim), *[[2] * dim] * (stages - 2)],
        "n_blocks_per_stage": [1, 3, 4, 6, 6, 6][:stages],
        "n_conv_per_stage_decoder": [1] * (stages - 1),
    }
    section = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
        "arch_kwargs": kwargs,
        "_kw_requires_import": ["conv_op"],
    }
    return Architecture(section, 1, 3, (96, 128, 128)[-dim:])


def point(stride: tuple[int, ...], channels: int, p5: float) -> RateDistortion:
    return RateDistortion(stride, channels, p5 + 0.03, "thin", p5 + 0.02, p5)


def decide(a: Architecture, curve: list[RateDistortion], size: Size = SIZE) -> Any:
    candidates = {s: candidate(a, s, size) for s in latent_stages(len(a.grids))}
    return choose(a, candidates, curve, size)


def test_the_deepest_then_narrowest_latent_wins() -> None:
    curve = [point((2,) * 3, 4, 0.97), point((4,) * 3, 4, 0.82), point((4,) * 3, 8, 0.88), point((4,) * 3, 16, 0.94)]
    curve += [point((8,) * 3, 16, 0.80), point((8,) * 3, 32, 0.90)]  # 32 channels are more than a latent may have
    settings, reason = decide(arch(), curve)
    assert (settings.latent_stride, settings.latent_channels, settings.latent_stage) == ((4, 4, 4), 8, 2)
    assert "thin" in reason
    assert str(THRESHOLD) in reason


def test_smooth_shapes_get_a_deep_latent() -> None:
    settings, _ = decide(arch(), [point((2,) * 3, 1, 0.99), point((4,) * 3, 1, 0.95), point((8,) * 3, 2, 0.9)])
    assert settings.latent_stride == (8, 8, 8)
    assert len(settings.decoder_channels) == 4
    assert len(settings.encoder_channels) == 3


def test_without_any_good_latent_the_best_is_taken_and_said() -> None:
    settings, reason = decide(arch(), [point((2,) * 3, 16, 0.7), point((4,) * 3, 16, 0.5)])
    assert settings.latent_stride == (2, 2, 2)
    assert "no latent within the budget" in reason


def test_an_impossible_budget_gives_the_cheapest_and_says_so() -> None:
    size = size_of((16, 48), (24, 96), budget=1e-6)
    settings, reason = decide(arch(), [point((2,) * 3, 4, 0.95), point((4,) * 3, 8, 0.9)], size)
    assert settings.latent_stride == (4, 4, 4)
    assert settings.denoiser_channels == (16, 48)
    assert settings.steps == 2
    assert "no latent fits the budget" in reason


def test_beyond_the_budget_too_the_narrowest_good_latent_is_taken() -> None:
    size = size_of((16, 48), (24, 96), budget=1e-6)
    settings, _ = decide(arch(), [point((4,) * 3, c, p5) for c, p5 in ((4, 0.8), (8, 0.9), (16, 0.99))], size)
    assert settings.latent_channels == 8
    settings, _ = decide(arch(), [point((4,) * 3, c, p5) for c, p5 in ((4, 0.5), (8, 0.6), (16, 0.7))], size)
    assert settings.latent_channels == 16


def test_memory_traffic_counts_beside_operations() -> None:
    a = arch()
    settings = candidate(a, 2, SIZE).settings
    image, decode = a.image, a.light(settings).decode
    assert decode.time / image.time > 2 * decode.flops / image.flops, "full resolution is dear in traffic"
    by_hand = (decode.flops + 300 * decode.elements) / (image.flops + 300 * image.elements)
    assert decode.time / image.time == pytest.approx(by_hand)


@pytest.mark.parametrize("budget", [0.2, 0.3, 0.6, 2.0])
def test_the_budget_holds_and_is_used(budget: float) -> None:
    a, size = arch(), size_of((8, 24), (16, 48), (24, 96), budget=budget)
    chosen = candidate(a, 2, size)
    assert chosen.affordable
    assert price(a, chosen.settings) == chosen.ratio <= budget
    wider = [w for w in size.widths if w > chosen.settings.denoiser_channels]
    ratios = [price(a, replace(chosen.settings, denoiser_channels=w)) for w in wider]
    assert all(ratio > budget for ratio in ratios), "a wider denoiser would break the budget"


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("stages", [2, 3, 4, 6])
def test_settings_are_consistent_with_the_image_network(dim: int, stages: int) -> None:
    a = arch(dim, stages)
    for stage in latent_stages(stages):
        s = candidate(a, stage, SIZE, MAX_LATENT_CHANNELS).settings
        assert s.latent_stride == (2**stage,) * dim
        assert len(s.denoiser_channels) == len(s.denoiser_strides) + 1
        assert all(len(stride) == dim for stride in s.denoiser_strides)


def test_anisotropic_stages_are_candidates() -> None:
    a = arch(first=(1, 2, 2))
    assert candidate(a, 2, SIZE).settings.latent_stride == (2, 4, 4)


def test_the_deepest_stage_is_left_out_where_there_are_others() -> None:
    assert latent_stages(2) == [1]
    assert latent_stages(4) == [1, 2]
    assert latent_stages(8) == [1, 2, 3, 4]


def test_small_cells_put_the_work_on_coarser_levels() -> None:
    a = arch()
    assert denoiser_levels(a, 1, (24, 96)) == ((12, 24, 96), ((2, 2, 2), (2, 2, 2)))
    assert denoiser_levels(a, 2, (24, 96)) == ((24, 96), ((2, 2, 2),))
    assert denoiser_levels(a, 3, (24, 96)) == ((48, 96), ((2, 2, 2),))
    assert denoiser_levels(a, 4, (24, 96)) == ((96,), ())


def test_the_table_marks_the_choice() -> None:
    a = arch()
    candidates = {s: candidate(a, s, SIZE) for s in latent_stages(5)}
    curve = [point((4,) * 3, 4, 0.80), point((4,) * 3, 8, 0.88)]
    settings, _ = choose(a, candidates, curve, SIZE)
    marked = [line for line in curve_table(candidates, curve, settings).splitlines() if "*" in line]
    assert len(marked) == 1
    assert marked[0].split()[1:3] == ["4x4x4", "8"]
