"""nnU-Net experiment planners, one per file; ``-pl NAME`` finds them here by name."""

from nndiffseg.planners.DiffSegPlanner import DiffSegPlanner, check_plans_name
from nndiffseg.planners.DiffSegPlannerL import DiffSegPlannerL
from nndiffseg.planners.DiffSegPlannerS import DiffSegPlannerS

PLANNERS = ("DiffSegPlanner", "DiffSegPlannerS", "DiffSegPlannerL")

__all__ = ["PLANNERS", "DiffSegPlanner", "DiffSegPlannerL", "DiffSegPlannerS", "check_plans_name"]
