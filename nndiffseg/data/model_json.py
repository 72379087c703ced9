"""What a model folder says about itself: plans and dataset.json, and the names by which nnU-Net finds it, checked first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nndiffseg.data.dataset_json import check_region_order
from nndiffseg.data.dataset_schema import check_dataset_json
from nndiffseg.data.files import read_json
from nndiffseg.data.names import is_plain_name
from nndiffseg.data.plan_names import is_identifier
from nndiffseg.data.plans_schema import check_plans
from nndiffseg.errors import UserError

#: what to do about a damaged one
AGAIN = "copy the model folder again"


@dataclass(frozen=True)
class ModelNames:
    """The names that make up nnU-Net's folder of a model; each can be part of a path."""

    dataset: str
    trainer: str
    plans: str
    configuration: str

    @classmethod
    def of(cls, checkpoint: Mapping[str, Any], plans: Mapping[str, Any], file: Path) -> ModelNames:
        """The names in a checkpoint and in the plans above it; the folder's own name may have been changed.

        Args:
            checkpoint: of nndiffseg or nnU-Net; foreign.
            plans: checked by :func:`read_model_json`.
            file: the checkpoint's, for messages.

        Raises:
            UserError: a name is missing or cannot be part of a path, or plans and checkpoint do not belong together.
        """
        arguments = checkpoint.get("init_args")
        configuration = arguments.get("configuration") if isinstance(arguments, Mapping) else None
        if not is_identifier(checkpoint.get("trainer_name")) or not isinstance(configuration, str):
            raise UserError(f"{file} does not say which trainer and configuration it is of; choose another file with -chk.")
        if configuration not in plans["configurations"]:
            raise UserError(f"The plans above {file} have no configuration of that checkpoint; the model folder is mixed up.")
        for key in ("dataset_name", "plans_name"):
            if not is_plain_name(plans.get(key)):
                raise UserError(f"The plans above {file} have no {key}; copy the model folder again.")
        return cls(plans["dataset_name"], checkpoint["trainer_name"], plans["plans_name"], configuration)

    @property
    def folder(self) -> str:
        """Of the model, in nnU-Net's results folder, with forward slashes."""
        return f"{self.dataset}/{self.trainer}__{self.plans}__{self.configuration}"


def read_model_json(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Plans and dataset.json of a model folder, checked: their form, numbers, and every name that nnU-Net imports or joins.

    Raises:
        UserError: there is no such folder or file, it is not as nnU-Net writes it, or it names what no planner writes.
    """
    if not folder.is_dir():
        raise UserError(f"There is no model folder {folder}; give one that nndiffseg_train or nnUNetv2_train wrote.")
    content = []
    for name in ("plans.json", "dataset.json"):
        if not (folder / name).is_file():
            raise UserError(f"{folder} holds no {name}, so it is not a model folder; give the one above fold_0.")
        content.append(read_json(folder / name, AGAIN))
    plans, dataset_json = content
    check_plans(plans, str(folder / "plans.json"))
    check_dataset_json(dataset_json, str(folder / "dataset.json"), AGAIN)
    check_region_order(dataset_json, str(folder / "dataset.json"))
    return plans, dataset_json
