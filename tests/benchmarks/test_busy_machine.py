"""The table of a prediction beside a busy job: each kind of run in turn, ratios within a round."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager

from benchmarks import busy_machine


def test_ratios_are_medians_of_ratios_within_a_round(results_elsewhere, tmp_path, monkeypatch, capsys):
    beside: list[bool] = []
    seconds = {
        (False, 2): [10.0, 20.0, 40.0],
        (False, 1): [11.0, 22.0, 44.0],
        (True, 2): [30.0, 60.0, 60.0],
        (True, 1): [15.0, 30.0, 60.0],
    }

    @contextmanager
    def other_job(threads):
        assert threads == 2
        beside.append(True)
        yield
        beside.pop()

    monkeypatch.setattr(busy_machine.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(busy_machine, "other_job", other_job)
    monkeypatch.setattr(busy_machine, "predict", lambda args, threads: seconds[bool(beside), threads].pop(0))
    (tmp_path / "image_0000.png").touch()
    monkeypatch.setattr(sys, "argv", ["busy_machine", "-m", "model", "-i", str(tmp_path), "--name", "busy"])
    busy_machine.main()
    result = json.loads((results_elsewhere / "busy.json").read_text())
    assert result["ratios"] == {
        "2 threads, alone": 1.0,
        "1 thread, alone": 1.1,
        "2 threads, beside another job": 3.0,
        "1 thread, beside another job": 1.5,
    }
    assert not any(seconds.values()) and str(tmp_path) not in json.dumps(result["seconds"])


def test_the_other_job_ends():
    with busy_machine.other_job(1):
        pass
