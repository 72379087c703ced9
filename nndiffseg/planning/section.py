"""A configuration's ``diffusion`` section: what is decided from architecture and labels, as JSON and in words."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nndiffseg.methods.ldseg.method import LDSegMethod
from nndiffseg.methods.settings import DiffusionSettings
from nndiffseg.planning.cost import Architecture
from nndiffseg.planning.decisions import (
    Candidate,
    Size,
    candidate,
    choose,
    cross,
    curve_table,
    latent_stages,
    paper_latent_reason,
    price,
)
from nndiffseg.planning.labels import Label, resample_label
from nndiffseg.planning.rate_distortion import RateDistortion, rate_distortion
from nndiffseg.planning.thickness import Thickness, thickness

WIDTH = 116  # of the report, characters


@dataclass(frozen=True)
class Section:
    """What was decided for one configuration.

    Attributes:
        arch: the image network.
        spacing: of the configuration, mm.
        size: of the planner.
        settings: the chosen latent and light networks.
        reason: for the choice, in words.
        candidates: stage -> what could have been chosen.
        curve: rate and distortion at the stages' strides.
        thickness: of each structure.
    """

    arch: Architecture
    spacing: tuple[float, ...]
    size: Size
    settings: DiffusionSettings
    reason: str
    candidates: Mapping[int, Candidate]
    curve: Sequence[RateDistortion]
    thickness: Mapping[str, Thickness]

    def to_plan(self, regions: bool, image_network_gb: float | None = None, latent: str = "planned") -> dict[str, Any]:
        """The section, JSON-ready.

        Args:
            regions: the labels are nnU-Net's regions.
            image_network_gb: memory that the image network needs in training; None where it is not trained.
            latent: LDSeg's, ``planned`` or ``paper``.
        """
        section = {
            "settings": self.settings.to_plan(),
            "regions": regions,
            "rate_distortion": [asdict(p) for p in self.curve],
            "reason": self.reason,
            "cost": self._cost(image_network_gb),
            "thickness": {name: asdict(t) for name, t in self.thickness.items()},
        }
        if latent != "planned":
            section["options"] = {LDSegMethod.name: {"latent": latent}}
        return section

    def _cost(self, image_network_gb: float | None) -> dict[str, Any]:
        light = self.arch.light(self.settings)
        cost: dict[str, Any] = {
            "image_network_gflop": self.arch.image.flops / 1e9,
            "denoiser_step_gflop": light.denoise.flops / 1e9,
            "label_decoder_gflop": light.decode.flops / 1e9,
            "samples": self.settings.samples,
            "samples_to_image_ratio": price(self.arch, self.settings),
            "budget": self.size.budget,
        }
        if image_network_gb is not None:
            cost["training_memory_gb"] = {"image_network": image_network_gb, "all_networks": self._all_gb(image_network_gb)}
        return cost

    def _all_gb(self, image_network_gb: float) -> float:
        return image_network_gb * (1 + self.arch.memory_overhead(self.settings))

    def report(
        self, name: str, batch_size: int, unit: str, image_network_gb: float | None = None, latent: str = "planned"
    ) -> str:
        """The decisions as text; ``unit`` of lengths, the other arguments as :meth:`to_plan`'s."""
        reasons = [self.reason, *([paper_latent_reason(self.arch, self.curve)] if latent == "paper" else [])]
        memory = ""
        if image_network_gb is not None:
            all_gb = self._all_gb(image_network_gb)
            memory = f", about {all_gb:.1f} GB to train ({image_network_gb:.1f} GB of it the image network)"
        return "\n".join(
            [
                f"{name}: patch {cross(self.arch.patch)}, batch size {batch_size}, spacing {cross(self.spacing)} {unit}"
                f"{memory}",
                *(
                    f"    {structure}: {t.median_mm:.3g} {unit} thick (5th percentile {t.p5_mm:.3g})"
                    for structure, t in self.thickness.items()
                ),
                curve_table(self.candidates, self.curve, self.settings),
                *(textwrap.fill(r, WIDTH, initial_indent="    ", subsequent_indent="    ") for r in reasons),
            ]
        )


def decide(
    arch: Architecture,
    spacing: Sequence[float],
    labels: Sequence[Label],
    structures: Mapping[str, Sequence[int]],
    size: Size,
) -> Section:
    """Chooses latent and light networks of a configuration.

    Args:
        arch: nnU-Net's plan of the image network.
        spacing: of the configuration, mm, along the axes of the patch.
        labels: a selection of the training labels.
        structures: name -> label numbers.
        size: of the planner.
    """
    spacing = tuple(float(s) for s in spacing)
    arrays = [resample_label(label, spacing) for label in labels]
    stages = latent_stages(len(arch.grids))
    candidates = {s: candidate(arch, s, size) for s in stages}
    # One stage more than may carry the latent, to show what it would cost.
    shown = range(1, min(len(arch.grids), stages[-1] + 2))
    curve = [p for s in shown for p in rate_distortion(arrays, arch.strides(s), structures)]
    settings, reason = choose(arch, candidates, curve, size)
    return Section(arch, spacing, size, settings, reason, candidates, curve, thickness(arrays, spacing, structures))
