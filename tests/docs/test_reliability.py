"""The tests that the documents name exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["reliability", "security"])
def test_every_test_that_is_named_exists(name: str) -> None:
    text = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf8")
    files = set(re.findall(r"`(tests/[\w/]+\.py)", text))
    tests = set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text))
    assert files and [file for file in files if not (ROOT / file).is_file()] == []
    assert [(f, test) for f, test in tests if f"def {test}(" not in (ROOT / f).read_text(encoding="utf8")] == []
