"""JSON files appear whole, and are what the standard asks for unless nnU-Net reads them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from nndiffseg.data.files import write_json


def test_json_is_strict(tmp_path):
    write_json({"a": float("nan"), "b": (1.0, float("inf"))}, tmp_path / "x.json")
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": None, "b": [1.0, None]}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_files_of_nnunet_keep_what_is_no_number(tmp_path):
    write_json({"a": float("nan")}, tmp_path / "x.json", strict=False)
    assert math.isnan(json.loads((tmp_path / "x.json").read_text())["a"])


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "sub" / "x.json"
    write_json({"a": 1}, file)
    with pytest.raises(TypeError):
        write_json({"a": object()}, file)
    assert json.loads(file.read_text()) == {"a": 1}
    assert [f.name for f in file.parent.iterdir()] == ["x.json"]
