"""How metrics are shown and written."""

from __future__ import annotations

import json

import numpy as np

from benchmarks.common import compact
from benchmarks.compare.pooling import Interval
from benchmarks.compare.table import Metric, differences, header, part_words, rows, summary

METRIC = Metric(
    "Dice",
    {"nnunet": Interval(0.8, 0.7, 0.9), "nndiffseg": Interval(0.81, 0.7, np.nan)},
    {"nnunet": Interval(0.01, -0.002, 0.03)},
)


def test_cells_show_differences_with_sign_and_interval():
    found = rows([METRIC], ["nnunet", "head", "nndiffseg"], "nndiffseg")
    assert found == [["Dice", "0.8000", "", "0.8100", "+0.0100 [-0.0020, +0.0300]", ""]]
    labels = {"nnunet": "nnU-Net", "head": "head", "nndiffseg": "ours"}
    assert header("x", labels, "nndiffseg") == ["x", "nnU-Net", "head", "ours", "ours - nnU-Net", "ours - head"]


def test_summaries_are_json_without_nan():
    assert summary([METRIC]) == {"Dice": {"nnunet": 0.8, "nndiffseg": 0.81}}
    unknown = Metric("Dice", {"nnunet": Interval(np.nan, 0.7, 0.9)}, {"nnunet": Interval(0.01, -0.002, np.nan)})
    assert summary([unknown]) == {"Dice": {"nnunet": None}}
    assert differences([METRIC]) == {"Dice": {"nnunet": [0.01, -0.002, 0.03]}}
    assert differences([unknown]) == {"Dice": {"nnunet": [0.01, -0.002, None]}}


def test_parts_have_words():
    assert part_words("head") == "deterministic part" and part_words("samples") == "mean of samples"


def test_json_keeps_on_one_line_what_fits_and_loses_nothing():
    value = {"short": {"a": [1, 2, None], "b": "x"}, "long": [{"name": "y" * 90, "n": i} for i in range(4)], "empty": {}}
    text = compact(value, width=240)
    assert json.loads(text) == json.loads(compact(value)) == value
    assert text.splitlines()[1] == ' "short": {"a": [1, 2, null], "b": "x"},' and max(map(len, text.splitlines())) <= 240
