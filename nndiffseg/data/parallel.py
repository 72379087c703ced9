"""One loop for work on many cases: in this process, or in a few worker processes."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from tqdm import tqdm

from nndiffseg.errors import UserError

T = TypeVar("T")


def default_processes() -> int:
    """Number of worker processes: the processors this process may use, at most 8."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(available, 8)


def map_cases(
    function: Callable[..., T], arguments: Sequence[tuple], processes: int, *, description: str, progress: bool = True
) -> list[T]:
    """``[function(*a) for a in arguments]`` with a progress bar.

    With ``processes`` of 1 nothing is spawned, so this also works in notebooks and unguarded scripts. Otherwise
    ``function`` must be importable by the workers. The first exception of a worker is raised here, with its traceback.

    Raises:
        UserError: a worker was killed, most often for want of memory.
    """
    bar = tqdm(total=len(arguments), desc=description, disable=not progress, dynamic_ncols=True)
    with bar:
        if processes <= 1 or len(arguments) <= 1:
            results = []
            for a in arguments:
                results.append(function(*a))
                bar.update()
            return results
        pool = ProcessPoolExecutor(min(processes, len(arguments)), mp_context=multiprocessing.get_context("spawn"))
        try:
            futures = [pool.submit(function, *a) for a in arguments]
            for future in as_completed(futures):
                future.result()
                bar.update()
            return [f.result() for f in futures]
        except BrokenProcessPool:
            raise UserError(
                f"A worker process was killed during '{description}', most likely for want of memory; use fewer "
                "processes (-np 1)."
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
