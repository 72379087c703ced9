"""Size S: small enough to train on a CPU."""

from __future__ import annotations

from nndiffseg.planners.DiffSegPlanner import DiffSegPlanner
from nndiffseg.planning.decisions import Size


class DiffSegPlannerS(DiffSegPlanner):
    """For CPUs and small datasets: half the base features, at most 128 in all, one or two blocks per stage, 3 GB.

    The image network is so small that a full-resolution decoder weighs in, so all samples may cost three of its passes.
    """

    size = Size(
        "nnDiffSegPlansS",
        memory_gb=3,
        widths=((16, 48), (16, 64), (24, 64)),
        budget=3.0,
        base_features=16,
        max_features=(128, 128),
        encoder_blocks=(1, *[2] * 12),
        batch_cap={2: 16, 3: 2},
    )
