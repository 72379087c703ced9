"""The plans file among those that lie in a dataset's preprocessed folder already."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nndiffseg.data.files import read_json
from nndiffseg.data.plans_schema import check_plans
from nndiffseg.data.records import INTENSITIES, preprocessing_settings
from nndiffseg.errors import UserError

STANDARD = ("2d", "3d_lowres", "3d_fullres", "3d_cascade_fullres")


def check_plans_name(name: str) -> None:
    """Checks a name for plans.

    Raises:
        UserError: it is not a file name, would break the names of result folders, or is one of nnU-Net's.
    """
    if not re.fullmatch(r"[\w.-]+", name) or "__" in name or name.startswith("."):
        raise UserError(f"{name} cannot name plans; use letters, digits, dots, dashes and single underscores.")
    if name.startswith("nnUNet"):
        raise UserError(f"The plans name {name} belongs to nnU-Net; choose another -overwrite_plans_name.")


def custom_configurations(plans_file: Path) -> dict[str, Any]:
    """Configurations that a user added to an earlier plans file; planning again keeps them.

    Raises:
        UserError: nndiffseg did not make this file, or it names what no planner writes.
    """
    if not plans_file.is_file():
        return {}
    plans = read_json(plans_file, "remove it, or choose another -overwrite_plans_name")
    check_plans(plans, str(plans_file))
    configurations = plans["configurations"]
    if not any("diffusion" in c for c in configurations.values()):
        raise UserError(f"{plans_file} was not made by nndiffseg; choose another -overwrite_plans_name.")
    return {name: c for name, c in configurations.items() if name not in STANDARD}


def keep_data_apart(plans: dict[str, Any], folder: Path) -> None:
    """Gives a configuration its own data folder where other plans preprocess into the shared one differently.

    Args:
        plans: new plans, changed in place.
        folder: the dataset's preprocessed folder.
    """
    own = plans["plans_name"]
    for file in folder.glob("*.json"):
        if file.stem == own:
            continue
        other = read_json(file, "remove it and plan again")
        if not isinstance(other, dict) or not isinstance(other.get("configurations"), dict):
            continue
        for name, configuration in plans["configurations"].items():
            if "data_identifier" not in configuration:  # the cascade's second stage, which inherits it
                continue
            for theirs in _resolved(other):
                if theirs.get("data_identifier") != configuration["data_identifier"]:
                    continue
                if _preprocessing(plans, configuration) != _preprocessing(other, theirs):
                    configuration["data_identifier"] = f"{own}_{name}"


def _resolved(plans: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The configurations of other plans with all that they inherit; those that inherit from nothing known are left out."""
    for name in plans["configurations"]:
        try:
            yield PlansManager(plans).get_configuration(name).configuration
        except (ValueError, KeyError, AssertionError, AttributeError, TypeError, RecursionError):
            continue


def same_preprocessing(plans: dict[str, Any], other: dict[str, Any], name: str) -> bool:
    """Whether two plans preprocess the configuration ``name`` alike, into the same folder."""
    one, two = (PlansManager(p).get_configuration(name).configuration for p in (plans, other))
    return one["data_identifier"] == two["data_identifier"] and _preprocessing(plans, one) == _preprocessing(other, two)


def _preprocessing(plans: dict[str, Any], configuration: dict[str, Any]) -> str:
    return json.dumps([*preprocessing_settings(plans, configuration), plans.get(INTENSITIES)], sort_keys=True)
