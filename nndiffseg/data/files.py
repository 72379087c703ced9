"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import gzip
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from nndiffseg.errors import UserError

#: bytes; the summary of 10,000 cases with 100 structures has less
LARGEST_JSON = 500_000_000
#: bytes; a disk with less is full
LEAST_SPACE = 2**20


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Yields a hidden temporary path in the folder of ``path``; when the block ends, that file replaces ``path``.

    A kill at any moment, also of the machine, leaves the old file or the new one. After an exception, the old file stays
    and the temporary one is removed.

    Args:
        path: in an existing folder.
    """
    # Processes of other machines may have this one's number.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_temporaries(folder: Path) -> None:
    """Removes what killed runs of :func:`write_atomically` left in a folder in which no other process writes now."""
    for file in folder.glob(".*.tmp"):
        if re.fullmatch(r"\..+\.[0-9a-f]{16}\.tmp", file.name) and file.is_file():
            file.unlink()


def is_full(error: BaseException, folder: Path) -> bool:
    """Whether a full disk (or quota) is behind an error in writing; the RuntimeErrors of ITK and blosc2 do not tell."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return isinstance(error, EOFError) or shutil.disk_usage(folder).free < LEAST_SPACE


def check_space(folder: Path) -> None:
    """Says before any work that a disk is full, so that nothing small, nnU-Net's own files included, is cut off on it.

    Args:
        folder: to write to; it need not exist.

    Raises:
        UserError: less than :data:`LEAST_SPACE` is free.
    """
    place = next(part for part in (folder, *folder.absolute().parents) if part.is_dir())
    if (free := shutil.disk_usage(place).free) < LEAST_SPACE:
        raise UserError(
            f"No space left on the disk of {folder} ({free / 1e6:.2f} MB); free some space or choose another folder and try "
            "again."
        )


def check_gzip(folder: Path) -> None:
    """Reads compressed files to their end: on a full disk, ITK leaves a truncated NIfTI and reports success.

    Raises:
        EOFError: a file below ``folder`` is truncated.
    """
    for file in folder.rglob("*.gz"):
        with gzip.open(file) as stream:
            while stream.read(1 << 22):
                pass


@contextmanager
def full_disk_told(folder: Path, what: str) -> Iterator[None]:
    """Turns an error in writing into a sentence where a full disk is behind it.

    Args:
        folder: that the block writes into.
        what: is being written, for the message.

    Raises:
        UserError: the disk is full.
    """
    try:
        yield
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        if not is_full(error, folder):
            raise
        raise UserError(
            f"No space left on the disk of {folder} for {what}; free some space or choose another folder, and run the command "
            "again: what is complete stays."
        ) from error


def read_json(path: str | os.PathLike[str], remedy: str = "copy or make it again") -> Any:
    """The content of a JSON file that somebody else may have written.

    Args:
        path: of an existing file.
        remedy: what to do, the end of the message.

    Raises:
        UserError: it is not JSON, or larger than :data:`LARGEST_JSON`.
    """
    if (size := os.stat(path).st_size) > LARGEST_JSON:
        raise UserError(f"{path} has {size / 1e6:.0f} MB, far more than any such file needs; {remedy}.")
    try:
        return json.loads(Path(path).read_text(encoding="utf8"))
    except (ValueError, RecursionError) as error:  # wrong JSON, wrong text, and numbers of thousands of digits
        raise UserError(f"{path} is not valid JSON ({error}); {remedy}.") from None


def write_json(content: Any, path: str | os.PathLike[str], *, strict: bool = True) -> None:
    """Writes JSON by :func:`write_atomically`; missing folders are made.

    Args:
        content: JSON-ready; floats may be NaN or infinite.
        path: of the file.
        strict: NaN and infinity become null, as the standard asks. False keeps them, as nnU-Net's own files do: its planner
            reads NaN from the fingerprint of a dataset without foreground.
    """
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(file) as temporary:
        temporary.write_text(json_text(content, strict=strict), encoding="utf8")


def json_text(content: Any, *, strict: bool = True) -> str:
    """What :func:`write_json` writes."""
    return f"{json.dumps(_without_nan(content) if strict else content, indent=4, allow_nan=not strict)}\n"


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
