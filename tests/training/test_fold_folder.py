"""One training at a time in a fold's folder; its newest state is known, and earlier trainings are moved aside."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from nndiffseg.errors import UserError
from nndiffseg.training.fold_folder import LOCK, STALE, newest_checkpoint, set_aside, sole_user
from nndiffseg.training.ranks import Ranks
from nndiffseg.training.trainer import DiffusionTrainer

HOLD = """
import sys, time
from nndiffseg.training.fold_folder import sole_user
with sole_user(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def checkpoint(file: Path, **content) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"network_weights": {"w": torch.ones(1)}, **content}, file)
    os.utime(file, (checkpoint.clock, checkpoint.clock))
    checkpoint.clock += 100


checkpoint.clock = 1e9  # type: ignore[attr-defined]


def test_a_second_process_is_refused_until_the_first_is_dead(tmp_path: Path) -> None:
    first = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None and first.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"in use by process {first.pid} on {socket.gethostname()}"), sole_user(tmp_path):
            pass
        assert json.loads((tmp_path / LOCK).read_text())["process"] == first.pid, "the refused one changes nothing"
    finally:
        first.kill()
        first.wait()
    with sole_user(tmp_path) as lock:  # a lock that a killed process left is none
        assert json.loads(lock.read_text())["process"] == os.getpid()
    assert (tmp_path / LOCK).read_text() == ""


def test_training_and_validation_begin_nothing_in_a_folder_that_is_in_use(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text(json.dumps({"host": "elsewhere", "process": 7}))
    trainer = DiffusionTrainer.__new__(DiffusionTrainer)
    trainer.local_rank, trainer.iteration, trainer.output_folder, trainer.ranks = 0, 0, str(tmp_path), Ranks()
    trainer.is_cascaded = False
    for begin in (trainer.run_training, trainer.perform_actual_validation):
        with pytest.raises(UserError, match="in use by process 7 on elsewhere"):
            begin()
    assert [f.name for f in tmp_path.iterdir()] == [LOCK]


def test_a_lock_of_another_computer_counts_while_it_is_renewed(tmp_path: Path) -> None:
    lock = tmp_path / LOCK
    lock.write_text(json.dumps({"host": "elsewhere", "process": 7}))
    with pytest.raises(UserError, match=f"process 7 on elsewhere.*remove {lock}"), sole_user(tmp_path):
        pass
    old = time.time() - STALE - 1
    os.utime(lock, (old, old))
    with sole_user(tmp_path):
        assert json.loads(lock.read_text())["host"] == socket.gethostname()


@pytest.mark.parametrize("text", ["", "no JSON", "[]", "null"])
def test_a_lock_file_of_anything_else_is_no_lock(tmp_path: Path, text: str) -> None:
    (tmp_path / LOCK).write_text(text)
    with sole_user(tmp_path):
        pass


def test_the_newest_state_is_that_of_the_training_that_wrote_last(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    checkpoint(tmp_path / "checkpoint_final.pth", training_id="old", iteration=1000)
    checkpoint(tmp_path / "checkpoint_latest.pth", training_id="new", iteration=30)
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint_latest.pth"
    checkpoint(tmp_path / "checkpoint_best.pth", training_id="new", iteration=40)
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint_best.pth"
    checkpoint(tmp_path / "checkpoint_latest.pth", training_id="new", iteration=35)  # written later, of an earlier state
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint_best.pth"


def test_of_trainings_without_an_id_the_file_that_was_written_last_counts(tmp_path: Path) -> None:
    checkpoint(tmp_path / "checkpoint_final.pth", iteration=1000)
    checkpoint(tmp_path / "checkpoint_latest.pth", iteration=30)
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint_latest.pth"


def test_an_earlier_training_is_moved_aside_whole_and_nothing_else_is(tmp_path: Path) -> None:
    fold = tmp_path / "fold_1"
    fold.mkdir()
    (fold / "training_log_new.txt").write_text("new")
    assert set_aside(fold) is None and not list(fold.glob("earlier_*"))
    for _ in range(2):
        checkpoint(fold / "checkpoint_final.pth")
        (fold / "validation").mkdir()
        (fold / "validation" / "summary.json").write_text("{}")
        (fold / "calibration.json").write_text("{}")
        (tmp_path / "calibration.json").write_text(json.dumps({"folds": ["0", "1"]}))
        aside = set_aside(fold)
        assert aside is not None and sorted(f.name for f in aside.iterdir()) == [
            "calibration.json",
            "calibration_of_the_model.json",
            "checkpoint_final.pth",
            "validation",
        ]
    assert sorted(f.name for f in fold.iterdir()) == ["earlier_1", "earlier_2", "training_log_new.txt"]


def test_a_calibration_of_other_folds_stays(tmp_path: Path) -> None:
    checkpoint(tmp_path / "fold_1" / "checkpoint_best.pth")
    (tmp_path / "calibration.json").write_text(json.dumps({"folds": ["0", "2"]}))
    set_aside(tmp_path / "fold_1")
    assert (tmp_path / "calibration.json").is_file()


def test_the_half_written_checkpoint_of_a_killed_training_is_removed_and_nothing_else(tmp_path):
    left = tmp_path / f".checkpoint_latest.pth.{'0f' * 8}.tmp"
    others = [tmp_path / name for name in (".mine.tmp", "notes.0123456789abcdef.tmp", "checkpoint_latest.pth")]
    for file in (left, *others):
        file.write_text("x")
    with sole_user(tmp_path):
        assert not left.exists() and all(file.is_file() for file in others)
