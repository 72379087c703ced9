"""Work in real spawned processes: order, exceptions, a killed worker, bounded look-ahead; the same without processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from nndiffseg.data.parallel import Backlog, WorkerKilledError, default_processes, from_environment, in_order, map_cases
from nndiffseg.errors import UserError

pytestmark = pytest.mark.seconds

FLAGS = "-np 1"
both = pytest.mark.parametrize("processes", [1, 2])


def slow_first(i: int) -> int:
    """The first item takes longest, so that workers finish out of order."""
    time.sleep(0.3 if i == 0 else 0.0)
    return i * i


def fails_at_two(i: int) -> int:
    if i == 2:
        raise UserError(f"item {i} is bad")
    return i


def dies_at_two(i: int) -> int:
    if i == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return i


def mark(folder: Path, i: int) -> int:
    (folder / str(i)).touch()
    return os.getpid()


def wait_for(file: Path, done: Path) -> None:
    deadline = time.monotonic() + 60
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    done.touch()


def eventually(condition: Callable[[], bool], seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def started(folder: Path) -> set[str]:
    return {f.name for f in folder.iterdir()}


@both
def test_results_come_in_the_order_of_the_arguments(processes: int) -> None:
    items = [(i,) for i in range(7)]
    assert map_cases(slow_first, items, processes, description="work", progress=False) == [i * i for i in range(7)]
    assert [call() for call in in_order(slow_first, items, processes, flags=FLAGS)] == [i * i for i in range(7)]
    assert map_cases(slow_first, [], processes, description="work", progress=False) == []


def test_one_process_spawns_nothing_and_two_do(tmp_path: Path) -> None:
    items = [(tmp_path, i) for i in range(3)]
    assert set(map_cases(mark, items, 1, description="work", progress=False)) == {os.getpid()}
    assert os.getpid() not in map_cases(mark, items, 2, description="work", progress=False)


@both
def test_the_first_exception_is_raised_with_its_traceback(processes: int) -> None:
    with pytest.raises(UserError, match="item 2 is bad") as error:
        map_cases(fails_at_two, [(i,) for i in range(6)], processes, description="work", progress=False)
    if processes > 1:
        assert "in fails_at_two" in str(error.value.__cause__)


@both
def test_an_exception_belongs_to_its_item_and_the_others_go_on(processes: int) -> None:
    good, bad = [], []
    for i, call in enumerate(in_order(fails_at_two, [(i,) for i in range(5)], processes, flags=FLAGS)):
        try:
            good.append(call())
        except UserError:
            bad.append(i)
    assert (good, bad) == ([0, 1, 3, 4], [2])


def test_a_killed_worker_is_told_in_one_sentence_that_names_the_flags() -> None:
    items = [(i,) for i in range(6)]
    with pytest.raises(WorkerKilledError) as error:
        map_cases(dies_at_two, items, 2, description="work", progress=False, flags="-npfp 1")
    assert str(error.value) == "A worker process was killed, probably out of memory; use fewer processes (-npfp 1)."
    with pytest.raises(WorkerKilledError, match="-npp 1 -nps 1"):
        [call() for call in in_order(dies_at_two, items, 2, flags="-npp 1 -nps 1")]
    with pytest.raises(WorkerKilledError, match="-np 1"), Backlog(2, FLAGS) as backlog:
        for i in range(6):
            backlog.add(dies_at_two, i)


def test_workers_run_ahead_by_a_bounded_number_of_items(tmp_path: Path) -> None:
    with closing(in_order(mark, [(tmp_path, i) for i in range(20)], 2, flags=FLAGS)) as calls:
        next(calls)
        assert eventually(lambda: started(tmp_path) == {"0", "1", "2"})
        time.sleep(0.3)
        assert started(tmp_path) == {"0", "1", "2"}
        next(calls)
        assert eventually(lambda: started(tmp_path) == {"0", "1", "2", "3"})
    time.sleep(0.3)
    assert len(started(tmp_path)) == 4, "closing drops the rest"


def test_without_workers_a_call_is_made_when_it_is_asked_for(tmp_path: Path) -> None:
    calls = in_order(mark, [(tmp_path, i) for i in range(3)], 1, flags=FLAGS)
    first = next(calls)
    assert started(tmp_path) == set()
    first()
    assert started(tmp_path) == {"0"}


def test_a_backlog_waits_while_two_calls_per_worker_are_open(tmp_path: Path) -> None:
    go = tmp_path / "go"
    with Backlog(2, FLAGS) as backlog:
        for i in range(4):
            backlog.add(wait_for, go, tmp_path / str(i))
        fifth = threading.Thread(target=backlog.add, args=(wait_for, go, tmp_path / "4"))
        fifth.start()
        fifth.join(0.5)
        assert fifth.is_alive()
        go.touch()
        fifth.join(60)
        assert not fifth.is_alive()
    assert started(tmp_path) == {"go", *map(str, range(5))}


@both
def test_a_backlog_is_worked_off_also_after_an_exception(tmp_path: Path, processes: int) -> None:
    with pytest.raises(KeyboardInterrupt), Backlog(processes, FLAGS) as backlog:
        for i in range(3):
            backlog.add(mark, tmp_path, i)
        raise KeyboardInterrupt
    assert started(tmp_path) == {"0", "1", "2"}


@both
def test_an_exception_of_a_backlog_surfaces(processes: int) -> None:
    with pytest.raises(UserError, match="item 2 is bad"), Backlog(processes, FLAGS) as backlog:
        for i in range(4):
            backlog.add(fails_at_two, i)


FAMILY = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_parallel import report_and_sleep
from nndiffseg.data.parallel import map_cases
if __name__ == "__main__":
    map_cases(report_and_sleep, [(sys.argv[2], i) for i in range(2)], 2, description="x", progress=False)
"""


def report_and_sleep(folder: str, i: int) -> None:
    (Path(folder) / f"{i}").write_text(str(os.getpid()))
    time.sleep(300)


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_the_process_that_started_them(tmp_path: Path, kill: signal.Signals) -> None:
    parent = subprocess.Popen([sys.executable, "-c", FAMILY, str(Path(__file__).parent), str(tmp_path)])
    try:
        assert eventually(lambda: all((tmp_path / str(i)).is_file() and (tmp_path / str(i)).read_text() for i in range(2)))
        workers = [int((tmp_path / str(i)).read_text()) for i in range(2)]
        assert all(map(alive, workers)) and len(set(workers)) == 2
    finally:
        parent.send_signal(kill)
        parent.wait()
    assert eventually(lambda: not any(map(alive, workers)), 10)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a command with its parent")
def test_a_command_ends_with_the_process_that_runs_it(tmp_path: Path) -> None:
    script = (
        "import subprocess, sys; from nndiffseg.data.parallel import kill_with_parent;"
        "subprocess.run(['sh', '-c', f'echo $$ > {sys.argv[1]}; sleep 300'], preexec_fn=kill_with_parent)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "child")])
    try:
        assert eventually(lambda: (tmp_path / "child").is_file() and (tmp_path / "child").read_text() != "")
        child = int((tmp_path / "child").read_text())
        assert alive(child)
    finally:
        parent.kill()
        parent.wait()
    assert eventually(lambda: not alive(child), 10)


def test_nnunets_numbers_of_processes_are_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, number in (("3", 3), ("0", 0), ("", 7), (" 2 ", 2)):
        monkeypatch.setenv("nnUNet_npp", text)
        assert from_environment("nnUNet_npp", 7) == number
    for text in ("two", "-1", "1.5"):
        monkeypatch.setenv("nnUNet_nps", text)
        with pytest.raises(UserError, match="nnUNet_nps counts processes and is"):
            from_environment("nnUNet_nps", 1)
    monkeypatch.setenv("nnUNet_def_n_proc", "5")
    assert default_processes() == 5


@both
def test_a_backlog_hands_on_what_its_calls_return(processes: int) -> None:
    found: list[str] = []
    with Backlog(processes, FLAGS, found.append) as backlog:
        for i in range(3):
            backlog.add(str, i)
    assert found == ["0", "1", "2"]
