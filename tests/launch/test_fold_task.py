"""A fold's process: what it is called with, how it is stopped before a time limit, and what is told when it fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from nndiffseg.errors import Stopped, UserError
from nndiffseg.launch.fold_task import FoldTask
from nndiffseg.stopping import raised
from nndiffseg.training.fold_state import FoldState, fold_state

#: of a training: SIGUSR1 and SIGTERM make it save its state and end with 75
TRAINING = """
import signal, sys, time
def stop(number, _):
    print(f"error: stopped by {signal.Signals(number).name}.", flush=True)
    sys.exit(75)
signal.signal(signal.SIGUSR1, stop)
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
time.sleep(60)
"""


def task(folder: Path, **more) -> FoldTask:
    return FoldTask("2d, fold 1", folder / "fold_1", ("4", "2d", "1"), folder / "logs" / "fold_1.log", **more)


def running(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> FoldTask:
    """A task that runs a script in place of a training."""
    monkeypatch.setattr(FoldTask, "command", lambda self: [sys.executable, "-c", script])
    return task(folder)


def when_ready(made: FoldTask, *actions) -> threading.Thread:
    """Does this, one after another, once the training says that it is ready."""

    def act() -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and not (made.log.is_file() and "ready" in made.log.read_text()):
            time.sleep(0.01)
        for action in actions:
            action()

    thread = threading.Thread(target=act)
    thread.start()
    return thread


def checkpoint(file: Path, **content) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"network_weights": {"w": torch.ones(1)}, "training_id": "a", **content}, file)


def validate(folder: Path, text: str = "{}") -> Path:
    (folder / "validation").mkdir(parents=True, exist_ok=True)
    (folder / "validation" / "uncertainty.json").write_text(text)
    return folder / "validation"


# ---- how far a fold has come ------------------------------------------------------------------------------------------


def test_a_fold_goes_from_missing_to_complete(tmp_path: Path) -> None:
    assert fold_state(tmp_path / "none") is FoldState.MISSING
    checkpoint(tmp_path / "checkpoint_best.pth", iteration=10)
    assert fold_state(tmp_path) is FoldState.BEGUN
    checkpoint(tmp_path / "checkpoint_final.pth", iteration=20)
    assert fold_state(tmp_path) is FoldState.TRAINED
    validate(tmp_path)
    assert fold_state(tmp_path) is FoldState.COMPLETE


def test_a_training_that_goes_on_has_no_validation_yet(tmp_path: Path) -> None:
    checkpoint(tmp_path / "checkpoint_final.pth", iteration=20)
    validate(tmp_path)
    checkpoint(tmp_path / "checkpoint_latest.pth", iteration=30)
    assert fold_state(tmp_path) is FoldState.BEGUN
    (tmp_path / "checkpoint_latest.pth").unlink()
    later = time.time() + 10
    os.utime(tmp_path / "checkpoint_final.pth", (later, later))
    assert fold_state(tmp_path) is FoldState.TRAINED


def test_a_validation_that_is_cut_off_or_kept_too_little_is_made_again(tmp_path: Path) -> None:
    checkpoint(tmp_path / "checkpoint_final.pth", iteration=20)
    validation = validate(tmp_path, '{"cases"')
    assert fold_state(tmp_path) is FoldState.TRAINED
    validate(tmp_path)
    assert fold_state(tmp_path, probabilities=True) is FoldState.TRAINED
    (validation / "case.npz").touch()
    assert fold_state(tmp_path, probabilities=True) is FoldState.COMPLETE


def test_a_damaged_checkpoint_is_left_to_the_training_to_tell(tmp_path: Path) -> None:
    (tmp_path / "checkpoint_final.pth").write_bytes(b"half")
    assert fold_state(tmp_path) is FoldState.BEGUN


# ---- its process ------------------------------------------------------------------------------------------------------


def test_the_command_is_what_is_left_to_do(tmp_path: Path) -> None:
    made = task(tmp_path, start=("-pretrained_weights", "w.pth"))
    head = [sys.executable, "-u", "-m", "nndiffseg.cli.train", "4", "2d", "1"]
    assert made.command() == [*head, "-pretrained_weights", "w.pth"]
    checkpoint(made.folder / "checkpoint_latest.pth", iteration=3)
    assert made.command() == [*head, "--c"]
    checkpoint(made.folder / "checkpoint_final.pth", iteration=9)
    assert made.command() == [*head, "--val"]
    validate(made.folder)
    assert made.command() is None and made.run() == 0 and not made.log.exists()


def test_before_the_time_limit_the_training_saves_its_state_and_is_queued_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As submitit does it: in a signal handler, while the main thread waits. Slurm sends the signal to the training, too."""
    made, queued = running(tmp_path, monkeypatch, TRAINING), []

    def handler(*_) -> None:
        queued.append(made.checkpoint())
        raise SystemExit

    before = signal.signal(signal.SIGUSR2, handler)
    thread = when_ready(
        made,
        lambda: os.kill(made._process.pid, signal.SIGUSR2),
        lambda: time.sleep(0.2),
        lambda: os.kill(os.getpid(), signal.SIGUSR2),
    )
    try:
        with pytest.raises(SystemExit):
            made()
    finally:
        signal.signal(signal.SIGUSR2, before)
        thread.join()
    assert made.log.read_text() == "ready\nerror: stopped by SIGUSR1.\n"
    assert queued[0].function == made and queued[0].function._process is None


def test_a_stopped_command_stops_its_training_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = running(tmp_path, monkeypatch, TRAINING)
    thread = when_ready(made, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with raised("SIGTERM"), pytest.raises(Stopped):
        made.run()
    thread.join()
    assert made.log.read_text().endswith("error: stopped by SIGTERM.\n")


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("import sys; print('error: No disk.', file=sys.stderr); print('more'); sys.exit(2)", "fold 1: No disk."),
        ("raise ValueError('a bug')", "fold 1: ValueError: a bug"),
        ("import sys; sys.exit(3)", "fold 1: exit code 3"),
        ("import os; os.kill(os.getpid(), 9)", "fold 1: killed by SIGKILL"),
    ],
)
def test_a_failure_is_told_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, words: str) -> None:
    made = running(tmp_path, monkeypatch, script)
    with pytest.raises(UserError, match=f"{words} .*fold_1.log has all of it"):
        made()


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone ends a command with its parent")
def test_no_training_outlives_its_command(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from nndiffseg.launch.fold_task import FoldTask\n"
        "child = 'import os, time; print(os.getpid(), flush=True); time.sleep(60)'\n"
        "FoldTask.command = lambda self: [sys.executable, '-c', child]\n"
        "FoldTask('', Path('.'), (), Path(sys.argv[1])).run()"
    )
    log = tmp_path / "log"
    parent = subprocess.Popen([sys.executable, "-c", script, str(log)])
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (log.is_file() and log.read_text().endswith("\n")):
        time.sleep(0.02)
    child = int(log.read_text())
    parent.kill()
    parent.wait()
    while (
        time.monotonic() < deadline and Path(f"/proc/{child}/cmdline").is_file() and Path(f"/proc/{child}/cmdline").read_text()
    ):
        time.sleep(0.02)
    assert not Path(f"/proc/{child}/cmdline").is_file() or not Path(f"/proc/{child}/cmdline").read_text()
