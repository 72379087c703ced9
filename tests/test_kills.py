"""SIGKILL of whole process groups at random moments: run again, each command comes to the result of an undisturbed run.

`pytest -n 0 -m slow tests/test_kills.py` (docs/reliability.md has the figures).
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_world import (
    ATTACH,
    ATTACHED,
    CALIBRATE,
    MODEL,
    PLAN,
    PREDICT,
    STOCK,
    TRAIN,
    VALIDATE,
    Command,
    ended,
    finish,
    first_line,
    start,
    world,
)

from nndiffseg.data.checkpoint import NUMPY_TYPES

#: differ between two undisturbed runs, too
TIMES = {"seconds", "epoch_start_timestamps", "epoch_end_timestamps", "training_id", "continue_training"}
UNCOMPARED = ("training_log_*.txt", "progress*.png", "hashes.json", ".lock", "debug.json")


@dataclass(frozen=True)
class Stage:
    """A command that is killed.

    Attributes:
        command: runs.
        results: folders of the world that it writes.
        without: what of the world is removed before.
        tests: number of tests; the n-th has 1, 2, 3, 1, ... kills one after another.
    """

    command: Command
    results: tuple[Path, ...]
    without: tuple[Path, ...]
    tests: int


OFTEN = {"nndiffseg.training.loop.CHECKPOINT_SECONDS": 0}  # else a training of seconds has no state to go on from
TWO = replace(PLAN, words=(*PLAN.words[:-4], "-np", "2", "-npfp", "2"))
DATA, RESULTS, OUT = Path("preprocessed"), Path("results"), Path("out")
STAGES = {
    "planning and preprocessing": Stage(PLAN, (DATA,), (DATA, RESULTS), 5),
    "preprocessing with two processes": Stage(TWO, (DATA,), (DATA, RESULTS), 3),
    "training": Stage(replace(TRAIN, settings=OFTEN), (MODEL,), (RESULTS,), 6),
    "validation": Stage(VALIDATE, (MODEL,), (), 5),
    "prediction": Stage(PREDICT, (OUT,), (), 5),
    "prediction with processes": Stage(replace(PREDICT, words=(*PREDICT.words, "-npp", "2", "-nps", "2")), (OUT,), (), 3),
    "calibration": Stage(CALIBRATE, (STOCK,), (MODEL,), 3),
    "attaching": Stage(replace(ATTACH, settings=OFTEN), (ATTACHED, DATA), (MODEL,), 4),
}
KILLS = [(name, number) for name, stage in STAGES.items() for number in range(stage.tests)]


def test_there_are_at_least_fifty_kills() -> None:
    assert sum(1 + number % 3 for _, number in KILLS) >= 50


# ---- what is compared -------------------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """Without times, and with what can be compared by ``==``."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items() if k not in TIMES}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, (torch.Tensor, np.ndarray)):
        array = np.asarray(value)
        return str(array.dtype), array.shape, array.tobytes()
    return repr(value) if isinstance(value, float) else value  # NaN is equal to itself


def content(file: Path, base: Path) -> Any:
    if file.suffix == ".pth":
        with torch.serialization.safe_globals(NUMPY_TYPES):
            return plain(torch.load(file, weights_only=True))
    if file.suffix == ".npz":
        with np.load(file, allow_pickle=False) as arrays:
            return plain(dict(arrays))
    if file.suffix in (".json", ".jsonl", ".html"):
        text = file.read_text().replace(str(base), "BASE")
        if file.suffix == ".html":
            return text
        return plain([json.loads(line) for line in text.splitlines()] if file.suffix == ".jsonl" else json.loads(text))
    return file.read_bytes()


def contents(base: Path, stage: Stage) -> dict[str, Any]:
    """File -> what it holds, of all that the stage writes."""
    files = [f for folder in stage.results for f in (base / folder).rglob("*") if f.is_file()]
    return {str(f.relative_to(base)): content(f, base) for f in sorted(files) if not any(map(f.match, UNCOMPARED))}


# ---- kills ------------------------------------------------------------------------------------------------------------


def copied(source: Path, folder: Path, stage: Stage) -> Path:
    base = Path(shutil.copytree(source, folder))
    for part in stage.without:
        shutil.rmtree(base / part)
    return base


@cache
def undisturbed(make_dataset: Callable[..., Path], name: str) -> tuple[dict[str, Any], float]:
    """What a stage writes when nobody disturbs it, and how many seconds it takes from its first line on."""
    stage, source = STAGES[name], world(make_dataset)
    base = copied(source, source.with_name(f"{source.name}_{abs(hash(name))}"), stage)
    try:
        log = base.with_suffix(".log")
        process = start(stage.command, base, log)
        first_line(process, log)
        began = time.monotonic()
        assert ended(process) == 0, log.read_text()
        seconds = time.monotonic() - began
        return contents(base, stage), seconds
    finally:
        shutil.rmtree(base)
        log.unlink()


def kill(command: Command, base: Path, log: Path, seconds: float, *more: str) -> None:
    """Kills the process group of a command so many seconds after its first line; sooner where it ends before."""
    for _ in range(6):
        process = start(command, base, log, *more)
        first_line(process, log)
        time.sleep(seconds)
        if process.is_alive():
            os.killpg(process.pid, signal.SIGKILL)
        if ended(process) == -signal.SIGKILL:
            return
        assert process.exitcode == 0, log.read_text()
        seconds /= 2
    raise AssertionError("it always ended before it could be killed")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "number"), KILLS)
def test_a_killed_command_comes_to_the_result_of_an_undisturbed_one(make_dataset, tmp_path, name: str, number: int) -> None:
    stage, moments = STAGES[name], random.Random(f"{name} {number}")
    wanted, seconds = undisturbed(make_dataset, name)
    base, more = copied(world(make_dataset), tmp_path / "base", stage), ()
    for _ in range(1 + number % 3):
        kill(stage.command, base, tmp_path / "log", seconds * moments.random(), *more)
        more = stage.command.again
    code, text = finish(stage.command, base, *more)
    assert code == 0, text
    found = contents(base, stage)
    assert found.keys() == wanted.keys()
    assert not [file for file in wanted if found[file] != wanted[file]]
