"""Files that one process at a time owns, on this computer and, where file systems pass locks on, on others."""

from __future__ import annotations

import json
import os
import socket
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def try_lock(descriptor: int) -> bool | None:
    """Whether the lock is ours now; None where the file system has no locks.

    The operating system releases it with the process, however that ends.

    Args:
        descriptor: of a file that is open for writing.
    """
    if fcntl is None:
        return None
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock's, no child process inherits it
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return None
    return True


def write_owner(descriptor: int, **more: Any) -> None:
    """Makes this process, and what else is given, the content of a file."""
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps({"host": socket.gethostname(), "process": os.getpid(), **more}).encode(), 0)


def read_owner(text: str) -> dict[str, Any]:
    """What :func:`write_owner` wrote; empty for anything else."""
    try:
        owner = json.loads(text)
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def is_elsewhere(owner: dict[str, Any]) -> bool:
    """Whether an owner is on another computer."""
    host = owner.get("host")
    return host is not None and host != socket.gethostname()
