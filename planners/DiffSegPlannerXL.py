"""Size XL: for GPUs of 40 GB."""

from __future__ import annotations

from dataclasses import replace

from nndiffseg.planners.DiffSegPlanner import DiffSegPlanner
from nndiffseg.planners.DiffSegPlannerL import DiffSegPlannerL


class DiffSegPlannerXL(DiffSegPlanner):
    """Larger patches and batches, as nnU-Net's ``nnUNetPlannerResEncXL``; the denoiser's widths are those of size L."""

    # The reference values of nnUNetPlannerResEncXL (nnU-Net 2.8.1), without its max_dataset_covered: see size L.
    size = replace(
        DiffSegPlannerL.size,
        plans_name="nnDiffSegPlansXL",
        memory_gb=40,
        reference_gb=40,
        reference_elements=(560_000_000, 3_600_000_000),
    )
