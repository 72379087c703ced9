"""What the comparisons of methods share: trainers by name, the command line, unattended commands, kept measurements."""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, tree_memory
from nndiffseg.cli.common import Parser
from nndiffseg.data.files import write_json
from nndiffseg.errors import UserError

STOCK = "nnUNetTrainer"
TRAINERS = (STOCK, "nnDiffSegTrainer", "nnDiffSegTrainerLDSeg", "nnDiffSegTrainerCDAL", "nnDiffSegTrainerMedSegDiffV2")
LABELS = dict(zip(TRAINERS, ("nnU-Net", "nnDiffSeg", "LDSeg", "cDAL", "MedSegDiff-V2"), strict=True))


# ---- command line -------------------------------------------------------------------------------------------------


def data_parser(description: str) -> Parser:
    """A parser with the flags that say which data, fold and results are meant."""
    parser = Parser(description)
    parser.add_argument("--dataset", "-d", default="4", help="id or name (default: %(default)s)")
    parser.add_argument("--configuration", "-c", default="2d", help="of the plans (default: %(default)s)")
    parser.add_argument("--fold", "-f", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--planner", default="S", help="size of the planner, S, M or L (default: %(default)s)")
    parser.add_argument("--plans", "-p", help="name of the plans, instead of --planner")
    parser.add_argument("--cases", type=int, help="predict so many validation cases, spread evenly (default: all)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda", "mps"), help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--disable_tta", action="store_true", help="no mirroring, in nnU-Net neither")
    for kind in ("raw", "preprocessed", "results"):
        parser.add_argument(f"--{kind}", metavar="FOLDER", help=f"overrides nnUNet_{kind}")
    return parser


def add_budget_flags(parser: argparse.ArgumentParser) -> None:
    """``--iterations`` and ``--minutes``, see :func:`budget_from`."""
    parser.add_argument("--iterations", type=int, help="of every training")
    parser.add_argument(
        "--minutes",
        type=float,
        help="of every training, instead of --iterations; without either, only finished trainings are used",
    )


def add_trainers_flag(parser: argparse.ArgumentParser, default: Sequence[str] = TRAINERS) -> None:
    parser.add_argument("--trainers", nargs="+", default=list(default), metavar="TRAINER", help="default: all of them")


def passed_on(args: argparse.Namespace, *more: str) -> list[str]:
    """The flags of :func:`data_parser` again, and ``more``, for a command that works on the same data."""
    names = (
        "dataset",
        "configuration",
        "fold",
        "plans",
        "planner",
        "cases",
        "device",
        "seed",
        "raw",
        "preprocessed",
        "results",
        *more,
    )
    given = [(name, getattr(args, name)) for name in names]
    flags = [text for name, value in given if value is not None for text in (f"--{name}", str(value))]
    return flags + (["--disable_tta"] if args.disable_tta else [])


@dataclass(frozen=True)
class Budget:
    """Length of a training: iterations, or minutes, or neither (what is trained is taken as it is)."""

    iterations: int | None
    minutes: float | None

    def __str__(self) -> str:
        return f"{self.iterations} iterations" if self.minutes is None else f"{self.minutes:g} minutes"

    @property
    def given(self) -> bool:
        return self.iterations is not None or self.minutes is not None


def budget_from(args: argparse.Namespace) -> Budget:
    """Raises UserError where both flags are given or one is not positive."""
    if args.iterations is not None and args.minutes is not None:
        raise UserError("Give either --iterations or --minutes, not both.")
    for flag in ("iterations", "minutes"):
        value = getattr(args, flag)
        if value is not None and not value > 0:
            raise UserError(f"--{flag} must be positive, not {value}.")
    return Budget(args.iterations, args.minutes)


# ---- trainers -----------------------------------------------------------------------------------------------------


def find_class(name: str) -> Any:
    """A trainer class: ``nnUNetTrainer``, one of nndiffseg's, or ``module:Class`` for a variant that lives elsewhere.

    Raises:
        UserError: there is no such class.
    """
    if name == STOCK:
        from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

        return nnUNetTrainer
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
    """How tables and figures call a trainer."""
    return LABELS.get(name, class_name(name))


def clock_of(device: Any) -> Callable[[], float]:
    """What times a ``torch.device``: processor seconds of this process (all its threads) on the CPU, so that whatever else
    the machine does leaves no trace in a comparison; wall-clock on an accelerator, after its queue is empty."""
    if device.type == "cpu":
        return time.process_time

    def wait_and_see() -> float:
        import torch

        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    return wait_and_see


def clock_name(device: str) -> str:
    """What :func:`clock_of` measures, in words."""
    return "processor seconds" if device == "cpu" else "wall-clock seconds"


# ---- commands that run unattended ---------------------------------------------------------------------------------


def stop_cleanly_on_terminate() -> None:
    """SIGTERM ends this program as Ctrl-C does, so that its children end with it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def run_module(module: str, arguments: Iterable[str]) -> tuple[int, float]:
    """Runs ``python -m module`` with this program's output; returns its exit code and peak memory in GB."""
    process, peak = subprocess.Popen([sys.executable, "-m", module, *arguments]), 0.0
    try:
        while process.poll() is None:
            peak = max(peak, tree_memory(process.pid))
            time.sleep(0.1)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    return process.returncode, peak / 2**30


class Measurements:
    """Results that took long, in a JSON file: an interrupted benchmark goes on where it stopped.

    Args:
        folder, name: of the file; results with different settings are in different files.
        settings: what the results depend on, JSON-ready.
    """

    def __init__(self, folder: Path, name: str, settings: dict[str, Any]):
        self.settings = settings
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
        self.path = folder / f"{name}_{digest}.json"
        self.values: dict[str, Any] = json.loads(self.path.read_text())["values"] if self.path.is_file() else {}

    def get(self, key: str, measure: Callable[[], Any]) -> Any:
        """The value of ``key``, measured where it is not known; JSON-ready."""
        if key not in self.values:
            started = time.monotonic()
            self.values[key] = measure()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json({"settings": self.settings, "values": self.values}, self.path)
            print(f"{key} ({time.monotonic() - started:.0f} s)", flush=True)
        return self.values[key]


def earlier_result(name: str) -> dict[str, Any]:
    """What :func:`benchmarks.common.report` wrote under this name, or an empty dictionary."""
    file = RESULTS / f"{name}.json"
    return json.loads(file.read_text()) if file.is_file() else {}
