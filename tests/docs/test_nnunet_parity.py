"""``docs/nnunet-parity.md``: each row names a test that exists, or why it has none, and its sums are those of its rows."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "nnunet-parity.md").read_text(encoding="utf8")
ROWS = [[cell.strip() for cell in line.split(" | ")] for line in TEXT.splitlines() if re.match(r"\| .* \| .* \|", line)]
ROWS = [row for row in ROWS if row[1] != "verdict"]


def test_every_test_that_a_row_names_exists():
    named = [row[3].rstrip("| ").strip("`") for row in ROWS if "no test" not in row[3]]
    assert len(named) > 120
    for place in named:
        file, name = place.split("::")
        assert re.search(rf"^def {name}\(", (ROOT / "tests" / file).read_text(encoding="utf8"), re.MULTILINE), place


def test_every_row_has_a_test_or_says_why_it_has_none():
    for row in ROWS:
        assert len(row) == 4 and row[1] in ("same", "nnU-Net's", "different", "missing"), row
        name = row[0].removeprefix("| ")
        assert "::" in row[3] or re.search(r"no test: \w", row[3]), name


def test_what_is_missing_cannot_be():
    missing = {row[0].removeprefix("| "): row[2] for row in ROWS if row[1] == "missing"}
    assert all(text.startswith("cannot be: ") for text in missing.values())


def test_the_sums_are_those_of_the_rows():
    counted = Counter(row[1] for row in ROWS)
    told = re.search(r"(\d+) rows: (\d+) same, (\d+) nnU-Net's, (\d+) different, (\d+) missing\. (\d+) rows name", TEXT)
    backed = sum("no test" not in row[3] for row in ROWS)
    expected = [len(ROWS), *(counted[verdict] for verdict in ("same", "nnU-Net's", "different", "missing")), backed]
    assert told is not None and [int(number) for number in told.groups()] == expected
