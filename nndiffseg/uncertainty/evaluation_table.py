"""An evaluation as text: tables for a terminal, and rows for a CSV file."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nndiffseg.data.images import PIXELS
from nndiffseg.uncertainty.means import nanmean
from nndiffseg.uncertainty.volumes import MM3_PER_ML

Column = tuple[str, str, int]  # key, heading, digits
#: blocks of a table: title, and the columns that are shown if any structure has a number there
BLOCKS: tuple[tuple[str, tuple[Column, ...]], ...] = (
    ("segmentation", (("dice", "Dice", 3), ("iou", "IoU", 3), ("nsd", "NSD", 3), ("hd95_mm", "HD95, mm", 2))),
    (
        "volumes",
        (
            ("segmentation_error_ml", "bias, ml", 3),
            ("segmentation_relative_error", "relative error", 3),
            ("relative_error", "samples' mean", 3),
            ("coverage_90", "90 % coverage", 2),
            ("mean_sd_ml", "spread, ml", 3),
            ("mean_known_sd_ml", "known, ml", 3),
            ("spread_ratio", "ratio", 2),
            ("crps_ml", "CRPS, ml", 3),
        ),
    ),
    ("probabilities, near the structures", (("ece", "ECE", 3), ("ace", "ACE", 3), ("brier", "Brier", 3), ("nll", "NLL", 3))),
    (
        "samples",
        (
            ("energy_score", "energy score", 3),
            ("ged_squared", "GED²", 3),
            ("ged_cross", "cross", 3),
            ("ged_within_samples", "within samples", 3),
            ("ged_within_annotators", "within annotators", 3),
            ("matched_iou", "matched IoU", 3),
            ("best_dice", "best Dice", 3),
        ),
    ),
    ("annotators", (("consensus_dice", "Dice with the consensus", 3), ("thresholded_dice", "thresholded Dice", 3))),
)
#: columns of the CSV file beside case, structure, annotators and the measures
VOLUME_COLUMNS = (
    *("reference_ml", "segmentation_ml", "segmentation_error_ml", "segmentation_relative_error"),
    *("mean_ml", "sd_ml", "low_90_ml", "high_90_ml", "covered", "crps_ml"),
)


def blocks(summary: Mapping[str, Any]) -> list[tuple[str, list[list[str]]]]:
    """The tables of a summary: title, and rows of cells, the headings first. Columns without any number are left out."""
    structures = {s: {**row, **summary["volumes"][s]} for s, row in summary["structures"].items()}
    if len(structures) > 1:
        keys = {key for _, columns in BLOCKS for key, _, _ in columns}
        structures["mean"] = {key: nanmean(row.get(key) for row in structures.values()) for key in keys}
        structures["mean"] |= {k: summary["sets"].get(k) for k in ("matched_iou", "best_dice")}  # not a mean of structures
    tables, pixels = [], summary.get("unit") == PIXELS
    for title, columns in BLOCKS:
        shown = [c for c in columns if any(number(row.get(c[0])) != "-" for row in structures.values())]
        if shown:
            rows = [[s, *(_cell_of(row, key, digits, pixels) for key, _, digits in shown)] for s, row in structures.items()]
            headings = [heading.replace(", ml", f", {PIXELS}") if pixels else heading for _, heading, _ in shown]
            tables.append((title, [["structure", *headings], *rows]))
    return tables


def _cell_of(row: Mapping[str, Any], key: str, digits: int, pixels: bool) -> str:
    """A number of a structure; volumes of photographs in pixels."""
    value = row.get(key)
    return number(value * MM3_PER_ML, 0) if pixels and key.endswith("_ml") and value is not None else number(value, digits)


def findings(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is measured over all structures: name and value, as far as it is there."""
    expected = summary["expected_dice"] or {}
    risk = expected.get("mean_risk")
    half = None if risk is None else risk / 2
    values = [
        ("error AUROC", number(summary["error_auroc"])),
        (f"error AUPRC (chance {number(summary['error_rate'])})", number(summary["error_auprc"])),
        (f"AURC of the expected Dice (chance {number(risk)})", number(expected.get("aurc"))),
        (f"AUGRC of the expected Dice (chance {number(half)})", number(expected.get("augrc"))),
        ("rank correlation of expected and real Dice", number(expected.get("spearman"), 2)),
        ("NCC of uncertainty and annotators", number(summary["sets"].get("ncc"))),
    ]
    return [(name, value) for name, value in values if value != "-"]


def format_table(evaluation: Mapping[str, Any]) -> str:
    """The summary as small tables for a terminal."""
    summary = evaluation["summary"]
    lines = []
    for title, rows in blocks(summary):
        lines += [title, *aligned(rows), ""]
    found = findings(summary)
    width = max((len(name) for name, _ in found), default=0)
    lines += [f"{name.ljust(width)}  {value}" for name, value in found]
    lines.append(
        f"{summary['cases']} cases, mean Dice {number(summary['dice_mean'])}, AUROC of total uncertainty "
        f"against errors {number(summary['error_auroc'])} (dilated foreground)"
    )
    return "\n".join(lines)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table for a terminal: the headings, a rule, the rows."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    text = [
        row[0].ljust(widths[0]) + "".join(f"  {cell:>{w}}" for cell, w in zip(row[1:], widths[1:], strict=True)) for row in rows
    ]
    return [text[0], "-" * len(text[0]), *text[1:]]


def csv_text(evaluation: Mapping[str, Any]) -> str:
    """One row per case and structure; a cell without a number is empty."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    measures = list(next(iter(next(iter(evaluation["cases"].values()))["structures"].values())))
    writer.writerow(["case", "structure", "annotators", *measures, *VOLUME_COLUMNS])
    for name, case in evaluation["cases"].items():
        for structure, row in case["structures"].items():
            volumes = case["volumes"][structure]
            low, high = volumes["interval_90_ml"] or (None, None)
            values = [*row.values(), *({**volumes, "low_90_ml": low, "high_90_ml": high}[key] for key in VOLUME_COLUMNS)]
            writer.writerow([name, structure, case["annotators"], *map(_cell, values)])
    return stream.getvalue()


def _cell(value: float | None) -> str:
    return "" if value is None or not np.isfinite(value) else f"{value:.6g}"


def number(value: float | None, digits: int = 3) -> str:
    """``0.123``, or ``-`` for None and NaN."""
    return "-" if value is None or np.isnan(value) else f"{value:.{digits}f}"
