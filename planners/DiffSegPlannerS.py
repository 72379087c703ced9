"""Size S: small enough to train on a CPU."""

from __future__ import annotations

from nndiffseg.planners.DiffSegPlanner import DiffSegPlanner
from nndiffseg.planning.decisions import Size


class DiffSegPlannerS(DiffSegPlanner):
    """For CPUs and small datasets: half the base features, at most 128 in all, one or two blocks per stage, 3 GB.

    The image network is so small that a full-resolution decoder weighs in, so 16 samples may cost three of its passes.
    """

    size = Size(widths=((16, 48), (16, 64), (24, 64)), budget=3.0)
    batch_size_cap = {2: 16, 3: 2}  # noqa: RUF012

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float = 3,
        preprocessor_name: str = "DefaultPreprocessor",
        plans_name: str = "nnDiffSegPlansS",
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
        self.UNet_base_num_features = 16
        self.UNet_max_features_2d = self.UNet_max_features_3d = 128
        self.UNet_blocks_per_stage_encoder = (1, *[2] * 12)
        self.UNet_blocks_per_stage_decoder = (1,) * 12
