"""nnU-Net experiment planners, one per file; ``-pl NAME`` finds them here by name."""

from nndiffseg.planners.DiffSegPlanner import DiffSegPlanner
from nndiffseg.planners.DiffSegPlannerL import DiffSegPlannerL
from nndiffseg.planners.DiffSegPlannerS import DiffSegPlannerS
from nndiffseg.planners.DiffSegPlannerXL import DiffSegPlannerXL
from nndiffseg.planning.plans_file import check_plans_name

PLANNERS = ("DiffSegPlanner", "DiffSegPlannerS", "DiffSegPlannerL", "DiffSegPlannerXL")

__all__ = ["PLANNERS", "DiffSegPlanner", "DiffSegPlannerL", "DiffSegPlannerS", "DiffSegPlannerXL", "check_plans_name"]
