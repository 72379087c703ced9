"""Commands answer mistakes with one line and exit code 2."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from nndiffseg.cli.common import Parser, add_device_flag, add_folder_flags, choose, device_from, pick_device, run, user_path
from nndiffseg.errors import UserError


def parser() -> Parser:
    p = Parser("A command.", prog="command")
    p.add_argument("-d", nargs="+")
    p.add_argument("-pl")
    p.add_argument("--samples", type=int)
    add_device_flag(p)
    add_folder_flags(p)
    return p


def body(argv: Sequence[str] | None) -> None:
    parser().parse_args(argv)


def stderr_of(argv: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert run(body, argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["-devise", "cpu"], "-devise, did you mean -device?"),  # plain argparse reads -d evise
        (["--sample", "4"], "--sample, did you mean --samples?"),
        (["--nonsense"], "Unknown flag --nonsense"),
        (["-device", "tpu"], "invalid choice: 'tpu'"),
        (["--samples", "many"], "invalid int value: 'many'"),
        (["stray"], "unrecognized arguments: stray"),
        (["-pl"], "expected one argument"),
    ],
)
def test_wrong_flags(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert words.lower() in stderr_of(argv, capsys).lower()


@pytest.mark.parametrize("argv", [["-d", "4", "5"], ["--samples=-3"], ["--samples", "-3"], ["--device", "cpu"]])
def test_right_flags(argv: list[str]) -> None:
    assert run(body, argv) == 0


def test_help_is_not_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(body, ["--help"]) == 0
    assert "--preprocessed" in capsys.readouterr().out


def failing(error: BaseException) -> int:
    def work(argv: Sequence[str] | None) -> None:
        raise error

    return run(work)


def test_user_errors_become_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert failing(UserError("This is wrong; do that.")) == 2
    assert capsys.readouterr().err == "error: This is wrong; do that.\n"


def test_a_full_disk_is_told_even_when_wrapped(capsys: pytest.CaptureFixture[str]) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/x.npz")
    wrapped = RuntimeError("PytorchStreamWriter failed writing file")
    wrapped.__cause__ = full
    for error in (full, wrapped):
        assert failing(error) == 2
        assert capsys.readouterr().err.startswith("error: No space left on the disk for /data/x.npz;")


def test_missing_permission_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert failing(PermissionError(errno.EACCES, "Permission denied", "/root/x")) == 2
    assert "No permission to use /root/x" in capsys.readouterr().err


def test_an_interrupt_has_its_own_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert failing(KeyboardInterrupt()) == 130
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize("error", [RuntimeError("a bug"), KeyError("a bug"), OSError(errno.EIO, "I/O error")])
def test_bugs_keep_their_traceback(error: Exception) -> None:
    with pytest.raises(type(error)):
        failing(error)


def test_the_device_is_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert capsys.readouterr().out.startswith("Device: cpu (")
    assert pick_device("cpu", quiet=True).type == "cpu"
    assert pick_device(quiet=True).type in ("cuda", "mps", "cpu")
    assert capsys.readouterr().out == ""


def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no cuda device; use -device cpu"):
        pick_device("cuda")


def test_choices_name_the_nearest() -> None:
    assert choose("planner", "A", ["A", "B"]) == "A"
    with pytest.raises(UserError, match=r"Unknown planner Plannr \(did you mean Planner\?\); choose one of Planner, X"):
        choose("planner", "Plannr", ["Planner", "X"])


def test_a_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/x") == tmp_path / "x"
    assert user_path("a/~") == Path("a/~")
    with pytest.raises(UserError, match="no home folder"):
        user_path("~nobody_of_this_name/x")


@pytest.mark.parametrize("below", ["", "more"])
def test_links_that_lead_nowhere_are_told(tmp_path: Path, below: str) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / "c").symlink_to(tmp_path / "nothing")
    (tmp_path / "d").symlink_to(tmp_path)
    for name in "abc":
        with pytest.raises(UserError, match="is a link that leads nowhere, or back to itself"):
            user_path(str(tmp_path / name / below))
    assert user_path(str(tmp_path / "d" / "new")) == tmp_path / "d" / "new"


COMMAND = """
import sys, threading, os, signal, time
sys.argv[0] = "nndiffseg_test"
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
from nndiffseg.cli.common import run
def body(argv):
    if {early}: os.kill(os.getpid(), signal.SIGINT); time.sleep(5)
code = run(body)
if not {early}: os.kill(os.getpid(), signal.SIGINT); time.sleep(0.2)
os.kill(os.getpid(), signal.SIGINT)
sys.exit(code)
"""


@pytest.mark.parametrize(("early", "code"), [(True, 130), (False, 0)])
def test_an_interrupt_ends_with_an_exit_code_and_never_with_the_signal(early: bool, code: int) -> None:
    done = subprocess.run([sys.executable, "-c", COMMAND.format(early=early)], capture_output=True, text=True, check=False)
    assert done.returncode == code and "Traceback" not in done.stderr
    assert done.stderr == ("error: interrupted.\n" if early else "")


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_threads_are_set_and_said(threads: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (1e3, 0, 0))
    assert device_from(parser().parse_args(["-device", "cpu", "-num_threads", "1"])).type == "cpu"
    assert torch.get_num_threads() == 1 and (text := capsys.readouterr().out).endswith("threads: 1).\n") and "busy" not in text
    device_from(parser().parse_args(["-device", "cpu", "-num_threads", "2"]))
    assert "threads: 2" in (text := capsys.readouterr().out) and "busy (1000 jobs" in text and "-num_threads 1" in text
    with pytest.raises(UserError, match="-num_threads must be 1 or more"):
        device_from(parser().parse_args(["-num_threads", "0"]))


def test_links_in_a_circle_are_one_sentence(tmp_path, capsys):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    for use in (lambda folder: folder.mkdir(parents=True, exist_ok=True), lambda folder: folder.resolve(strict=True)):
        assert run(lambda _, use=use: use(tmp_path / "a" / "out")) == 2
        assert "cannot be used" in (message := capsys.readouterr().err) and "Traceback" not in message


def test_a_name_that_is_too_long_is_one_sentence(tmp_path, capsys):
    assert run(lambda _: (tmp_path / ("x" * 300)).mkdir()) == 2
    assert "cannot be used (File name too long)" in capsys.readouterr().err


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")])
def test_want_of_memory_is_told(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    def body(argv: Sequence[str] | None) -> None:
        raise error

    assert run(body) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: There is too little memory; close what else runs") and message.count("\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_an_output_on_a_full_disk_changes_neither_sentence_nor_exit_code() -> None:
    script = (
        "import sys; from nndiffseg.cli.common import run; from nndiffseg.errors import UserError\n"
        "def body(argv): print('begun'); raise UserError('it went wrong.')\n"
        "sys.exit(run(body))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w") as full:
        process = subprocess.run(
            [sys.executable, "-c", script], stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=environment
        )
    assert (process.returncode, process.stderr) == (2, "error: it went wrong.\n")


def test_a_wrong_number_of_nnunets_processes_is_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """nnU-Net reads it while it is imported."""
    from nndiffseg.cli.train import main

    monkeypatch.setenv("nnUNet_n_proc_DA", "many")
    assert main(["4", "2d", "0"]) == 2
    assert "nnUNet_n_proc_DA counts processes and is 'many'" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="needs pipes as of Unix")
@pytest.mark.parametrize(
    "body",
    [
        "print('line')",
        "[print('line' * 10000) for _ in range(9)]",
        "print('line', flush=True)",
        "print('line'); sys.exit(0)",
        "sys.stderr.write('line')",
    ],
)
def test_a_reader_that_went_away_ends_the_command_without_a_word(body: str) -> None:
    script = f"import sys; from nndiffseg.cli.common import run\ndef body(_): {body}\nsys.exit(run(body))"
    read, write = os.pipe()
    os.close(read)
    streams = {"stderr": write, "stdout": subprocess.PIPE} if "stderr" in body else {"stdout": write, "stderr": subprocess.PIPE}
    ended = subprocess.run([sys.executable, "-c", script], check=False, **streams)  # type: ignore[call-overload]
    os.close(write)
    assert (ended.returncode, ended.stdout or b"", ended.stderr or b"") == (141, b"", b"")


def test_a_broken_pipe_of_a_worker_is_no_closed_output() -> None:
    def body(_: Sequence[str] | None) -> None:
        raise BrokenPipeError(errno.EPIPE, "a worker's")

    with pytest.raises(BrokenPipeError, match="a worker's"):
        run(body)
