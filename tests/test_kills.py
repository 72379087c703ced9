"""SIGKILL of whole process groups at random moments: run again, each command comes to the result of an undisturbed run.

`pytest -n 0 -m slow tests/test_kills.py` (docs/reliability.md has the figures).
"""

from __future__ import annotations

import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
from command_stages import Stage, contents, copied, differences, undisturbed
from command_world import (
    ATTACH,
    ATTACHED,
    CALIBRATE,
    MODEL,
    PLAN,
    PREDICT,
    STOCK,
    TRAIN,
    VALIDATE,
    Command,
    ended,
    finish,
    first_line,
    start,
    world,
)

OFTEN = {"nndiffseg.training.loop.CHECKPOINT_SECONDS": 0}  # else a training of seconds has no state to go on from
TWO = replace(PLAN, words=(*PLAN.words[:-4], "-np", "2", "-npfp", "2"))
DATA, RESULTS, OUT = Path("preprocessed"), Path("results"), Path("out")
#: what is killed, and the number of tests; the n-th has n + 2 kills one after another
STAGES = {
    "planning and preprocessing": (Stage(PLAN, (DATA,), (DATA, RESULTS)), 3),
    "preprocessing with two processes": (Stage(TWO, (DATA,), (DATA, RESULTS)), 2),
    "training": (Stage(replace(TRAIN, settings=OFTEN), (MODEL,), (RESULTS,)), 3),
    "validation": (Stage(VALIDATE, (MODEL,)), 3),
    "prediction": (Stage(PREDICT, (OUT,)), 3),
    "prediction with processes": (Stage(replace(PREDICT, words=(*PREDICT.words, "-npp", "2", "-nps", "2")), (OUT,)), 2),
    "calibration": (Stage(CALIBRATE, (STOCK,), (MODEL,)), 2),
    "attaching": (Stage(replace(ATTACH, settings=OFTEN), (ATTACHED, DATA), (MODEL,)), 2),
}
KILLS = [(name, number) for name, (_, tests) in STAGES.items() for number in range(tests)]


def test_there_are_at_least_fifty_kills() -> None:
    assert sum(2 + number for _, number in KILLS) >= 50


def kill(command: Command, base: Path, log: Path, seconds: float, *more: str) -> None:
    """Kills the process group of a command so many seconds after its first line; sooner where it ends before."""
    for _ in range(6):
        process = start(command, base, log, *more)
        first_line(process, log)
        time.sleep(seconds)
        if process.is_alive():
            os.killpg(process.pid, signal.SIGKILL)
        if ended(process) == -signal.SIGKILL:
            return
        assert process.exitcode == 0, log.read_text()
        seconds /= 2
    raise AssertionError("it always ended before it could be killed")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("name", "number"), KILLS)
def test_a_killed_command_comes_to_the_result_of_an_undisturbed_one(make_dataset, tmp_path, name: str, number: int) -> None:
    (stage, _), moments = STAGES[name], random.Random(f"{name} {number}")
    wanted = undisturbed(make_dataset, stage)
    base, more = copied(world(make_dataset), tmp_path / "base", stage), ()
    for _ in range(2 + number):
        kill(stage.command, base, tmp_path / "log", wanted.seconds * moments.random(), *more)
        more = stage.command.again
    code, text = finish(stage.command, base, *more)
    assert code == 0, text
    assert differences(contents(base, stage), wanted.contents) == []
