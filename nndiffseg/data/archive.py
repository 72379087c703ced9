"""Reads the file of a checkpoint: nothing in it is executed, and damage, other tools' files and want of memory are told apart.

PyTorch writes a zip file. Its reader does not compare the checksums of what it reads, and one bit that was flipped on a disk
or on the way gives other weights without a word. So the checksums are compared here first, at about a second per gigabyte.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from nndiffseg.data.memory import is_out_of_memory
from nndiffseg.errors import UserError

#: what torch and zipfile may raise about a file that is damaged or of another kind
UNREADABLE = (
    UnpicklingError,
    RuntimeError,
    OSError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    RecursionError,
    SyntaxError,
    zipfile.BadZipFile,
    zlib.error,
)
#: most values, and deepest nesting, of what a checkpoint holds beside its tensors: far more than any training writes
MOST_VALUES, DEEPEST = 1_000_000, 50


def read_archive(path: Path, device: torch.device | str = "cpu", *, tensors: bool = True) -> Any:
    """What ``torch.save`` wrote, without executing code from it.

    Args:
        path: of an existing file.
        device: of the tensors.
        tensors: False leaves them on the disk, mapped and unchecked, where only what stands beside them is wanted.

    Raises:
        UserError: it is damaged, no such file, holds more than numbers, text and tensors, or does not fit into memory.
        OSError: it may not be read.
    """
    with open(path, "rb") as file:
        start = file.read(4)
    if start != b"PK\x03\x04":
        raise UserError(
            f"{path} cannot be read as a checkpoint of nndiffseg or nnU-Net, it is a file of another kind; choose another file."
        )
    try:
        _check_zip(path, whole=tensors)
        content = torch.load(path, map_location=device, weights_only=True, mmap=not tensors)
        check_size(content, str(path))
        for tensor in _tensors(content):
            _check_form(tensor)
    except UserError:
        raise
    except (MemoryError, torch.OutOfMemoryError):
        raise _no_memory(path) from None
    except UNREADABLE as error:
        if is_out_of_memory(error):
            raise _no_memory(path) from None
        if isinstance(error, UnpicklingError) and re.search(r"(?i)unsupported (global|class)", str(error)):
            raise UserError(
                f"{path} cannot be read as a checkpoint of nndiffseg or nnU-Net: it holds objects of other programs, which are "
                "never loaded because they may run commands; choose another file."
            ) from None
        raise UserError(
            f"{path} cannot be read as a checkpoint of nndiffseg or nnU-Net, it is damaged; copy it again, train the fold "
            "again, or choose another with -chk."
        ) from None
    return content


def check_size(content: Any, what: str) -> None:
    """Bounds what later code walks through: a few bytes of a pickle may stand for lists without end.

    Raises:
        UserError: there are more than :data:`MOST_VALUES` values, or they are nested more than :data:`DEEPEST` times.
    """
    for count, (_, depth) in enumerate(_walk(content)):
        if count > MOST_VALUES or depth > DEEPEST:
            raise UserError(f"{what} holds more values, or deeper ones, than any training writes; choose another file.")


def check_finite(state: Any, path: str | Path, what: str = "weights") -> None:
    """Checks all tensors in a part of a checkpoint.

    Raises:
        UserError: one holds NaN or infinity, which would make a segmentation that looks like any other.
    """
    for tensor in _tensors(state):
        if not _is_finite(tensor):
            raise UserError(
                f"The {what} in {path} are not finite, so that nothing can be computed from them; choose another checkpoint "
                "with -chk, or train the fold again."
            )


def _is_finite(tensor: torch.Tensor) -> bool:
    if tensor.dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16) and tensor.numel():
        low, high = torch.aminmax(tensor)  # NaN is both; nothing of the tensor's size is made
        return bool(torch.isfinite(low) & torch.isfinite(high))
    return bool(torch.isfinite(tensor).all())


def _check_zip(path: Path, *, whole: bool) -> None:
    """Raises one of :data:`UNREADABLE` about a zip file that torch did not write, or that has changed since."""
    with zipfile.ZipFile(path) as archive:
        # what is compressed could be any size
        if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in archive.infolist()):
            raise zipfile.BadZipFile("compressed or encrypted")
        if whole and (name := archive.testzip()) is not None:
            raise zipfile.BadZipFile(name)


def _check_form(tensor: torch.Tensor) -> None:
    """Raises ValueError about a tensor that is not one plain block of numbers, all of which were stored."""
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        raise ValueError("no plain tensor")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ValueError("a tensor of more numbers than were stored")


def _tensors(content: Any) -> Iterator[torch.Tensor]:
    return (value for value, _ in _walk(content) if isinstance(value, torch.Tensor))


def _walk(content: Any) -> Iterator[tuple[Any, int]]:
    """Everything in it, with its depth; no recursion, because foreign files may be nested deeper than Python allows."""
    waiting: list[tuple[Any, int]] = [(content, 0)]
    while waiting:
        value, depth = waiting.pop()
        yield value, depth
        if isinstance(value, Mapping):
            inner = [*value.keys(), *value.values()]
        else:
            inner = list(value) if isinstance(value, (list, tuple, set, frozenset)) else []
        waiting.extend((item, depth + 1) for item in inner)


def _no_memory(path: Path) -> UserError:
    return UserError(
        f"There is too little memory to read {path} ({path.stat().st_size / 1e9:.1f} GB), which is not damaged as far as was "
        "read; close what else runs, or use a machine with more memory."
    )
