"""Unattended commands, clocks, and measurements that are kept case by case."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.common import tree_memory
from nndiffseg.data.files import write_json


def clock_of(device: Any) -> Callable[[], float]:
    """What times a ``torch.device``: processor seconds of this process (all its threads) on the CPU, so that whatever else
    the machine does leaves no trace in a comparison; wall-clock on an accelerator, after its queue is empty."""
    if device.type == "cpu":
        return time.process_time

    def wait_and_see() -> float:
        import torch

        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    return wait_and_see


def clock_name(device: str) -> str:
    """What :func:`clock_of` measures, in words."""
    return "processor seconds" if device == "cpu" else "wall-clock seconds"


def stop_cleanly_on_terminate() -> None:
    """SIGTERM ends this program as Ctrl-C does, so that its children end with it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def run_module(module: str, arguments: Iterable[str]) -> tuple[int, float]:
    """Runs ``python -m module`` with this program's output; returns its exit code and peak memory in GB."""
    process, peak = subprocess.Popen([sys.executable, "-m", module, *arguments]), 0.0
    try:
        while process.poll() is None:
            peak = max(peak, tree_memory(process.pid))
            time.sleep(0.1)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    return process.returncode, peak / 2**30


class Measurements:
    """Results that took long, in a JSON file: an interrupted benchmark goes on where it stopped.

    Args:
        folder, name: of the file; results with different settings are in different files.
        settings: what the results depend on, JSON-ready.
    """

    def __init__(self, folder: Path, name: str, settings: dict[str, Any]):
        self.settings = settings
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
        self.path = folder / f"{name}_{digest}.json"
        self.values: dict[str, Any] = json.loads(self.path.read_text())["values"] if self.path.is_file() else {}

    def get(self, key: str, measure: Callable[[], Any]) -> Any:
        """The value of ``key``, measured where it is not known; JSON-ready."""
        if key not in self.values:
            started = time.monotonic()
            self.values[key] = measure()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json({"settings": self.settings, "values": self.values}, self.path)
            print(f"{key} ({time.monotonic() - started:.0f} s)", flush=True)
        return self.values[key]
