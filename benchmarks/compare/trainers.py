"""Trainers by name, and the entries of a comparison: a trainer with options."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from nndiffseg.errors import UserError

if TYPE_CHECKING:
    from benchmarks.compare.data import Data

STOCK, OURS = "nnUNetTrainer", "nnDiffSegTrainer"
TRAINERS = (STOCK, OURS, "nnDiffSegTrainerLDSeg", "nnDiffSegTrainerCDAL", "nnDiffSegTrainerMedSegDiffV2")
LABELS = dict(zip(TRAINERS, ("nnU-Net", "nnDiffSeg", "LDSeg", "cDAL", "MedSegDiff-V2"), strict=True))


def find_class(name: str) -> Any:
    """A trainer class: one of nnU-Net's, one of nndiffseg's, or ``module:Class`` for a variant that lives elsewhere.

    Raises:
        UserError: there is no such class.
    """
    if name.startswith(STOCK):
        from nndiffseg.inference.model_folder import trainer_by_name

        found = trainer_by_name(name)
        if found is None:
            raise UserError(f"nnU-Net has no trainer {name}.")
        return found
    if ":" in name:
        module, _, attribute = name.partition(":")
        found = getattr(importlib.import_module(module), attribute, None)
        if found is None:
            raise UserError(f"There is no trainer {attribute} in {module}.")
        return found
    from nndiffseg.cli.train import find_trainer

    return find_trainer(name)


def class_name(name: str) -> str:
    """The class's own name, without its module."""
    return name.rpartition(":")[2]


def label_of(name: str) -> str:
    """How tables and plots call a trainer."""
    return LABELS.get(name, class_name(name))


@dataclass(frozen=True)
class Entry:
    """One trained model of a comparison.

    Attributes:
        trainer: see :func:`find_class`.
        options: of its method, ``NAME=VALUE`` each, as ``nndiffseg_train --option`` takes them.
    """

    trainer: str
    options: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Unique within a comparison: the class, with its options behind."""
        return " ".join([class_name(self.trainer), *self.options])

    @property
    def flags(self) -> list[str]:
        """The entry again, for a command."""
        return ["--trainer", self.trainer, *(text for option in self.options for text in ("--option", option))]

    def of(self, data: Data) -> Data:
        """The data with the options in its plans and, so that nothing is mixed up, a results folder of their own.

        Raises:
            UserError: the method has no such option, or the value is out of range.
        """
        if not self.options:
            return data
        from nndiffseg.cli.train import set_options

        plans = json.loads(json.dumps(data.plans))
        set_options(plans, data.configuration, find_class(self.trainer).method_class, self.options)
        return replace(data, plans=plans, results=data.results / "with_options" / "_".join(self.options))
