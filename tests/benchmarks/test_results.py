"""What is committed: tables and summaries, together at most 2,000 lines, and no metrics of single cases."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
FILES = sorted(f for f in RESULTS.iterdir() if not f.name.startswith("."))


def test_all_results_together_have_at_most_2000_lines():
    assert FILES and sum(len(f.read_text().splitlines()) for f in FILES) <= 2000


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_a_result_is_a_summary_and_says_where_it_comes_from(file: Path):
    content = json.loads(file.read_text())
    assert content.pop("command") and content["hardware"]["cores"]
    text = json.dumps(content)
    assert not re.search(r"hippocampus_\d{3}|[bm]\d\d_a\d\d|Image_\d\d[LR]", text), "names of cases"
    assert not re.search(r"/(root|home|tmp|work)/", text), "folders of a machine"


def test_every_result_that_the_documentation_names_is_there():
    documents = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    named = {n for d in documents for n in re.findall(r"benchmarks/results/([\w.*-]+\.json)", d.read_text())}
    for name in named - {"NAME.json"}:
        pattern = name.replace("fold01_N_", "fold01_*_").replace("fold0_N_", "fold0_*_")
        assert list(RESULTS.glob(pattern)), name
