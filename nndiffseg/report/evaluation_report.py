"""Writes an evaluation: JSON, CSV and a page that loads nothing, all three files or none."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from nndiffseg.data.files import json_text, write_atomically
from nndiffseg.report.charts import reliability_figure
from nndiffseg.report.page import environment
from nndiffseg.report.pictures import as_data_uri
from nndiffseg.uncertainty.evaluation_table import blocks, csv_text, findings, number


def write_evaluation(evaluation: Mapping[str, Any], folder: Path) -> None:
    """Writes ``evaluation.json``, ``evaluation.csv`` and ``evaluation.html``.

    Args:
        evaluation: from :func:`nndiffseg.uncertainty.evaluation.evaluate_predictions`.
        folder: an existing one.
    """
    contents = {
        "evaluation.json": json_text(evaluation),
        "evaluation.csv": csv_text(evaluation),
        "evaluation.html": evaluation_page(evaluation),
    }
    with ExitStack() as stack:  # none replaces its older file before all are written
        for name, text in contents.items():
            stack.enter_context(write_atomically(folder / name)).write_text(text, encoding="utf8")


def evaluation_page(evaluation: Mapping[str, Any]) -> str:
    """The evaluation as an HTML document; every name is escaped."""
    templates = environment()
    templates.filters["number"] = number
    summary = evaluation["summary"]
    figure = reliability_figure(summary["calibration"]["bins"]) if summary["calibration"] else None
    worst = sorted(
        evaluation["cases"].items(), key=lambda case: (case[1]["dice_mean"] != case[1]["dice_mean"], case[1]["dice_mean"])
    )
    return templates.get_template("evaluation.html.j2").render(
        summary=summary,
        blocks=blocks(summary),
        findings=findings(summary),
        reliability=as_data_uri(figure) if figure else "",
        cases=worst,
        matching=evaluation["matching"],
    )
