"""NumPy's ``.npz`` files of strangers: a few kilobytes may unpack to more than any memory holds."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path

#: what NumPy and zipfile may raise about a damaged file
NPZ_ERRORS = (
    OSError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    RuntimeError,
    MemoryError,
    SyntaxError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
)
#: for the headers of the arrays
HEADERS = 100_000


def check_npz(file: Path, largest: int) -> None:
    """Bounds what the arrays of a file unpack to.

    Args:
        file: of an existing file.
        largest: bytes.

    Raises:
        ValueError: they are larger; or one of :data:`NPZ_ERRORS` about a damaged file.
    """
    with zipfile.ZipFile(file) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > largest + HEADERS:
        raise ValueError(f"it unpacks to {size} bytes instead of at most {largest}")
