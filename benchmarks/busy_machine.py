"""A prediction beside a second job that keeps every core busy: with all threads, and with one.

    python -m benchmarks.busy_machine -m MODEL_FOLDER -i IMAGES --name busy_machine

Each round runs ``nndiffseg_predict`` alone and beside the other job, with ``-num_threads`` N (all cores) and 1, in turn. The
other job multiplies matrices with as many threads as there are cores. Ratios are medians over rounds of the ratio within a
round; seconds include the start of the process.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from benchmarks.common import report

OTHER_JOB = "import torch; torch.set_num_threads({threads}); a = torch.rand(1500, 1500)\nwhile True: a = (a @ a).tanh()"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-m", type=Path, required=True, metavar="MODEL_FOLDER")
    parser.add_argument("-i", type=Path, required=True, metavar="IMAGES")
    parser.add_argument("--samples", type=int, default=16, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--name", default="busy_machine", help="of the JSON file (default: %(default)s)")
    args = parser.parse_args()
    cores = os.cpu_count() or 1
    kinds = {(busy, threads): [] for busy in (False, True) for threads in (cores, 1)}
    for _ in range(args.rounds):
        for (busy, threads), seconds in kinds.items():
            with other_job(cores) if busy else nullcontext():
                seconds.append(predict(args, threads))
            print(f"{name_of(busy, threads)}: {seconds[-1]:.1f} s", flush=True)
    base = kinds[False, cores]
    ratios = {kind: statistics.median(a / b for a, b in zip(each, base, strict=True)) for kind, each in kinds.items()}
    rows = [[name_of(*kind), f"{statistics.median(each):.1f}", f"{ratios[kind]:.2f}"] for kind, each in kinds.items()]
    result = {
        "rounds": args.rounds,
        "samples": args.samples,
        "images": len(list(args.i.iterdir())),
        "seconds": {name_of(*kind): [round(s, 2) for s in each] for kind, each in kinds.items()},
        "ratios": {name_of(*kind): round(r, 3) for kind, r in ratios.items()},
    }
    report(args.name, rows, ["nndiffseg_predict", "seconds", f"of {cores} threads alone"], result)


def name_of(busy: bool, threads: int) -> str:
    """Words of one kind of run."""
    return f"{threads} thread{'s' * (threads > 1)}, {'beside another job' if busy else 'alone'}"


def predict(args: argparse.Namespace, threads: int) -> float:
    """Seconds of one prediction."""
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    with tempfile.TemporaryDirectory() as out:
        line = ["-i", args.i, "-o", out, "-m", args.m, "--samples", args.samples, "-device", "cpu", "-num_threads", threads]
        started = time.monotonic()
        subprocess.run(
            [sys.executable, "-m", "nndiffseg.cli.predict", *map(str, line), "--disable_progress_bar"],
            check=True,
            stdout=subprocess.DEVNULL,
            env=environment,
        )
        return time.monotonic() - started


@contextmanager
def other_job(threads: int) -> Iterator[None]:
    """Keeps so many cores busy."""
    process = subprocess.Popen([sys.executable, "-c", OTHER_JOB.format(threads=threads)])
    try:
        time.sleep(5)  # until torch is loaded
        yield
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    main()
