"""One fold of a model, brought to its end by ``nndiffseg_train`` in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nndiffseg.data.parallel import kill_with_parent
from nndiffseg.errors import UserError
from nndiffseg.training.fold_state import FoldState, fold_state

#: seconds between two looks at the process
POLL = 0.2


def _in_child() -> None:
    """Between fork and exec.

    Slurm sends its warning (SIGUSR2, by submitit) to every process of a job step. The training is told by its parent instead,
    with the signal that makes it save its state; the default action of SIGUSR2 would end it at once.
    """
    kill_with_parent()
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


@dataclass
class FoldTask:
    """Trains what is left of a fold and validates it; what that is, is decided when it runs.

    A callable that submitit can requeue: :meth:`checkpoint` is called on the signal before the time limit.

    Attributes:
        name: for messages, such as ``3d_fullres, fold 1``.
        folder: of the fold.
        words: of ``nndiffseg_train``: dataset, configuration, fold, flags.
        start: further words of a training that begins, such as ``-pretrained_weights FILE``.
        log: what the training prints is appended here.
        probabilities: the validation keeps them.
    """

    name: str
    folder: Path
    words: tuple[str, ...]
    log: Path
    start: tuple[str, ...] = ()
    probabilities: bool = False
    _process: subprocess.Popen | None = field(default=None, repr=False, compare=False)

    def state(self) -> FoldState:
        return fold_state(self.folder, probabilities=self.probabilities)

    def command(self) -> list[str] | None:
        """What is to be run now; None where the fold is complete."""
        more = {FoldState.MISSING: self.start, FoldState.BEGUN: ("--c",), FoldState.TRAINED: ("--val",)}
        state = self.state()
        if state is FoldState.COMPLETE:
            return None
        return [sys.executable, "-u", "-m", "nndiffseg.cli.train", *self.words, *more[state]]

    def run(self) -> int:
        """Runs the training to its end; its exit code, negative for a signal that killed it.

        An exception, such as that of a signal, stops the training before it goes on.
        """
        command = self.command()
        if command is None:
            return 0
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            child = {"preexec_fn": _in_child} if os.name == "posix" else {}
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, **child)  # type: ignore[call-overload]
        try:
            while (code := self._process.poll()) is None:
                time.sleep(POLL)
        except BaseException:
            self._process.terminate()
            self._process.wait()
            raise
        return code

    def failure(self, code: int) -> str:
        """Why it ended with this code, in words: the last error in its log."""
        if code < 0:
            return f"{self.name}: killed by {signal.Signals(-code).name}"
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - 4000))
            lines = file.read().decode(errors="replace").splitlines()
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        return f"{self.name}: {errors[-1] if errors else lines[-1] if lines else f'exit code {code}'}"

    def __call__(self) -> None:
        """For submitit.

        Raises:
            UserError: the training failed, or was stopped by another signal than that of :meth:`checkpoint`.
        """
        if code := self.run():
            raise UserError(f"{self.failure(code)} ({self.log} has all of it)")

    def checkpoint(self) -> Any:
        """Lets the training save its state, and returns what is to be queued again. Called in submitit's signal handler."""
        from submitit.helpers import DelayedSubmission

        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError, ChildProcessError):  # it has just ended
                os.kill(self._process.pid, signal.SIGUSR1)
                # Popen.wait would wait for the lock that the interrupted poll() may hold.
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(replace(self, _process=None))
