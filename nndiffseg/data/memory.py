"""Want of memory, however it is told."""

from __future__ import annotations


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is too small: torch tells of the processor's in a RuntimeError like any other."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or (isinstance(error, RuntimeError) and "alloc" in str(error) and "memory" in str(error))
