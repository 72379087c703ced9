"""Flags and budgets of the comparisons."""

from __future__ import annotations

import pytest

from benchmarks.compare.flags import Budget, add_budget_flags, budget_from, data_parser, passed_on
from nndiffseg.errors import UserError


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
