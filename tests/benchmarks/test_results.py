"""What is committed: tables and summaries, together at most 2,000 lines, and no metrics of single cases."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks.common import command_line

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
FILES = sorted(f for f in RESULTS.iterdir() if not f.name.startswith("."))


def test_all_results_together_have_at_most_2000_lines():
    assert FILES and sum(len(f.read_text().splitlines()) for f in FILES) <= 2000


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_a_result_is_a_summary_and_says_where_it_comes_from(file: Path):
    content = json.loads(file.read_text())
    assert not re.search(r"/(root|home|tmp|work)/", json.dumps(content)), "folders of a machine"
    assert content.pop("command") and content["hardware"]["cores"]
    assert not re.search(r"hippocampus_\d{3}|[bm]\d\d_a\d\d|Image_\d\d[LR]", json.dumps(content)), "names of cases"


def test_every_result_that_the_documentation_names_is_there():
    documents = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    named = {n for d in documents for n in re.findall(r"benchmarks/results/([\w.*-]+\.json)", d.read_text())}
    for name in named - {"NAME.json"}:
        pattern = name.replace("fold01_N_", "fold01_*_").replace("fold0_N_", "fold0_*_")
        assert list(RESULTS.glob(pattern)), name


def test_a_command_is_kept_without_folders_of_the_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    flags = ["--raw", str(tmp_path / "a"), "--nnunet", str(tmp_path / "T__P__2d"), f"{tmp_path}/raw/Dataset001_A", "relative/x"]
    monkeypatch.setattr("sys.argv", ["/somewhere/fair_table.py", *flags])
    line = command_line()
    assert line == "python -m benchmarks.fair_table --raw $nnUNet_raw --nnunet T__P__2d $nnUNet_raw/Dataset001_A relative/x"
