"""Several runs share the work on one folder: each piece of work is claimed by one of them, and freed when that one dies.

A claim is a locked file. On one computer, and where the file system passes locks on to others, the lock goes with its process.
Elsewhere the owner's name stands in the file, and its time is renewed every :data:`BEAT` seconds; a claim that was not renewed
for :data:`STALE` seconds is free.
"""

from __future__ import annotations

import os
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from nndiffseg.data.lock import fcntl, is_elsewhere, read_owner, try_lock, write_owner
from nndiffseg.errors import UserError

FOLDER = ".nndiffseg_claims"
BEAT = 20.0
STALE = 300.0
#: seconds between two looks at what others hold
PAUSE = 1.0


class Claims:
    """The claims of one run in an output folder; made by :func:`taking_part`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._held: dict[str, int] = {}  # file's name -> descriptor
        self._me = f"run_{secrets.token_hex(8)}"

    def take(self, name: str) -> bool:
        """Whether a piece of work is ours now."""
        return self._open(f"work_{name}")

    def give_back(self, name: str, done: str = "") -> None:
        """Frees a piece of work, and notes for the other runs the key under which it is done."""
        self._close(f"work_{name}", done)

    def done(self, name: str) -> str:
        """The key under which a run has done a piece of work that is not ours now; empty where none has."""
        try:
            text = (self.folder / f"work_{name}").read_text(encoding="utf8", errors="replace")
        except FileNotFoundError:
            return ""
        return str(read_owner(text).get("done", ""))

    def renew(self) -> None:
        """Tells other computers that the claims are alive."""
        for name in list(self._held):
            with suppress(FileNotFoundError):
                os.utime(self.folder / name)

    def join(self) -> None:
        """Makes the folder, and registers this run in it."""
        while not self._registered():
            time.sleep(PAUSE / 10)
        self._close("door")

    def _registered(self) -> bool:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            return self._open("door") and self._open(self._me)
        except FileNotFoundError:  # the last run removes the folder just now
            return False

    def leave(self) -> None:
        """Gives everything back; the last run that leaves removes the folder."""
        for name in [name for name in self._held if name != self._me]:
            self._close(name)
        with suppress(FileNotFoundError):
            while not self._open("door"):  # nobody joins meanwhile
                time.sleep(PAUSE / 10)
            self._close(self._me)
            (self.folder / self._me).unlink()
            if all(self._open(file.name) for file in self.folder.glob("run_*")):  # of dead runs
                shutil.rmtree(self.folder, ignore_errors=True)
        for name in list(self._held):
            self._close(name)

    # ---- files --------------------------------------------------------------------------------------------------------

    def _open(self, name: str) -> bool:
        """Whether a file is ours now; it is made where there is none."""
        if name in self._held:
            return True
        file = self.folder / name
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        if not self._is_free(file, descriptor):
            os.close(descriptor)
            return False
        write_owner(descriptor)
        self._held[name] = descriptor
        return True

    def _is_free(self, file: Path, descriptor: int) -> bool:
        locked = try_lock(descriptor)
        if locked is False or not _is_same(file, descriptor):
            return False
        owner = read_owner(os.pread(descriptor, 1000, 0).decode("utf8", "replace"))
        if "process" not in owner or "done" in owner:
            return True
        if is_elsewhere(owner):
            return self._now() - os.fstat(descriptor).st_mtime > STALE
        return locked is True or not _is_alive(owner["process"])

    def _now(self) -> float:
        """By the clock of the file system, by which the claims are dated, too."""
        file = self.folder / (self._me if self._me in self._held else "door")
        os.utime(file)
        return file.stat().st_mtime

    def _close(self, name: str, done: str = "") -> None:
        descriptor = self._held.pop(name)
        if done:
            write_owner(descriptor, done=done)
        else:
            os.ftruncate(descriptor, 0)
        os.close(descriptor)


def _is_same(file: Path, descriptor: int) -> bool:
    """Whether the name still leads to the file that was opened."""
    try:
        return os.path.samestat(os.stat(file), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _is_alive(process: Any) -> bool:
    """Whether there is such a process on this computer; another than this one."""
    if not isinstance(process, int) or process <= 0 or process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        return True
    return True


@contextmanager
def taking_part(output: Path) -> Iterator[Claims]:
    """Lets this run share the work on an output folder with others.

    Raises:
        UserError: this operating system has no locks.
    """
    if fcntl is None:
        raise UserError("--shared needs the file locks of Linux or macOS; divide the cases with -num_parts and -part_id.")
    claims = Claims(output / FOLDER)
    claims.join()
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT):
            claims.renew()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield claims
    finally:
        ended.set()
        thread.join()
        claims.leave()
