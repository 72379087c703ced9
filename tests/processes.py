"""`nndiffseg_train` as the processes of a test run it: in float32 whatever the processor has, with faults on demand.

python tests/processes.py 2 DATASET CONFIGURATION FOLD ...
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

import torch

from nndiffseg.cli import common, train
from nndiffseg.errors import UserError
from nndiffseg.training import loop
from nndiffseg.training.launch import launch
from nndiffseg.training.trainer import DiffusionTrainer

#: NAME:RANK:ITERATION of a fault, one of :data:`FAULTS`
FAULT = "NNDIFFSEG_TEST_FAULT"
#: where it is set, trainings are not validated
UNVALIDATED = "NNDIFFSEG_TEST_UNVALIDATED"


def main(argv: Sequence[str]) -> int:
    """Runs the command; a module-level function, so that spawned processes find it."""
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        setattr(torch.cpu, name, lambda: False)
    if UNVALIDATED in os.environ:
        DiffusionTrainer.perform_actual_validation = lambda *_: None  # type: ignore[method-assign]
    if FAULT in os.environ:
        _put_in(*os.environ[FAULT].split(":"))
    return train.main(argv)


def _put_in(name: str, rank: str, iteration: str) -> None:
    step = DiffusionTrainer.train_step
    loop.CHECKPOINT_SECONDS = 0.0

    def train_step(self: DiffusionTrainer, batch: dict) -> dict[str, float]:
        if self.iteration == int(iteration) and self.local_rank == int(rank):
            if name == "nan":
                batch["data"][:] = float("nan")
            else:
                FAULTS[name]()
        return step(self, batch)

    DiffusionTrainer.train_step = train_step  # type: ignore[method-assign]


def _kill(name: str) -> None:
    os.kill(os.getpid(), getattr(signal, name))


def _refuse() -> None:
    raise UserError("This one does not want to.")


def _bug() -> None:
    raise KeyError("a bug")


FAULTS = {
    "SIGKILL": lambda: _kill("SIGKILL"),
    "SIGTERM": lambda: _kill("SIGTERM"),
    "SIGUSR1": lambda: _kill("SIGUSR1"),
    "refuse": _refuse,
    "bug": _bug,
}


def run(number: int, argv: Sequence[str]) -> int:
    """The command with ``-num_gpus``, but for the faults."""
    if number == 1:
        return main(argv)
    return common.run(lambda _: launch(main, argv, number, torch.device("cpu")))


if __name__ == "__main__":
    sys.exit(run(int(sys.argv[1]), sys.argv[2:]))
