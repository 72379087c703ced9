"""The data of a comparison: which cases, which messages."""

from __future__ import annotations

import pytest

from benchmarks.compare.data import data_from, spread_evenly
from benchmarks.compare.flags import data_parser
from nndiffseg.errors import UserError


def test_cases_are_spread_evenly_and_distinct():
    cases = [f"c{i}" for i in range(42)]
    chosen = spread_evenly(cases, 5)
    assert chosen == ["c0", "c10", "c20", "c31", "c41"]
    assert len(set(spread_evenly(cases, 41))) == 41
    assert spread_evenly(cases, 100) == spread_evenly(cases, None) == cases


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


def test_heads_are_all_labels_and_structures_those_without_the_background(tiny_data):
    assert tiny_data.heads == [(0,), (1,), (2,)]
    assert tiny_data.structures == {"shell": (1,), "core": (2,)}
