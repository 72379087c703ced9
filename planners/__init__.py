"""nnU-Net experiment planners, one per file; ``-pl NAME`` finds them here by name."""

from nndiffseg.planners.DiffSegPlanner import DiffSegPlanner
from nndiffseg.planners.DiffSegPlannerL import DiffSegPlannerL
from nndiffseg.planners.DiffSegPlannerS import DiffSegPlannerS

__all__ = ["DiffSegPlanner", "DiffSegPlannerL", "DiffSegPlannerS"]
