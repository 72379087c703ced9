"""The trainings behind the fair table: all sides on the same plans, batches, precision and number of iterations.

Stock nnU-Nets of several seeds, nndiffseg's joint training, and on the first nnU-Net a stochastic segmentation network and an
attached sampler. Trainings are resumed, and not repeated once they are finished.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.compare.data import Data
from benchmarks.compare.evaluation import Source
from benchmarks.compare.flags import Budget
from benchmarks.compare.library import FINAL
from benchmarks.compare.ssn_model import TRAINER as SSN
from benchmarks.compare.trainers import OURS, STOCK, Entry, class_name
from benchmarks.compare.training import RECORD, train
from nndiffseg.cli.attach import size_for
from nndiffseg.data.files import write_json
from nndiffseg.planning.attach import attached_plans, read_model

ATTACHED = "nnDiffSegTrainerAttached"
#: what ``--only`` takes
KINDS = ("nnunet", "nndiffseg", "attached", "ssn")


@dataclass(frozen=True)
class Trainings:
    """What is trained on one fold, and where.

    Attributes:
        data: of the fold; ``results`` holds ``seed_S`` folders.
        budget: of every training.
        seed: of all but the further nnU-Nets, whose seeds follow.
        members: number of nnU-Nets.
    """

    data: Data
    budget: Budget
    seed: int
    members: int

    def of_seed(self, seed: int) -> Data:
        return replace(self.data, results=self.data.results / f"seed_{seed}")

    @property
    def nnunets(self) -> list[Source]:
        return [Source(self.of_seed(self.seed + i), Entry(STOCK)) for i in range(self.members)]

    @property
    def joint(self) -> Source:
        return Source(self.of_seed(self.seed), Entry(OURS))

    @property
    def ssn(self) -> Source:
        return Source(self.of_seed(self.seed), Entry(SSN))

    @property
    def attached(self) -> Source:
        """The attached sampler, whose plans are those that were made for its nnU-Net."""
        data = self.of_seed(self.seed)
        model = replace(data, plans=data.plans | {"plans_name": self.attached_name}).fold_folder(ATTACHED).parent
        return Source(replace(data, plans=json.loads((model / "plans.json").read_text())), Entry(ATTACHED))

    @property
    def attached_name(self) -> str:
        """Of the plans of the attached sampler."""
        return f"{self.data.plans['plans_name']}Attached"

    @property
    def stock_folder(self) -> Path:
        """Model folder of the first nnU-Net."""
        return self.of_seed(self.seed).fold_folder(STOCK).parent

    def run(self, kinds: Sequence[str], device: torch.device) -> None:
        """Trains what is not trained yet."""
        steps: dict[str, Callable[[torch.device], None]] = {
            "nnunet": self._train_nnunets,
            "nndiffseg": lambda device: self._train(self.joint, self.seed, device),
            "attached": self._train_attached,
            "ssn": self._train_ssn,
        }
        for kind in kinds:
            steps[kind](device)

    def _train(self, source: Source, seed: int, device: torch.device, prepare: Callable[[Any], None] | None = None) -> None:
        print(f"Training of {source.entry.name}, fold {self.data.fold}, seed {seed}, {self.budget}.", flush=True)
        train(source.data, source.entry, self.budget, device, seed, bfloat16=True, prepare=prepare)

    def _train_nnunets(self, device: torch.device) -> None:
        for number, source in enumerate(self.nnunets):
            self._train(source, self.seed + number, device)

    def _train_ssn(self, device: torch.device) -> None:
        weights = self.stock_folder / f"fold_{self.data.fold}" / FINAL

        def prepare(trainer: Any) -> None:
            trainer.source = str(weights)

        self._train(self.ssn, self.seed, device, prepare)

    def _train_attached(self, device: torch.device) -> None:
        data, fold = self.of_seed(self.seed), str(self.data.fold)
        model = read_model(self.stock_folder, [fold], FINAL)
        plans, _ = attached_plans(model, data.preprocessed, self.attached_name, size_for(model), resume=False)
        write_json(plans, data.preprocessed / f"{self.attached_name}.json", strict=False)
        source = Source(replace(data, plans=plans), Entry(ATTACHED))
        self._train(source, self.seed, device, lambda trainer: trainer.load_pretrained_weights(str(model.weights(fold))))


def processor_minutes(source: Source) -> float | None:
    """Minutes that the optimiser's steps of a training take on an idle machine; None where nothing was recorded."""
    file = source.data.fold_folder(class_name(source.entry.trainer)) / RECORD
    if not file.is_file():
        return None
    record = json.loads(file.read_text())
    return None if record["seconds_per_iteration"] is None else record["iterations"] * record["seconds_per_iteration"] / 60
