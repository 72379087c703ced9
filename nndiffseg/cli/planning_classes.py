"""Planners and extractors that ``nndiffseg_plan_and_preprocess`` is given by name."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from nndiffseg.cli.common import choose
from nndiffseg.data.plan_names import PREPROCESSORS
from nndiffseg.errors import UserError

if TYPE_CHECKING:
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

    from nndiffseg.planners import DiffSegPlanner

#: nnU-Net's planner -> the one that plans the same kind of image network for the same memory
SAME = {
    "nnUNetPlannerResEncM": "DiffSegPlanner",
    "nnUNetPlannerResEncL": "DiffSegPlannerL",
    "nnUNetPlannerResEncXL": "DiffSegPlannerXL",
}
EXTRACTOR = "DatasetFingerprintExtractor"


def find_planner(name: str) -> type[DiffSegPlanner]:
    """A planner by name: one of nndiffseg's, under nnU-Net's name too, or the user's own.

    Raises:
        UserError: there is none, or it plans for nnU-Net alone.
    """
    from nndiffseg import planners
    from nndiffseg.planning.lookup import find_class

    name = SAME.get(name, name)
    found = getattr(planners, name) if name in planners.PLANNERS else find_class(name)
    found = found or getattr(planners, choose("planner", name, planners.PLANNERS))
    if not issubclass(found, planners.DiffSegPlanner):
        choices = ", ".join((*planners.PLANNERS, *SAME))
        raise UserError(
            f"{name} plans no diffusion; choose one of {choices}, or a class of your own derived from DiffSegPlanner."
        )
    return found


def check_names(planner: type[DiffSegPlanner], args: argparse.Namespace) -> None:
    """Checks the names that planner, plans and preprocessor go by.

    Args:
        planner: the class.
        args: flags of ``nndiffseg_plan_and_preprocess``.

    Raises:
        UserError: the plans would overwrite another planner's, or a name is not allowed in plans.
    """
    from nndiffseg import planners

    if args.overwrite_plans_name is not None:
        planners.check_plans_name(args.overwrite_plans_name)
    elif planner.__name__ not in planners.PLANNERS and planner.size.plans_name in {
        getattr(planners, name).size.plans_name for name in planners.PLANNERS
    }:
        raise UserError(
            f"{planner.__name__} would overwrite the plans {planner.size.plans_name} of another planner; give them a name with "
            "-overwrite_plans_name, or its size one of its own."
        )
    if args.preprocessor_name not in PREPROCESSORS:  # the plans hold the name only, and nothing else may stand in plans
        known = ", ".join(sorted(PREPROCESSORS))
        raise UserError(f"Unknown preprocessor {args.preprocessor_name}; it must be one of nnU-Net's: {known}.")


def find_extractor(name: str) -> type[DatasetFingerprintExtractor]:
    """An extractor of fingerprints by name, of nnU-Net or the user's own.

    Raises:
        UserError: there is none.
    """
    from nnunetv2.experiment_planning.dataset_fingerprint import fingerprint_extractor

    from nndiffseg.planning.lookup import find_class

    standard = fingerprint_extractor.DatasetFingerprintExtractor
    found = standard if name == EXTRACTOR else find_class(name)
    if found is None or not issubclass(found, standard):
        raise UserError(
            f"There is no extractor {name} of fingerprints; leave out -fpe, or name a class derived from {EXTRACTOR}."
        )
    return found
