"""The folder of one fold belongs to one training at a time: a lock, which state is the newest, and where earlier ones go."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from nndiffseg.data.checkpoint import load_any_checkpoint
from nndiffseg.data.files import remove_temporaries
from nndiffseg.data.lock import is_elsewhere, read_owner, try_lock, write_owner
from nndiffseg.errors import UserError

LOCK = ".lock"
#: seconds after which the lock of another computer counts as left behind; a training renews its own more often
STALE = 1800.0
#: of an earlier training, moved aside when a new one begins
BELONGINGS = ("checkpoint_*.pth", "validation", "calibration.json", "stats.jsonl", "progress*.png")


@contextmanager
def sole_user(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Keeps other trainings and validations out of a fold's folder; yields the lock file, whose time is to be renewed.

    Half-written files of killed trainings are removed.

    On one computer the operating system releases the lock with its process, however that ends. On a file system whose locks
    other computers do not see, the host and the process id in the file are compared, and its age.

    Raises:
        UserError: another process works in the folder.
    """
    file = Path(folder) / LOCK
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        text = os.read(descriptor, 1000).decode("utf8", "replace")
        if try_lock(descriptor) is False or _held_elsewhere(text, os.fstat(descriptor).st_mtime):
            raise UserError(_refusal(Path(folder), text))
        write_owner(descriptor)
        remove_temporaries(Path(folder))  # checkpoints of hundreds of MB
        try:
            yield file
        finally:
            with suppress(OSError):
                os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _held_elsewhere(text: str, changed: float) -> bool:
    return is_elsewhere(read_owner(text)) and time.time() - changed < STALE


def _refusal(folder: Path, text: str) -> str:
    owner = read_owner(text)
    who = f"process {owner.get('process')} on {owner.get('host')}" if owner else "another process"
    return (
        f"{folder} is in use by {who}; wait until it ends, or choose another fold (if it has ended for certain, remove "
        f"{folder / LOCK})."
    )


def set_aside(folder: str | os.PathLike[str]) -> Path | None:
    """Moves what an earlier training of this fold left into ``earlier_N``, so that nothing of it passes for the new one's.

    A calibration of the whole model to which this fold contributed goes with it.

    Returns:
        The folder it was moved to; None where there was no earlier training.
    """
    folder = Path(folder)
    if not any(folder.glob("checkpoint_*.pth")):
        return None
    number = 1
    while (target := folder / f"earlier_{number}").exists():
        number += 1
    target.mkdir()
    for pattern in BELONGINGS:
        for path in folder.glob(pattern):
            shutil.move(path, target / path.name)
    whole = folder.parent / "calibration.json"
    if whole.is_file() and folder.name.removeprefix("fold_") in _folds(whole):
        shutil.move(whole, target / "calibration_of_the_model.json")
    return target


def _folds(calibration: Path) -> list[str]:
    folds = read_owner(calibration.read_text(encoding="utf8", errors="replace")).get("folds")
    return [str(fold) for fold in folds] if isinstance(folds, list) else []


def newest_checkpoint(folder: str | os.PathLike[str]) -> Path | None:
    """The checkpoint of the furthest iteration of the training that wrote last; None where there is none.

    Trainings of version 0.2.0 have no id; there the file that was written last counts.

    Raises:
        UserError: one cannot be read.
    """
    names = ("checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth")
    files = [file for name in names if (file := Path(folder) / name).is_file()]
    if not files:
        return None
    last = max(files, key=lambda file: file.stat().st_mtime_ns)
    known = {file: load_any_checkpoint(file, tensors=False) for file in files}
    training = known[last].get("training_id")
    if training is None:
        return last
    own = [file for file in files if known[file].get("training_id") == training]
    return max(own, key=lambda file: _number(known[file].get("iteration")))


def _number(value: Any) -> float:
    return value if isinstance(value, (int, float)) else -1
