"""Size L: for GPUs of 24 GB."""

from __future__ import annotations

from nndiffseg.planners.DiffSegPlanner import DiffSegPlanner
from nndiffseg.planning.decisions import Size


class DiffSegPlannerL(DiffSegPlanner):
    """Larger patches and batches, as nnU-Net's ``nnUNetPlannerResEncL``, and a wider denoiser."""

    size = Size(widths=((16, 48), (16, 64), (24, 64), (24, 96), (32, 128), (48, 192)), budget=1.0)

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float = 24,
        preprocessor_name: str = "DefaultPreprocessor",
        plans_name: str = "nnDiffSegPlansL",
        overwrite_target_spacing: list[float] | tuple[float, ...] | None = None,
        suppress_transpose: bool = False,
    ):
        super().__init__(
            dataset_name_or_id,
            gpu_memory_target_in_gb,
            preprocessor_name,
            plans_name,
            overwrite_target_spacing,
            suppress_transpose,
        )
        # The reference values of nnUNetPlannerResEncL (nnU-Net 2.8.1). Its max_dataset_covered = 1 is not taken over:
        # on small datasets it leads to batches of hundreds of patches.
        self.UNet_reference_val_corresp_GB = 24
        self.UNet_reference_val_3d = 2_100_000_000
        self.UNet_reference_val_2d = 380_000_000
