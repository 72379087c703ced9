"""The second stage of nnU-Net's cascade in the plans: 3d_fullres with the first stage's segmentation as further channels.

nnU-Net gives it patch and batch of 3d_fullres, and its estimate of memory counts the outputs of convolutions alone. The further
channels, one for each foreground label, are inputs that stay until the backward pass: a hundred may be as much as the network.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nndiffseg.planning.cost import Architecture, image_network_bytes
from nndiffseg.planning.decisions import cross
from nndiffseg.planning.memory import fit
from nndiffseg.planning.section import Section

NAME = "3d_cascade_fullres"


@dataclass(frozen=True)
class Cascade:
    """What the second stage was given.

    Attributes:
        section: its decisions, those of the configuration that it inherits from.
        configuration: in the plans, JSON-ready but for ``diffusion``.
        batch: patches of a training step.
        image_network_gb: memory that the image network needs in training.
        note: one line about it.
    """

    section: Section
    configuration: dict[str, Any]
    batch: int
    image_network_gb: float
    note: str


def plan_cascade(
    plans: dict[str, Any],
    parent: Section,
    channels: int,
    labels: int,
    target_gb: float,
    image_network_gb: Callable[[Architecture, int], float],
) -> Cascade:
    """Fits patch and batch to the memory that there is; both stay those of 3d_fullres where these fit.

    Args:
        plans: nnU-Net's new plans, with :data:`NAME` in them.
        parent: of the configuration that it inherits from.
        channels: of the image.
        labels: number of foreground labels.
        target_gb: memory that was planned for.
        image_network_gb: memory of an image network at a batch size, by nnU-Net's estimate.
    """
    own, inherited = plans["configurations"][NAME], PlansManager(plans).get_configuration(NAME)
    patch, batch = tuple(int(n) for n in inherited.patch_size), int(inherited.batch_size)

    def sized(size: tuple[int, ...]) -> Architecture:
        return replace(parent.arch, input_channels=channels + labels, patch=size)

    def image_gb(size: tuple[int, ...], number: int) -> float:
        manager = ConfigurationManager({**inherited.configuration, "patch_size": list(size)})
        without, kept = (image_network_bytes(manager, c, parent.arch.heads) for c in (channels, channels + labels))
        return image_network_gb(sized(size), number) * kept / without

    def all_gb(size: tuple[int, ...]) -> float:
        return image_gb(size, 1) * (1 + sized(size).memory_overhead(parent.settings))

    before = image_network_gb(parent.arch, batch) * (1 + parent.arch.memory_overhead(parent.settings))
    chosen = fit(all_gb, max(target_gb, before), patch, batch, inherited.pool_op_kernel_sizes)
    configuration = copy.deepcopy(own)
    if chosen.patch != patch:
        configuration["patch_size"] = list(chosen.patch)
    if chosen.batch != batch:
        configuration["batch_size"] = chosen.batch
    note = (
        f"{NAME}: {own['inherits_from']} with the segmentation of {own['previous_stage']} as {labels} more "
        f"channel{'s' * (labels > 1)}, patch {cross(chosen.patch)}, batch size {chosen.batch}, about {chosen.gb:.1f} GB to "
        "train"
    )
    section = replace(parent, arch=sized(chosen.patch))
    return Cascade(section, configuration, chosen.batch, image_gb(chosen.patch, chosen.batch), note)
