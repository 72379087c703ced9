"""The commands in processes of their own, quickly started, on small generated data, for the suites that disturb them.

Each command is forked from a process that has imported nndiffseg already, so that a kill meets its work and not its imports.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from stock_world import make_stock_world

DATASET, PLANS = "Dataset901_Tiny", "nnDiffSegPlansS"
MODEL = Path("results", DATASET, f"nnDiffSegTrainer__{PLANS}__3d_fullres")
STOCK = Path("results", DATASET, "nnUNetTrainer__nnUNetPlansTiny__3d_fullres")
ATTACHED = Path("results", DATASET, "nnDiffSegTrainerAttached__nnUNetPlansTinyAttached__3d_fullres")
CPU = ("-device", "cpu", "--disable_progress_bar")
LENGTH = ("--epochs", "2", "--iterations_per_epoch", "4")
#: after which a command counts as hanging, on a machine full of other work, too
SECONDS = 900


@dataclass(frozen=True)
class Command:
    """A command as a user types it, with ``BASE`` for the world's folder.

    Attributes:
        name: such as ``train``.
        words: its arguments; the flags of the folders are added where it has them.
        again: what is added where it goes on after a kill.
        settings: module-level values that it runs with, such as ``{"nndiffseg.training.loop.CHECKPOINT_SECONDS": 0}``.
    """

    name: str
    words: tuple[str, ...]
    again: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def arguments(self, base: Path, *more: str) -> list[str]:
        folders = () if self.name in ("export", "evaluate", "demo") else ("raw", "preprocessed", "results")
        words = [*self.words, *more, *(f"--{kind}=BASE/{kind}" for kind in folders)]
        return [word.replace("BASE", str(base)) for word in words]


PLAN = Command(
    "plan_and_preprocess",
    ("-d", "901", "-pl", "DiffSegPlannerS", "-c", "3d_fullres", "--no_pbar", "-np", "1", "-npfp", "1"),
)
TRAIN = Command("train", ("901", "3d_fullres", "0", "-p", PLANS, *LENGTH, *CPU), ("--c",))
VALIDATE = Command("train", ("901", "3d_fullres", "0", "-p", PLANS, *CPU, "--val"))
PREDICT = Command(
    "predict",
    ("-i", f"BASE/raw/{DATASET}/imagesTr", "-o", "BASE/out", "-m", f"BASE/{MODEL}", "--samples", "3", "--save_samples", *CPU),
    ("--continue_prediction",),
)
CALIBRATE = Command("calibrate", (f"BASE/{STOCK}", *CPU))
ATTACH = Command("attach", (f"BASE/{STOCK}", "--folds", "0", "--epochs", "1", "--iterations_per_epoch", "4", *CPU), ("--c",))


# ---- processes --------------------------------------------------------------------------------------------------------


def _become(command: Command, arguments: list[str], log: str, before: Callable[[], None] | None) -> None:
    """In the new process: the command, in a process group of its own."""
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # as in a command that a user starts
    file = open(log, "w", buffering=1)  # noqa: SIM115 - open as long as the process lives
    for number in (1, 2):
        os.dup2(file.fileno(), number)
    sys.stdout = sys.stderr = file
    sys.argv = [f"nndiffseg_{command.name}", *arguments]
    for name, value in command.settings.items():
        module, _, attribute = name.rpartition(".")
        setattr(importlib.import_module(module), attribute, value)
    main = importlib.import_module(f"nndiffseg.cli.{command.name}").main
    if before is not None:
        before()
    sys.exit(main(arguments))


@cache
def _context() -> Any:
    context = multiprocessing.get_context("forkserver")
    commands = ("plan_and_preprocess", "train", "predict", "calibrate", "attach", "evaluate", "export")
    work = ("nndiffseg.planners", "nndiffseg.trainers", "nndiffseg.inference.folder", "nndiffseg.training.validation")
    context.set_forkserver_preload(["command_world", *(f"nndiffseg.cli.{c}" for c in commands), *work])
    return context


def start(command: Command, base: Path, log: Path, *more: str, before: Callable[[], None] | None = None) -> Any:
    """Starts a command whose output goes to ``log``; ``before`` is called in its process, after its imports."""
    log.unlink(missing_ok=True)
    process = _context().Process(target=_become, args=(command, command.arguments(base, *more), str(log), before))
    process.start()
    return process


def ended(process: Any) -> int:
    """Waits for a command; its exit code."""
    process.join(SECONDS)
    assert process.exitcode is not None, f"it hangs for more than {SECONDS} s"
    return process.exitcode


def finish(command: Command, base: Path, *more: str, before: Callable[[], None] | None = None) -> tuple[int, str]:
    """Runs a command to its end; exit code and output."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        code = ended(start(command, base, log, *more, before=before))
        return code, log.read_text(errors="replace")


def first_line(process: Any, log: Path) -> None:
    """Waits until a command says something."""
    deadline = time.monotonic() + SECONDS
    while process.is_alive() and time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError):
            if log.stat().st_size:
                return
        time.sleep(0.005)


# ---- what they work on ------------------------------------------------------------------------------------------------


@cache
def world(make_dataset: Callable[..., Path]) -> Path:
    """Data of six cases, planned; a short training of fold 0 with its validation; a stock model of two folds.

    Made once in a test process, to be copied.
    """
    import atexit

    base = Path(tempfile.mkdtemp(prefix="nndiffseg_world_"))
    atexit.register(shutil.rmtree, base, ignore_errors=True)
    _context()
    before = {name: os.environ.get(name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    try:
        made = make_stock_world(make_dataset, base, cases=6)
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
    assert made.model == base / STOCK
    code, text = finish(TRAIN, base)
    assert code == 0, text
    return base
