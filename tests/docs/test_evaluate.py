"""The how-to of nndiffseg_evaluate names what the command writes and takes."""

from __future__ import annotations

import re
from pathlib import Path

from nndiffseg.cli.evaluate import FILES, _parser
from nndiffseg.uncertainty.case_evaluation import MEASURES
from nndiffseg.uncertainty.evaluation_table import VOLUME_COLUMNS

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "howto" / "evaluate.md").read_text(encoding="utf8")


def test_every_column_every_file_and_every_flag_is_explained():
    named = set(re.findall(r"`([^`\s]+)`", TEXT))
    flags = {option for action in _parser()._actions for option in action.option_strings} - {"-h", "--help"}
    assert {*MEASURES, *VOLUME_COLUMNS, *FILES, *(flags - {"--disable_progress_bar"})} <= named
