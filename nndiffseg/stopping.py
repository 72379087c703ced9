"""SIGTERM and SIGUSR1: work ends in order, instead of being cut off."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from nndiffseg.errors import Stopped

#: numbers of the signals that are handled now
_HANDLED: set[Any] = set()


def _end_as_by_default() -> None:
    """In a forked child, such as one of nnU-Net's pools, which are shut down by SIGTERM.

    A handler in Python runs between two instructions of Python alone. A child that waits for a lock would never get there.
    """
    for number in _HANDLED:
        signal.signal(number, signal.SIG_DFL)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_end_as_by_default)


@dataclass
class Request:
    """Whether and by which signal somebody asked to stop."""

    signal: str | None = None


def _number(name: str) -> Any:
    return getattr(signal, name, None)  # Windows has no SIGUSR1


@contextmanager
def noticed(*names: str) -> Iterator[Request]:
    """Within the block, these signals only set the flag that it yields; the work looks at it where it can stop.

    In threads other than the main one nothing changes, because Python allows it there alone.

    Args:
        names: such as ``"SIGTERM"``.
    """
    request = Request()

    def note(number: int, _: Any) -> None:
        request.signal = signal.Signals(number).name

    with _handled(names, note):
        yield request


@contextmanager
def raised(*names: str) -> Iterator[None]:
    """Within the block, these signals raise :class:`~nndiffseg.errors.Stopped`, so that workers end and half files go."""

    def stop(number: int, _: Any) -> None:
        raise Stopped(f"stopped by {signal.Signals(number).name}.")

    with _handled(names, stop):
        yield


@contextmanager
def _handled(names: tuple[str, ...], handler: Any) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner = os.getpid()

    def handle(number: int, frame: Any) -> None:
        if os.getpid() == owner:
            handler(number, frame)
        else:  # a forked child, before it has come to its own handlers
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    before = {number: signal.signal(number, handle) for name in names if (number := _number(name)) is not None}
    new = before.keys() - _HANDLED
    _HANDLED.update(new)
    try:
        yield
    finally:
        _HANDLED.difference_update(new)
        for number, old in before.items():
            signal.signal(number, signal.SIG_DFL if old is None else old)
