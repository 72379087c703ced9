"""Want of memory, however it is told."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from nndiffseg.errors import UserError

#: what a sentence about it begins with
TOO_LITTLE = "There is too little memory"
#: what oneDNN, which computes torch's convolutions on a processor, says of it; of a convolution that it does not have it says
#: "could not create a primitive descriptor"
ONEDNN = ("could not create a primitive", "could not execute a primitive", "could not create a memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is too small: torch tells of the processor's in a RuntimeError like any other."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, MemoryError) or _is_of_gpu(error):
        return True
    text = str(error)
    of_onednn = text.startswith(ONEDNN) and "descriptor" not in text
    return isinstance(error, RuntimeError) and (("alloc" in text and "memory" in text) or "bad_alloc" in text or of_onednn)


def _is_of_gpu(error: BaseException) -> bool:
    return type(error).__name__ == "OutOfMemoryError"


class LittleMemoryError(UserError):
    """Memory is too small for something; what needs less may go on."""


@contextmanager
def little_memory_told(what: str, remedy: str) -> Iterator[None]:
    """Turns want of memory into a sentence; other errors stay what they are.

    Args:
        what: needs the memory, for the message.
        remedy: where it is the processor's memory.

    Raises:
        LittleMemoryError: memory is too small.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        who, remedy = ("The GPU has too little memory", "use -device cpu") if _is_of_gpu(error) else (TOO_LITTLE, remedy)
        raise LittleMemoryError(f"{who} for {what}; close what else runs, or {remedy}.") from None
