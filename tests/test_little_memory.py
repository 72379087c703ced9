"""Real limits of memory: every command ends in success or in one sentence with exit code 2, never in a traceback or a hang.

Where native code of torch crashes instead of telling of it, nothing is lost either: the command goes on as after a kill.

`pytest -n 0 -m slow tests/test_little_memory.py` (docs/reliability.md has the figures).
"""

from __future__ import annotations

import resource
import signal
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import command_stages
import pytest
from command_stages import Stage, contents, copied, differences, undisturbed
from command_world import PREDICT, ended, finish, start, world

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

WITH_PROCESSES = replace(PREDICT, words=(*PREDICT.words, "-npp", "2", "-nps", "2"))
STAGES = {**command_stages.STAGES, "prediction with processes": Stage(WITH_PROCESSES, (command_stages.OUT,))}
#: exit codes of a process that torch's native code ended
CRASHES = (-signal.SIGSEGV, -signal.SIGABRT)
#: of the memory that a command takes beyond what it starts with, so much is allowed
SHARES = (0.02, 0.2, 0.5, 0.8)


def data_bytes(pid: int) -> int:
    """Memory that a process has asked for, which ``RLIMIT_DATA`` bounds."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData"))


def needs(stage: Stage, base: Path, log: Path) -> tuple[int, int]:
    """Bytes that a command has when it starts, and at its peak."""
    process, seen = start(stage.command, base, log), []

    def watch() -> None:
        while process.is_alive():
            try:
                seen.append(data_bytes(process.pid))
            except (OSError, StopIteration):  # it has ended
                return
            time.sleep(0.01)

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert ended(process) == 0, log.read_text()
    watcher.join()
    return seen[0], max(seen)


@pytest.mark.parametrize("name", STAGES)
def test_too_little_memory_is_one_sentence_and_loses_nothing(make_dataset, tmp_path: Path, name: str) -> None:
    stage = STAGES[name]
    wanted = undisturbed(make_dataset, stage)
    least, most = needs(stage, copied(world(make_dataset), tmp_path / "free", stage), tmp_path / "log")
    assert most > least
    codes = []
    for share in SHARES:
        base = copied(world(make_dataset), tmp_path / f"limited_{share}", stage)
        limit = int(least + share * (most - least))
        bounded = partial(resource.setrlimit, resource.RLIMIT_DATA, (limit, limit))
        code, text = finish(stage.command, base, before=bounded)
        codes.append(code)
        assert "Traceback" not in text and code in (0, 2, *CRASHES), f"{share}: {code}\n{text[-3000:]}"
        if code == 2:
            errors = [line for line in text.splitlines() if line.startswith("error: ")]
            assert len(errors) == 1 and "memory" in errors[0], text[-3000:]
            assert not [f for f in base.rglob("*.tmp")]
        if code != 0:
            code, text = finish(stage.command, base, *stage.command.again)  # with memory it goes on
            assert code == 0, text
        assert differences(contents(base, stage), wanted.contents) == []
    assert {2, *CRASHES} & {*codes}  # the limit was felt
