"""The planner's decisions about the latent and the light networks, as pure functions of the labels' curve and costs."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from nndiffseg.methods.ldseg.latent import PAPER_CHANNELS, PAPER_STRIDE, paper_latent
from nndiffseg.methods.settings import DiffusionSettings
from nndiffseg.planning.cost import Architecture
from nndiffseg.planning.rate_distortion import RateDistortion

#: Lowest 5th percentile of the worst structure's Dice that a latent may have. The curve belongs to a linear code that
#: sees one block at a time; a convolutional encoder and a decoder that sees the image stay well above it.
THRESHOLD = 0.85
#: Wider latents buy little Dice and are harder to diffuse.
MAX_LATENT_CHANNELS = 16
MAX_LATENT_STAGE = 4
ENCODER_CHANNELS = (16, 32, 64, 64)
DECODER_CHANNELS = (8, 12, 24, 32, 32)
SAMPLES = 16
#: One step makes worse samples, more make them too alike and no better (docs/lab/sampling.md, "How many steps").
STEPS = 2


@dataclass(frozen=True)
class Size:
    """What distinguishes the planner's sizes. Defaults are those of nnU-Net 2.8.1's ``ResEncUNetPlanner``.

    Attributes:
        plans_name: of the plans, unless another one is asked for.
        memory_gb: default limit of a training's memory.
        widths: denoiser widths (at a latent grid of about 4-fold stride, at the level below it), narrowest first.
        budget: how many passes of the image network all samples may cost.
        reference_gb: memory of a training whose image network has so many elements in its feature maps:
        reference_elements: of one patch, in 2D and in 3D.
        base_features: channels of the image network's first stage.
        max_features: of its deepest stages, in 2D and in 3D.
        encoder_blocks, decoder_blocks: residual blocks and convolutions of each stage.
        batch_cap: dimension of a configuration -> largest batch.
    """

    plans_name: str
    memory_gb: float
    widths: tuple[tuple[int, int], ...]
    budget: float = 1.0
    reference_gb: float = 8
    reference_elements: tuple[int, int] = (135_000_000, 680_000_000)
    base_features: int = 32
    max_features: tuple[int, int] = (512, 320)
    encoder_blocks: tuple[int, ...] = (1, 3, 4, *[6] * 10)
    decoder_blocks: tuple[int, ...] = (1,) * 12
    batch_cap: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Candidate:
    """A latent at one stage of the image network, with the widest denoiser that the budget allows.

    ``settings.latent_channels`` is a placeholder until :func:`choose` has decided.
    """

    settings: DiffusionSettings
    ratio: float
    affordable: bool


def price(arch: Architecture, settings: DiffusionSettings) -> float:
    """Time of all samples in passes of the image network, as :attr:`~nndiffseg.planning.cost.Cost.time`."""
    return settings.samples * arch.light(settings).sample(settings.steps).time / arch.image.time


def latent_stages(n_stages: int) -> list[int]:
    """Stages whose grid may carry the latent.

    The deepest stage is left out where there are others: the denoiser works mostly on the level below the latent.
    """
    return list(range(1, min(max(n_stages - 2, 1), MAX_LATENT_STAGE) + 1))


def denoiser_levels(arch: Architecture, stage: int, width: tuple[int, int]) -> tuple[tuple[int, ...], tuple]:
    """Channels and strides of the denoiser's levels for a latent at ``stage``.

    ``width`` is meant for a latent cell of 16 to 255 voxels. Smaller cells get a level of half the width in front,
    larger cells twice the width at the latent grid, so that the work stays where it is cheap.
    """
    below = [tuple(int(v) for v in s) for s in arch.arch_kwargs["strides"][stage + 1 :]]
    voxels = int(np.prod(arch.strides(stage)))
    if voxels < 16 and len(below) >= 2:
        return (max(8, width[0] // 2), width[0], width[1]), tuple(below[:2])
    if not below:
        return (width[1],), ()
    latent = 2 * width[0] if voxels >= 256 else width[0]
    return (latent, max(latent, width[1])), (below[0],)


def candidate(arch: Architecture, stage: int, size: Size, latent_channels: int = MAX_LATENT_CHANNELS) -> Candidate:
    """Widest denoiser that the budget allows."""

    def settings(width: tuple[int, int]) -> DiffusionSettings:
        channels, strides = denoiser_levels(arch, stage, width)
        return DiffusionSettings(
            latent_stage=stage,
            latent_stride=arch.strides(stage),
            latent_channels=latent_channels,
            denoiser_channels=channels,
            denoiser_strides=strides,
            encoder_channels=ENCODER_CHANNELS[:stage],
            decoder_channels=DECODER_CHANNELS[: stage + 1],
            steps=STEPS,
            samples=SAMPLES,
        )

    affordable = bisect_right(size.widths, size.budget, key=lambda width: price(arch, settings(width)))
    chosen = settings(size.widths[max(affordable - 1, 0)])
    return Candidate(chosen, price(arch, chosen), affordable > 0)


def expected_overhead(arch: Architecture, size: Size) -> float:
    """Memory of the light networks relative to the image network's before anything is chosen: a latent of medium depth."""
    stage = min(2, latent_stages(len(arch.grids))[-1])
    return arch.memory_overhead(candidate(arch, stage, size).settings)


def choose(
    arch: Architecture, candidates: Mapping[int, Candidate], curve: Sequence[RateDistortion], size: Size
) -> tuple[DiffusionSettings, str]:
    """The deepest, then narrowest latent above :data:`THRESHOLD` within the budget, and the reason in words.

    Args:
        arch: the image network.
        candidates: stage -> candidate.
        curve: points of all candidates' strides.
        size: for the budget and the final widths.
    """
    points = [
        (stage, p)
        for stage, c in candidates.items()
        for p in curve
        if p.stride == c.settings.latent_stride and p.channels <= MAX_LATENT_CHANNELS
    ]
    affordable = [(s, p) for s, p in points if candidates[s].affordable]
    good = [(s, p) for s, p in affordable if p.worst_p5 >= THRESHOLD]
    if good:
        stage, point = max(good, key=lambda sp: (sp[0], -sp[1].channels))
        why = (
            f"the deepest, then narrowest latent (at most {MAX_LATENT_CHANNELS} channels) that keeps the worst "
            f"structure's 5th percentile at {THRESHOLD} or more within the budget"
        )
    elif affordable:
        stage, point = max(affordable, key=lambda sp: (sp[1].worst_p5, sp[0], -sp[1].channels))
        why = (
            f"no latent within the budget keeps the worst structure's 5th percentile at {THRESHOLD}, so the best of "
            "them is taken"
        )
    else:
        # Above the threshold the narrowest will do; below it every channel counts.
        good = [(s, p) for s, p in points if p.worst_p5 >= THRESHOLD]
        stage, point = (
            max(good, key=lambda sp: (sp[0], -sp[1].channels)) if good else max(points, key=lambda sp: (sp[0], sp[1].worst_p5))
        )
        why = "no latent fits the budget, so the cheapest one is taken that keeps the structures as well as possible"
    final = candidate(arch, stage, size, point.channels)
    settings = final.settings
    return settings, (
        f"Stride {cross(settings.latent_stride)} with {point.channels} channels: {why}. "
        f"Worst structure: {point.worst}, 5th percentile {point.worst_p5:.3f}, mean {point.worst_mean:.3f} (linear "
        f"code; the trained one does better). Denoiser of {'-'.join(map(str, settings.denoiser_channels))} channels "
        f"and {settings.steps} steps: {SAMPLES} samples cost {final.ratio:.2f} passes of the image network (budget "
        f"{size.budget:g})."
    )


def paper_latent_reason(arch: Architecture, curve: Sequence[RateDistortion]) -> str:
    """What LDSeg's published latent becomes on this plan, in words."""
    stride = paper_latent(arch.arch_kwargs["strides"], arch.patch).stride
    shallow = (
        ""
        if min(stride) == PAPER_STRIDE
        else (
            f"; published are {PAPER_STRIDE} voxels along every axis, but this is the deepest stage of the plan within that, "
            f"for a patch of {cross(arch.patch)}"
        )
    )
    point = next((p for p in curve if (p.stride, p.channels) == (stride, PAPER_CHANNELS)), None)
    worst = (
        ""
        if point is None
        else (
            f" Worst structure in a linear code: {point.worst}, 5th percentile {point.worst_p5:.3f}, mean "
            f"{point.worst_mean:.3f}."
        )
    )
    return (
        f"nnDiffSegTrainerLDSeg uses its published latent instead: stride {cross(stride)} with {PAPER_CHANNELS} "
        f"channel{shallow}.{worst}"
    )


def cross(values: Sequence[float]) -> str:
    """``(4, 4, 4)`` -> ``4x4x4``."""
    return "x".join(f"{float(v):.3g}" for v in values)


def curve_table(candidates: Mapping[int, Candidate], curve: Sequence[RateDistortion], chosen: DiffusionSettings) -> str:
    """The curve as a text table; a star marks the choice."""
    ratio = {c.settings.latent_stride: c.ratio for c in candidates.values()}
    lines = [
        f"    {'stride':<10}{'channels':>8}  {'Dice mean':>9}  {'worst structure':<22}{'mean':>6}{'5th pc.':>9}"
        f"{f'{SAMPLES} samples':>13}"
    ]
    for p in curve:
        star = "*" if (p.stride, p.channels) == (chosen.latent_stride, chosen.latent_channels) else " "
        passes = f"{ratio[p.stride]:.2f} passes" if p.stride in ratio else ""
        lines.append(
            f"  {star} {cross(p.stride):<10}{p.channels:>8}  {p.dice_mean:>9.3f}  {p.worst[:21]:<22}"
            f"{p.worst_mean:>6.3f}{p.worst_p5:>9.3f}{passes:>13}"
        )
    return "\n".join(lines)
