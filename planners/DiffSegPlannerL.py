"""Size L: for GPUs of 24 GB."""

from __future__ import annotations

from nndiffseg.planners.DiffSegPlanner import DiffSegPlanner
from nndiffseg.planning.decisions import Size


class DiffSegPlannerL(DiffSegPlanner):
    """Larger patches and batches, as nnU-Net's ``nnUNetPlannerResEncL``, and a wider denoiser."""

    size = Size(
        "nnDiffSegPlansL",
        memory_gb=24,
        widths=((16, 48), (16, 64), (24, 64), (24, 96), (32, 128), (48, 192)),
        # The reference values of nnUNetPlannerResEncL (nnU-Net 2.8.1). Its max_dataset_covered = 1 is not taken over:
        # on small datasets it leads to batches of hundreds of patches.
        reference_gb=24,
        reference_elements=(380_000_000, 2_100_000_000),
    )
