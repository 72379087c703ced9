"""One training in several processes: started by ``-num_gpus``, or by ``torchrun`` also on several computers.

Both give every process the variables ``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``, ``MASTER_ADDR`` and ``MASTER_PORT``. Where one
of them fails, all end: the first says why and notes its exit code in the store under that address, and the others, whose
connections break, end with the same code and say nothing.
"""

from __future__ import annotations

import multiprocessing.connection
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous
from torch.multiprocessing import start_processes

from nndiffseg.data.memory import is_out_of_memory
from nndiffseg.errors import Stopped, UserError
from nndiffseg.stopping import Request, noticed

Main = Callable[[Sequence[str]], int]

#: seconds that processes have to end by themselves after the first one ended
GRACE = 10.0
#: seconds that a process waits for another one's exit code
ASKING = 5.0
#: what torch says where a connection to another process breaks
BROKEN = ("Connection closed by peer", "Connection reset", "Broken pipe", "gloo", "NCCL")


# ---- the processes ----------------------------------------------------------------------------------------------------


@contextmanager
def member() -> Iterator[Callable[[torch.device], None]]:
    """The work of a process that was started as one of several.

    It yields a function that joins the others with a device. They train on GPUs of their own, or all on processors.

    Raises:
        UserError: this computer has fewer GPUs than processes.
        SystemExit: another process ended; with its exit code.
    """
    if int(os.environ["RANK"]) > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - the first process prints
        os.environ["nnUNet_wandb_enabled"] = "0"
    warnings.filterwarnings("ignore", message=".*GradScaler is enabled, but CUDA is not available")  # nnU-Net's, not ours
    store, rank, number = next(rendezvous("env://"))
    notes = Notes(store)

    def join(device: torch.device) -> None:
        local = int(os.environ.get("LOCAL_RANK", "0"))
        check_devices(device.type, local + 1)
        if device.type == "cuda":
            torch.cuda.set_device(local)
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=number)

    try:
        yield join
    except BaseException as error:
        last = _last_words(error, notes)
        if last is error:
            raise
        raise last from None
    if dist.is_initialized():
        dist.destroy_process_group()


def check_devices(device: str, number: int) -> None:
    """
    Raises:
        UserError: fewer than ``number`` devices of this type.
    """
    if device == "mps":
        raise UserError("Several processes train with -device cuda or cpu, not mps; give one of them, or leave out -num_gpus.")
    if device == "cuda" and torch.cuda.device_count() < number:
        raise UserError(
            f"{number} processes on this computer need as many GPUs, and it has {torch.cuda.device_count()}; give a smaller "
            "-num_gpus (of torchrun, --nproc-per-node)."
        )


class Notes:
    """What the first process to end leaves to the others, in the store of the group."""

    def __init__(self, store: dist.Store):
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self.store = dist.PrefixStore(f"nndiffseg/{attempt}", store)

    def claim(self, code: int) -> bool:
        """Notes the exit code; True for the first to end, which is to say why."""
        with suppress(RuntimeError):
            if self.store.add("ended", 1) == 1:
                self.store.set("code", str(code))
                return True
        return False

    def code(self, seconds: float = ASKING) -> int | None:
        """The exit code of the first to end; None where nobody ended that could note it."""
        with suppress(RuntimeError):
            self.store.wait(["code"], timedelta(seconds=seconds))
            return int(self.store.get("code"))
        return None


def _last_words(error: BaseException, notes: Notes) -> BaseException:
    """What a process ends with."""
    broken = isinstance(error, RuntimeError) and any(word in str(error) for word in BROKEN)
    if broken and not is_out_of_memory(error):
        if (code := notes.code()) is not None:
            return SystemExit(code)
        error = UserError("Another process of this training was killed or lost, perhaps out of memory; go on with --c.")
    code = _code_of(error)
    if notes.claim(code):
        return error
    return SystemExit(notes.code() or code)


def _code_of(error: BaseException) -> int:
    """As :func:`nndiffseg.cli.common.run` does."""
    if isinstance(error, Stopped):
        return Stopped.code
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, (UserError, OSError)) or is_out_of_memory(error):
        return 2
    return error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1


# ---- who starts them --------------------------------------------------------------------------------------------------


def launch(main: Main, argv: Sequence[str], number: int, device: torch.device) -> None:
    """Runs ``main(argv)`` in so many processes on this computer.

    SIGTERM and SIGUSR1 are passed on to them.

    Raises:
        UserError: there are fewer devices, one process was killed, or the port in ``MASTER_PORT`` cannot be used.
        SystemExit: they ended with an exit code other than 0.
    """
    check_devices(device.type, number)
    store = _store()
    notes = Notes(store)
    threads = str(max(1, (os.cpu_count() or 1) // number))
    group = {
        "WORLD_SIZE": str(number),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is here, so that it outlives the first process
        "TORCHELASTIC_RESTART_COUNT": "0",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads),
    }
    with noticed("SIGTERM", "SIGUSR1") as asked:
        context = start_processes(_run, (main, list(argv), group), number, join=False, start_method="spawn")
        try:
            code = _until_one_fails(context.processes, asked)
            killed = code < 0 and notes.claim(2)
        finally:
            _end(context.processes)
    if killed:
        raise UserError(
            f"One of the {number} processes was killed by {signal.Signals(-code).name}, perhaps out of memory; go on with --c."
        )
    if code:
        raise SystemExit(notes.code() or abs(code))


def _store() -> dist.TCPStore:
    """On a port that is free, or on that in ``MASTER_PORT``, as for nnU-Net."""
    given = os.environ.get("MASTER_PORT", "0")
    try:
        return dist.TCPStore("127.0.0.1", int(given), is_master=True, wait_for_workers=False)
    except (ValueError, RuntimeError):
        raise UserError(f"The port {given} in MASTER_PORT cannot be used; unset it, and a free one is found.") from None


def _run(rank: int, main: Main, argv: list[str], group: dict[str, str]) -> None:
    os.environ.update(group | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
    try:
        code = main(argv)
    except Exception:  # a bug keeps its traceback
        traceback.print_exc()
        code = 1
    sys.exit(code)


def _until_one_fails(processes: Sequence[Any], asked: Request) -> int:
    """Waits, and passes a signal on; the exit code of a process that failed, below 0 if killed, or 0 where all did well."""
    passed = False
    while alive := [p for p in processes if p.is_alive()]:
        if asked.signal is not None and not passed:
            passed = True
            for process in alive:
                os.kill(process.pid, signal.Signals[asked.signal])
        multiprocessing.connection.wait([p.sentinel for p in alive], timeout=0.5)
        if any(p.exitcode for p in processes):
            break
    return min((p.exitcode for p in processes if p.exitcode), default=0)


def _end(processes: Sequence[Any]) -> None:
    """Gives the processes time to end by themselves, and kills those that do not."""
    last = time.monotonic() + GRACE
    for process in processes:
        process.join(max(0.0, last - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()
