"""Shared by all commands: strict flags, one-sentence errors, folders and device."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import errno
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO

from nndiffseg.data.folders import Folders, configure_folders
from nndiffseg.data.memory import TOO_LITTLE, is_out_of_memory
from nndiffseg.data.parallel import from_environment
from nndiffseg.errors import Stopped, UserError
from nndiffseg.stopping import raised

if TYPE_CHECKING:  # torch takes seconds to load, so `--help` does without
    import torch

DEVICES = ("cuda", "cpu", "mps")


def run(body: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None) -> int:
    """Runs ``body(argv)`` and turns the errors that the user can fix into one line and an exit code.

    Usage, so that ``main`` serves as a console script and in tests alike::

        def main(argv: Sequence[str] | None = None) -> int:
            return run(_main, argv)

    Returns:
        0 on success; 2 on a :class:`UserError`, a wrong flag, a full disk, want of memory or a missing permission, each after
        one line ``error: ...`` on stderr; 75 when stopped by SIGTERM or SIGUSR1; 130 when interrupted; 141, without a word,
        when whoever reads the output went away (``| head``). Any other exception is a bug and keeps its traceback.
    """
    try:
        with raised("SIGTERM"):
            body(argv)
            sys.stdout.flush()  # what is left may meet a closed pipe or a full disk, too
    except UserError as error:
        return _fail(str(error))
    except SystemExit as stop:  # argparse, after --help
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.flush()
        if _has_no_reader(sys.stdout):
            return _end_quietly()
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else _fail(str(stop.code))
    except Stopped as stopped:
        _fail(str(stopped))
        return Stopped.code
    except KeyboardInterrupt:
        _ignore_interrupts()
        _fail("interrupted.")
        return 130
    except (OSError, RuntimeError, MemoryError) as error:
        if isinstance(error, BrokenPipeError) and (_has_no_reader(sys.stdout) or _has_no_reader(sys.stderr)):
            return _end_quietly()
        sentence = _sentence_for_system_error(error)
        if sentence is None:
            raise
        return _fail(sentence)
    finally:
        _ignore_interrupts()
    return 0


def _ignore_interrupts() -> None:
    """A command that is about to end ends with its exit code; without this, Python ends by the signal where one comes late.

    Callers in Python go on after it, so they keep their handler.
    """
    program = Path(sys.argv[0] if sys.argv else "")
    command = program.name.startswith("nndiffseg_") or program.parts[-3:-1] == ("nndiffseg", "cli")
    if command and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _has_no_reader(stream: TextIO) -> bool:
    """Whether a stream is a pipe that nobody reads any more. A broken pipe may also be that of a worker process."""
    if not hasattr(select, "poll"):  # Windows
        return False
    poll = select.poll()
    try:
        poll.register(stream.fileno(), 0)
    except (OSError, ValueError, AttributeError):  # in a notebook or a test there is no file
        return False
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _end_quietly() -> int:
    """As a command ends by SIGPIPE; what could not be written is dropped, or Python would complain about it at its end."""
    for stream in (sys.stdout, sys.stderr):
        if _has_no_reader(stream):
            _drop_output(stream)
    return 128 + 13


def _drop_output(stream: TextIO) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def user_path(text: str) -> Path:
    """A path that a user gave, with ``~`` for the home folder; the ``type`` of flags.

    Raises:
        UserError: it leads through a link to nowhere, or there is no such home folder.
    """
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        raise UserError(f"There is no home folder for {text}; give the whole path.") from None
    for part in (path, *path.parents):
        if part.is_symlink() and not part.exists():
            raise UserError(f"{part} is a link that leads nowhere, or back to itself; remove it or give another path.")
    return path


def _fail(sentence: str) -> int:
    try:
        sys.stdout.flush()
    except OSError:  # its disk is full; the flush at the end of the process would fail too, and change the exit code
        _drop_output(sys.stdout)
    print(f"error: {sentence}", file=sys.stderr, flush=True)
    return 2


def _sentence_for_system_error(error: BaseException | None) -> str | None:
    # torch.save and the worker pools wrap the operating system's error, so the whole chain is searched.
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if is_out_of_memory(error):
            return (
                f"{TOO_LITTLE}; close what else runs, or ask for less: fewer processes (-np, -npp, -nps) or --samples, plans "
                "for a smaller -gpu_memory_target, or -device cpu where it is the GPU's."
            )
        if isinstance(error, OSError):
            target = f" for {error.filename}" if error.filename else ""
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                return f"No space left on the disk{target}; free some space or choose another folder and try again."
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and error.filename:
                return f"No permission to use {error.filename}; choose another folder or change its permissions."
            if error.errno in (errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR) and error.filename:
                return f"{str(error.filename)[:200]} cannot be used ({error.strerror}); choose another file or folder."
        error = error.__cause__ or error.__context__
    return None


class Parser(argparse.ArgumentParser):
    """An argument parser that accepts exactly the flags it knows and answers a typo with the nearest one.

    Plain argparse reads ``-devise cpu`` as ``-d evise cpu``; here that is an error. Errors raise :class:`UserError`.
    """

    def __init__(self, description: str, **kwargs: object) -> None:
        super().__init__(description=description, allow_abbrev=False, **kwargs)  # type: ignore[arg-type]

    def parse_known_args(self, args=None, namespace=None):
        args = list(sys.argv[1:] if args is None else args)
        known = list(self._option_string_actions)
        for word in args:
            if word == "--":
                break
            flag = word.split("=", 1)[0]
            if len(flag) > 1 and flag[0] == "-" and not _is_number(word) and flag not in known:
                near = difflib.get_close_matches(flag, known, n=1)
                self.error(f"unknown flag {flag}" + (f", did you mean {near[0]}?" if near else ""))
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message[:1].upper()}{message[1:]} (`{self.prog} --help` lists the flags).")


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def add_folder_flags(parser: argparse.ArgumentParser) -> None:
    """Adds ``--raw``, ``--preprocessed`` and ``--results``; read them with :func:`folders_from`."""
    group = parser.add_argument_group("folders")
    for name in ("raw", "preprocessed", "results"):
        group.add_argument(
            f"--{name}",
            metavar="FOLDER",
            help=f"overrides the environment variable nnUNet_{name}; without either, ./nndiffseg_data/{name}",
        )


def folders_from(args: argparse.Namespace) -> Folders:
    """The folders of a parsed command line, made known to nnU-Net (:func:`nndiffseg.data.folders.configure_folders`)."""
    from_environment("nnUNet_n_proc_DA", 0)  # nnU-Net reads it without a check wherever it is imported
    return configure_folders(args.raw, args.preprocessed, args.results)


def add_device_flag(parser: argparse.ArgumentParser) -> None:
    """Adds ``-device`` (and ``--device``) and ``-num_threads``; read them with :func:`device_from`."""
    parser.add_argument("-device", "--device", choices=DEVICES, default=None, help="default: the best one available")
    parser.add_argument(
        "-num_threads",
        type=int,
        metavar="N",
        help="threads of computations on the processor; default: OMP_NUM_THREADS, else all cores; fewer on a busy machine",
    )


def device_from(args: argparse.Namespace) -> torch.device:
    """The device of a parsed command line; sets and prints the number of threads.

    Raises:
        UserError: the machine lacks the device, or the number is not positive.
    """
    import torch

    if args.num_threads is not None:
        if args.num_threads < 1:
            raise UserError(f"-num_threads must be 1 or more, not {args.num_threads}.")
        torch.set_num_threads(args.num_threads)
    device = pick_device(args.device)
    threads, cores = torch.get_num_threads(), os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if device.type == "cpu" and threads > 1 and load > cores:
        print(
            f"This machine is busy ({load:.0f} jobs on {cores} processors), and {threads} threads would wait for each other; "
            "-num_threads 1 may be much faster."
        )
    return device


def pick_device(name: str | None = None, *, quiet: bool = False) -> torch.device:
    """The ``torch.device`` to use, printed in one line.

    Args:
        name: ``cuda``, ``cpu``, ``mps`` or None for the best one that the machine has.
        quiet: say nothing.

    Raises:
        UserError: the machine lacks the device asked for.
    """
    import torch

    has = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name is None:
        chosen = next(device for device in ("cuda", "mps", "cpu") if has[device])
    elif name not in has:
        raise UserError(f"Unknown device {name}; choose one of {', '.join(DEVICES)}.")
    elif not has[name]:
        raise UserError(f"This machine has no {name} device; use -device {'cuda' if has['cuda'] else 'cpu'}.")
    else:
        chosen = name
    if not quiet:
        processors = f"{os.cpu_count()} processors, threads: {torch.get_num_threads()}"
        detail = torch.cuda.get_device_name() if chosen == "cuda" else processors
        print(f"Device: {chosen} ({detail})." if chosen != "mps" else "Device: mps.")
    return torch.device(chosen)


def choose(what: str, name: str, choices: Sequence[str]) -> str:
    """``name`` if it is one of ``choices``.

    Raises:
        UserError: ``Unknown planner Foo; choose one of A, B.``, with the nearest name first.
    """
    if name in choices:
        return name
    near = difflib.get_close_matches(name, choices, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise UserError(f"Unknown {what} {name}{hint}; choose one of {', '.join(choices)}.")


def check_output(out: Path, overwrite: bool) -> None:
    """Says before any work what would keep a command's file from being written.

    Raises:
        UserError: its folder does not exist, or it exists and must stay.
    """
    if out.is_dir():
        raise UserError(f"{out} is a folder; give the name of a file.")
    if not out.parent.is_dir():
        raise UserError(f"There is no folder {out.parent}; make it first.")
    if out.exists() and not overwrite:
        raise UserError(f"{out} exists already; choose another name, or replace it with --overwrite.")
