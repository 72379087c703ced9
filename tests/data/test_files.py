"""Files appear whole; JSON is what the standard asks for unless nnU-Net reads it."""

from __future__ import annotations

import errno
import gzip
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from nndiffseg.data.files import (
    LEAST_SPACE,
    check_gzip,
    check_space,
    full_disk_told,
    read_json,
    write_atomically,
    write_json,
)
from nndiffseg.errors import UserError


def test_json_is_strict(tmp_path):
    write_json({"a": float("nan"), "b": (1.0, float("inf"))}, tmp_path / "x.json")
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": None, "b": [1.0, None]}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_files_of_nnunet_keep_what_is_no_number(tmp_path):
    write_json({"a": float("nan")}, tmp_path / "x.json", strict=False)
    assert math.isnan(json.loads((tmp_path / "x.json").read_text())["a"])


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "sub" / "x.json"
    write_json({"a": 1}, file)
    with pytest.raises(TypeError):
        write_json({"a": object()}, file)
    assert json.loads(file.read_text()) == {"a": 1}
    assert [f.name for f in file.parent.iterdir()] == ["x.json"]


def test_a_new_file_appears_only_when_the_block_ends(tmp_path: Path) -> None:
    file = tmp_path / "x.txt"
    file.write_text("old")
    with write_atomically(file) as temporary:
        assert temporary.parent == tmp_path and temporary.name.startswith(".")
        temporary.write_text("new")
        assert file.read_text() == "old"
    assert file.read_text() == "new"
    assert [f.name for f in tmp_path.iterdir()] == ["x.txt"]


@pytest.mark.parametrize("written", [True, False])
def test_an_exception_keeps_the_old_file_and_leaves_nothing_behind(tmp_path: Path, written: bool) -> None:
    file = tmp_path / "x.txt"
    file.write_text("old")
    with pytest.raises(KeyboardInterrupt), write_atomically(file) as temporary:
        if written:
            temporary.write_text("half")
        raise KeyboardInterrupt
    assert file.read_text() == "old"
    assert [f.name for f in tmp_path.iterdir()] == ["x.txt"]


def test_writers_of_the_same_file_do_not_share_a_temporary_one(tmp_path: Path) -> None:
    """Also not in containers, which number their processes alike."""
    file = tmp_path / "x.txt"
    with write_atomically(file) as first, write_atomically(file) as second:
        first.write_text("first")
        second.write_text("second")
        assert first.read_text() == "first"
    assert [f.name for f in tmp_path.iterdir()] == ["x.txt"]


def test_a_killed_process_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "x.txt"
    file.write_text("old")
    script = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom nndiffseg.data.files import write_atomically\n"
        "with write_atomically(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('half')\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.run([sys.executable, "-c", script, str(file)], env=environment, check=False)
    assert process.returncode == -signal.SIGKILL
    assert file.read_text() == "old"


@pytest.mark.parametrize(
    ("error", "free"),
    [
        (OSError(errno.ENOSPC, "full"), 10**9),
        (OSError(errno.EDQUOT, "quota"), 10**9),
        (RuntimeError("NDArray"), 0),
        (EOFError(), 9),
    ],
)
def test_a_full_disk_is_one_sentence_whatever_a_library_says(tmp_path: Path, monkeypatch, error: Exception, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    with (
        pytest.raises(UserError, match=r"No space left on the disk of .* for case_1; free some space"),
        full_disk_told(tmp_path, "case_1"),
    ):
        raise error


def test_other_errors_in_writing_stay_what_they_are(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**9))
    for error in (RuntimeError("a bug"), PermissionError(errno.EACCES, "no")):
        with pytest.raises(type(error)), full_disk_told(tmp_path, "case_1"):
            raise error


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[" * 100_000, b"", b"9" * 5000])
def test_a_file_that_is_no_json_is_named_with_what_to_do(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"x\.json is not valid JSON \(.*\); plan again\."):
        read_json(file, "plan again")


def test_a_disk_without_space_for_the_smallest_files_is_told_before_any_work(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=LEAST_SPACE - (place == tmp_path)))
    with pytest.raises(UserError, match=r"No space left on the disk of .*out \(1\.05 MB\); free some space"):
        check_space(tmp_path / "not" / "yet" / "out")
    (tmp_path / "not").mkdir()
    check_space(tmp_path / "not" / "yet" / "out")


def test_a_truncated_file_that_itk_reported_as_written_is_found(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    file = tmp_path / "sub" / "a.nii.gz"
    file.write_bytes(gzip.compress(bytes(range(256)) * 100))
    check_gzip(tmp_path)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(EOFError):
        check_gzip(tmp_path)
