"""Flags, budgets and kept measurements of the comparisons."""

from __future__ import annotations

import pytest

from benchmarks.methods_common import (
    TRAINERS,
    Budget,
    Measurements,
    add_budget_flags,
    budget_from,
    class_name,
    data_parser,
    find_class,
    passed_on,
)
from benchmarks.methods_data import data_from, spread_evenly
from nndiffseg.errors import UserError


def test_cases_are_spread_evenly_and_distinct():
    cases = [f"c{i}" for i in range(42)]
    chosen = spread_evenly(cases, 5)
    assert chosen == ["c0", "c10", "c20", "c31", "c41"]
    assert len(set(spread_evenly(cases, 41))) == 41
    assert spread_evenly(cases, 100) == spread_evenly(cases, None) == cases


def test_every_default_trainer_is_found_by_its_name():
    assert [find_class(name).__name__ for name in TRAINERS] == list(TRAINERS)


def test_a_variant_in_a_module_is_found():
    found = find_class("benchmarks.component_ablation:CDALNoLatent")
    assert found.__name__ == class_name("benchmarks.component_ablation:CDALNoLatent") == "CDALNoLatent"
    with pytest.raises(UserError, match="no trainer Nothing"):
        find_class("benchmarks.component_ablation:Nothing")


@pytest.mark.parametrize(
    "flags", [["--iterations", "3", "--minutes", "1"], ["--iterations", "0"], ["--minutes", "-1"], ["--minutes", "nan"]]
)
def test_senseless_budgets_are_refused(flags):
    parser = data_parser("")
    add_budget_flags(parser)
    with pytest.raises(UserError):
        budget_from(parser.parse_args(flags))


def test_flags_passed_on_mean_the_same(tiny_flags):
    parser = data_parser("")
    add_budget_flags(parser)
    args = parser.parse_args([*tiny_flags, "--iterations", "7", "--cases", "2", "--disable_tta"])
    again = parser.parse_args(passed_on(args, "iterations", "minutes"))
    assert again == args
    assert budget_from(again) == Budget(7, None)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset", "77"], "No such dataset: 77"),
        (["--planner", "L"], "There are no plans nnDiffSegPlansL .* -pl DiffSegPlannerL"),
        (["--configuration", "3d_fullres"], "no configuration 3d_fullres"),
        (["--fold", "2"], "no fold 2"),
        (["--cases", "0"], "--cases must be at least 1"),
    ],
)
def test_bad_input_is_told_in_one_sentence(tiny_flags, flags, message):
    with pytest.raises(UserError, match=message):
        data_from(data_parser("").parse_args([*tiny_flags, *flags]))


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
