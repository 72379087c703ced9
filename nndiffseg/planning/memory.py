"""Patch and batch size with which each method fits the planned memory.

The planner fits patch and batch to nnU-Net's image network and the flagship's light ones. Other methods keep other
tensors for their backward pass. These are counted (:mod:`nndiffseg.planning.cost`) and scaled to gigabytes by nnU-Net's
own estimate for the image network.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nndiffseg.methods.protocol import Method
from nndiffseg.planning.cost import image_network_bytes, method_bytes

#: key in a configuration's ``diffusion`` section: trainer -> its entry
KEY = "trainers"
#: upper bound on a method's memory relative to the image network; skip per-method estimates if even this fits
BOUND = 6.0
#: smallest batch that memory may lead to, as in nnU-Net
MIN_BATCH = 2
#: fewest cells of the deepest grid that are left along an axis, as in nnU-Net
MIN_CELLS = 4


class Fit(NamedTuple):
    """Patch and batch of a training, and the memory in GB that they need."""

    patch: tuple[int, ...]
    batch: int
    gb: float


# ---- fitting ----------------------------------------------------------------------------------------------------------


def fit(
    gb_of: Callable[[tuple[int, ...]], float],
    target_gb: float,
    patch: Sequence[int],
    batch: int,
    strides: Sequence[Sequence[int]],
) -> Fit:
    """The largest batch that fits, at least two; then the patch, its longest axis first, as long as it does not fit.

    Args:
        gb_of: memory of one patch of the given size; asked only where the one before suggests that a patch fits.
        target_gb: memory that there is.
        patch: voxels along each axis.
        batch: patches.
        strides: of the image network's stages; the patch stays a multiple of their product.
    """
    step = [math.prod(int(s[axis]) for s in strides) for axis in range(len(patch))]
    known = tuple(int(n) for n in patch)
    smaller, known_gb = list(known), gb_of(known)
    gb = known_gb
    fewer = min(batch, max(MIN_BATCH, int(target_gb / gb)))
    while fewer * gb > target_gb:
        axes = [a for a, s in enumerate(step) if smaller[a] - s >= MIN_CELLS * s]
        if not axes:
            break
        axis = max(axes, key=lambda a: smaller[a])
        smaller[axis] -= step[axis]
        gb = known_gb * math.prod(smaller) / math.prod(known)
        if fewer * gb <= target_gb:
            known = tuple(smaller)
            gb = known_gb = gb_of(known)
    return Fit(tuple(smaller), fewer, fewer * gb)


def plan_entries(
    methods: Mapping[str, type[Method]],
    plans: PlansManager,
    configuration: str,
    channels: int,
    heads: int,
    image_network_gb: float,
    target_gb: float,
) -> dict[str, dict[str, Any]]:
    """What the plans say about each trainer: its patch and batch, and those of the configuration that they replace.

    Args:
        methods: of each trainer, by its name.
        channels, heads: as of :func:`~nndiffseg.planning.cost.method_bytes`.
        plans: nnU-Net's manager.
        configuration: name.
        image_network_gb: nnU-Net's estimate for training the image network with the configuration's patch and batch.
        target_gb: memory that was planned for.
    """
    planned = plans.get_configuration(configuration)
    patch, batch = tuple(int(n) for n in planned.patch_size), int(planned.batch_size)
    gb_per_byte = image_network_gb / batch / image_network_bytes(planned, channels, heads)

    def entry(method_class: type[Method]) -> dict[str, Any]:
        @functools.cache
        def gb_of(size: tuple[int, ...]) -> float:
            resized = ConfigurationManager({**planned.configuration, "patch_size": list(size)})
            return gb_per_byte * method_bytes(method_class, resized, channels, heads)

        chosen = fit(gb_of, target_gb, patch, batch, planned.pool_op_kernel_sizes)
        return {
            "patch_size": list(chosen.patch),
            "batch_size": chosen.batch,
            "training_memory_gb": chosen.gb,
            "planned": {
                "patch_size": list(patch),
                "batch_size": batch,
                "training_memory_gb": batch * gb_of(patch),
                "target_gb": target_gb,
            },
        }

    return {trainer: entry(method_class) for trainer, method_class in methods.items()}


def add_entries(
    methods: Mapping[str, type[Method]],
    plans: dict[str, Any],
    configuration: str,
    channels: int,
    heads: int,
    target_gb: float,
) -> list[str]:
    """Adds :func:`plan_entries` to a configuration of the plans unless memory is plentiful.

    Returns:
        One sentence for each trainer that does not fit the planned patch and batch.
    """
    section = plans["configurations"][configuration]["diffusion"]
    image_gb = section["cost"]["training_memory_gb"]["image_network"]
    if BOUND * image_gb <= target_gb:
        return []
    entries = plan_entries(methods, PlansManager(plans), configuration, channels, heads, image_gb, target_gb)
    section[KEY] = entries
    return [
        f"{configuration}, {trainer}: {sentence(entry)}"
        for trainer, entry in entries.items()
        if entry["planned"]["training_memory_gb"] > target_gb
    ]


def adapted_plans(plans: dict[str, Any], configuration: str, trainer: type) -> tuple[dict[str, Any], str | None]:
    """The plans with the patch and batch of a trainer, and one sentence where those of the configuration do not fit.

    A configuration whose patch or batch were changed since planning is used as it is. A trainer without an entry has
    that of the class it derives from.
    """
    section = PlansManager(plans).get_configuration(configuration).configuration
    entries = section.get("diffusion", {}).get(KEY, {})
    entry = next((entries[c.__name__] for c in trainer.__mro__ if c.__name__ in entries), None)
    now = {key: section[key] for key in ("patch_size", "batch_size")}
    if entry is None or any(list_of(entry["planned"][key]) != list_of(value) for key, value in now.items()):
        return plans, None
    if entry["planned"]["training_memory_gb"] <= entry["planned"]["target_gb"]:
        return plans, None
    plans = copy.deepcopy(plans)
    plans["configurations"][configuration].update({key: copy.deepcopy(entry[key]) for key in now})
    return plans, sentence(entry)


def sentence(entry: dict[str, Any]) -> str:
    """What was changed for a trainer, and why."""
    planned = entry["planned"]

    def words(fit: dict[str, Any]) -> str:
        return f"the patch {'x'.join(map(str, fit['patch_size']))} and batch size {fit['batch_size']}"

    if words(entry) == words(planned):
        change = "and neither can be smaller"
    else:
        change = f"so it trains with {words(entry)} in about {entry['training_memory_gb']:.3g} GB"
        change += ", the least there is" if entry["training_memory_gb"] > planned["target_gb"] else ""
    return (
        f"With {words(planned)} this method needs about {planned['training_memory_gb']:.3g} GB, more than the "
        f"{planned['target_gb']:.3g} GB that was planned for, {change}."
    )


def list_of(value: Any) -> list[int]:
    """A patch or a batch size, from JSON or not, for comparison."""
    return [int(n) for n in value] if isinstance(value, (list, tuple)) else [int(value)]
