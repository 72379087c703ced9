"""Processes many cases, in this process or in a few spawned workers: results in order, bounded look-ahead."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from functools import partial
from multiprocessing.connection import wait
from typing import Any, TypeVar

from tqdm import tqdm

from nndiffseg.errors import UserError

T = TypeVar("T")
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


class WorkerKilledError(UserError):
    """A worker process died. That is no fault of the case at hand, so the run ends."""


def default_processes() -> int:
    """Number of worker processes: nnU-Net's ``nnUNet_def_n_proc``, else the processors this process may use, at most 8."""
    if (given := from_environment("nnUNet_def_n_proc", 0)) > 0:
        return given
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(available, 8)


def from_environment(variable: str, default: int) -> int:
    """One of nnU-Net's numbers of processes.

    Raises:
        UserError: the variable holds no number from 0.
    """
    text = os.environ.get(variable, "").strip()
    if text and not (text.isascii() and text.isdigit()):
        raise UserError(
            f"The environment variable {variable} counts processes and is {text!r}; set it to a number, or unset it."
        )
    return int(text) if text else default


def end_with_parent() -> None:
    """Ends this worker when the process that started it does, however that ends: SIGKILL leaves it no time to say so."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def kill_with_parent() -> None:
    """The same for a command that this process runs: called in the child, between fork and exec. Linux alone can do it."""
    if _LIBC is not None:
        _LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class WorkerPool:
    """Spawned worker processes, or none: with ``processes`` of 0 or 1 every call is made in this process.

    So nothing is spawned in notebooks and unguarded scripts that ask for one process. Otherwise functions must be
    importable by the workers, and arguments and results are pickled.
    """

    def __init__(self, processes: int, flags: str):
        """``flags``: the command-line flags that ask for one process, named when a worker is killed."""
        self.processes, self.flags = processes, flags
        context = multiprocessing.get_context("spawn")
        many = processes > 1
        self._executor = ProcessPoolExecutor(processes, mp_context=context, initializer=end_with_parent) if many else None

    def submit(self, function: Callable[..., T], *arguments: Any) -> Callable[[], T]:
        """Starts a call. The returned function waits for its result, or raises what it raised, with its traceback.

        Without workers, that function makes the call.

        Raises:
            WorkerKilledError: a worker was killed; the returned function raises it too.
        """
        if self._executor is None:
            return partial(function, *arguments)
        with self._killed_worker():
            future = self._executor.submit(function, *arguments)

        def result() -> T:
            with self._killed_worker():
                return future.result()

        return result

    def close(self, *, drop: bool = False) -> None:
        """Waits for the workers to end. With ``drop``, calls that have not begun are not made."""
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=drop)

    @contextmanager
    def _killed_worker(self) -> Iterator[None]:
        try:
            yield
        except BrokenProcessPool:
            raise WorkerKilledError(
                f"A worker process was killed, probably out of memory; use fewer processes ({self.flags})."
            ) from None


def in_order(
    function: Callable[..., T], arguments: Sequence[tuple], processes: int, *, flags: str, ahead: int | None = None
) -> Generator[Callable[[], T], None, None]:
    """Yields, for each item of ``arguments`` in turn, a call that gives ``function(*item)`` or raises what it raised.

    Closing the iterator ends the workers.

    Args:
        function: see :class:`WorkerPool`.
        arguments: one tuple per call.
        processes: worker processes; 0 or 1 makes each call in this process, when it is asked for.
        flags: as in :class:`WorkerPool`.
        ahead: how many calls may be made before their turn, so that memory stays bounded; default: ``processes``.
    """
    ahead = processes if ahead is None else ahead
    pool = WorkerPool(min(processes, len(arguments)), flags)
    waiting: deque[Callable[[], T]] = deque()
    try:
        for i in range(len(arguments)):
            for item in arguments[i + len(waiting) : i + ahead + 1]:
                waiting.append(pool.submit(function, *item))
            yield waiting.popleft()
    finally:
        pool.close(drop=True)


def map_cases(
    function: Callable[..., T],
    arguments: Sequence[tuple],
    processes: int,
    *,
    description: str,
    progress: bool = True,
    flags: str = "-np 1",
) -> list[T]:
    """``[function(*a) for a in arguments]`` with a progress bar.

    Raises the first exception, in the order of the arguments.

    Args:
        function: see :class:`WorkerPool`.
        arguments: one tuple per call.
        processes: worker processes; 0 or 1 starts none.
        description: of the progress bar.
        progress: show it.
        flags: as in :class:`WorkerPool`.

    Raises:
        WorkerKilledError: a worker was killed.
    """
    results: list[T] = []
    calls = in_order(function, arguments, processes, flags=flags, ahead=len(arguments))
    with closing(calls), tqdm(total=len(arguments), desc=description, disable=not progress, dynamic_ncols=True) as bar:
        for call in calls:
            results.append(call())
            bar.update()
    return results


class Backlog:
    """Calls whose results nobody waits for, made in this process at once, or in workers with a bounded queue.

    Leaving the ``with`` block waits for all calls, also after an exception, so that what was handed over gets done.
    """

    def __init__(self, processes: int, flags: str, on_result: Callable[[Any], Any] = lambda _: None):
        """As :class:`WorkerPool`; ``on_result`` gets what a call returned, in the order of the calls."""
        self._pool, self._on_result = WorkerPool(processes, flags), on_result
        self._limit = 2 * processes if processes > 1 else 0
        self._waiting: deque[Callable[[], Any]] = deque()

    def add(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Hands over a call; waits while more than two calls per worker are open.

        Exceptions of earlier calls surface here or at the end of the ``with`` block.
        """
        self._waiting.append(self._pool.submit(function, *arguments))
        self._wait(self._limit)

    def _wait(self, left: int) -> None:
        while len(self._waiting) > left:
            self._on_result(self._waiting.popleft()())

    def __enter__(self) -> Backlog:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        try:
            if kind is None:
                self._wait(0)
        finally:
            self._pool.close()
