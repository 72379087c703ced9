"""What a command writes when nobody disturbs it, in a form that can be compared: for the suites that disturb it."""

from __future__ import annotations

import json
import shutil
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
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
    """A command that is disturbed.

    Attributes:
        command: runs.
        results: folders or files of the world that it writes.
        without: what of the world is removed before.
    """

    command: Command
    results: tuple[Path, ...]
    without: tuple[Path, ...] = ()


DATA, RESULTS, OUT = Path("preprocessed"), Path("results"), Path("out")
#: the commands that write most
STAGES = {
    "planning and preprocessing": Stage(PLAN, (DATA,), (DATA, RESULTS)),
    "training": Stage(TRAIN, (MODEL,), (RESULTS,)),
    "validation": Stage(VALIDATE, (MODEL,)),
    "prediction": Stage(PREDICT, (OUT,)),
    "calibration": Stage(CALIBRATE, (STOCK,), (MODEL,)),
    "attaching": Stage(ATTACH, (ATTACHED, DATA), (MODEL,)),
}


@dataclass(frozen=True)
class Undisturbed:
    """What a stage wrote: file -> content, its bytes on the disk, and the seconds from its first line on."""

    contents: dict[str, Any]
    size: int
    seconds: float


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
    if file.suffix == ".zip":
        with zipfile.ZipFile(file) as archive:
            return {name: archive.read(name) for name in archive.namelist()}
    if file.suffix in (".json", ".jsonl", ".html"):
        text = file.read_text().replace(str(base), "BASE")
        if file.suffix == ".html":
            return text
        return plain([json.loads(line) for line in text.splitlines()] if file.suffix == ".jsonl" else json.loads(text))
    return file.read_bytes()


def files_of(base: Path, stage: Stage) -> list[Path]:
    """All files that the stage writes, or that were there before."""
    found = [f for place in stage.results for f in ((base / place).rglob("*") if (base / place).is_dir() else [base / place])]
    return sorted(f for f in found if f.is_file() and not any(map(f.match, UNCOMPARED)))


def contents(base: Path, stage: Stage) -> dict[str, Any]:
    """File -> what it holds, of :func:`files_of`."""
    return {str(f.relative_to(base)): content(f, base) for f in files_of(base, stage)}


def differences(found: Any, wanted: Any, place: str = "") -> list[str]:
    """Where two contents differ."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        missing = [f"{place}/{key}: only in one" for key in found.keys() ^ wanted.keys()]
        return missing + [
            d for key in found.keys() & wanted.keys() for d in differences(found[key], wanted[key], f"{place}/{key}")
        ]
    if isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        return [d for i, pair in enumerate(zip(found, wanted, strict=True)) for d in differences(*pair, f"{place}/{i}")]
    return [] if found == wanted else [f"{place}: {str(found)[:60]}, not {str(wanted)[:60]}"]


def copied(source: Path, folder: Path, stage: Stage) -> Path:
    """A copy of the world before a stage."""
    base = Path(shutil.copytree(source, folder, dirs_exist_ok=True))
    for part in stage.without:
        shutil.rmtree(base / part)
    return base


@cache
def _undisturbed(make_dataset: Callable[..., Path], command: str, *key: Any) -> Undisturbed:
    stage: Stage = _STAGES[key]
    source = world(make_dataset)
    base = copied(source, source.with_name(f"{source.name}_{command}"), stage)
    log = base.with_suffix(".log")
    try:
        before = sum(f.stat().st_size for f in files_of(base, stage))
        process = start(stage.command, base, log)
        first_line(process, log)
        began = time.monotonic()
        assert ended(process) == 0, log.read_text()
        seconds = time.monotonic() - began
        return Undisturbed(contents(base, stage), sum(f.stat().st_size for f in files_of(base, stage)) - before, seconds)
    finally:
        shutil.rmtree(base)
        log.unlink()


_STAGES: dict[Any, Stage] = {}


def undisturbed(make_dataset: Callable[..., Path], stage: Stage) -> Undisturbed:
    """What a stage writes when nobody disturbs it; computed once in a test process."""
    key = (repr(stage),)
    _STAGES[key] = stage
    return _undisturbed(make_dataset, stage.command.name, *key)
