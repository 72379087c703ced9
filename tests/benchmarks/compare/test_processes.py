"""Kept measurements."""

from __future__ import annotations

import pytest

from benchmarks.compare.processes import Measurements


def test_measurements_are_made_once_and_survive_an_interruption(tmp_path):
    calls = []

    def measure(value):
        calls.append(value)
        if value == "interrupted":
            raise KeyboardInterrupt
        return {"dice": 0.5}

    kept = Measurements(tmp_path / "sub", "kept", {"seed": 0, "sizes": (1, 2)})
    kept.get("a", lambda: measure("a"))
    with pytest.raises(KeyboardInterrupt):
        kept.get("b", lambda: measure("interrupted"))
    again = Measurements(tmp_path / "sub", "kept", {"seed": 0, "sizes": (1, 2)})
    assert again.get("a", lambda: measure("a again")) == {"dice": 0.5}
    again.get("b", lambda: measure("b"))
    assert calls == ["a", "interrupted", "b"]


def test_measurements_with_other_settings_are_neither_mixed_nor_lost(tmp_path):
    Measurements(tmp_path, "kept", {"seed": 0}).get("a", lambda: 1)
    assert Measurements(tmp_path, "kept", {"seed": 1}).get("a", lambda: 2) == 2
    assert Measurements(tmp_path, "kept", {"seed": 0}).get("a", lambda: 3) == 1
