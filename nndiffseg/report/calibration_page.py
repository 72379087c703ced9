"""The report of ``nndiffseg_calibrate``: one HTML file that loads nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nndiffseg.calibration.calibration import Calibration
from nndiffseg.data.files import write_atomically
from nndiffseg.data.images import PIXELS, unit_of_model
from nndiffseg.diffusion.coherent import lengths_in_words
from nndiffseg.report.charts import ReliabilityBins, dice_figure, reliability_figure
from nndiffseg.report.page import environment
from nndiffseg.report.pictures import as_data_uri
from nndiffseg.uncertainty.volumes import MM3_PER_ML


def write_calibration_report(
    file: Path, model: str, calibration: Calibration, check: Mapping[str, Any], structures: Sequence[str]
) -> Path:
    """Writes the report.

    Args:
        file: of the report, in an existing folder of the model's folder, whose plans say the unit of volumes.
        model: its name.
        calibration: that was fitted on all cases.
        check: figures on cases that it was not fitted to, see :mod:`nndiffseg.uncertainty.calibration_check`.
        structures: their names.

    Returns:
        ``file``.
    """
    first = 0 if check.get("regions") else 1
    charts = {name: _chart(reliability_figure(_foreground(bins, first))) for name, bins in check.get("reliability", {}).items()}
    page = environment().get_template("calibration.html.j2")
    text = page.render(
        model=model,
        calibration=calibration,
        check=check,
        unit=(unit := unit_of_model(file.parents[1])),
        per_unit=MM3_PER_ML if unit == PIXELS else 1.0,
        lengths=lengths_in_words(calibration.length_weights) if calibration.length_weights else "",
        charts=charts,
        rows=list(zip(structures, check["volumes"], strict=True)),
        promised=all(row["coverage_90"] is not None for row in check["volumes"]),
        dice_chart=_chart(dice_figure(check["dice"]["points"], calibration.dice)),
    )
    with write_atomically(file) as temporary:
        temporary.write_text(text, encoding="utf8")
    return file


def _chart(figure: Any) -> str:
    return as_data_uri(figure) if figure is not None else ""


def _foreground(bins: Mapping[str, Any], first: int) -> ReliabilityBins:
    """Bins of all channels from ``first`` on, put together."""
    voxels, confidence, frequency = (np.asarray(bins[k])[first:].sum(0) for k in ("voxels", "confidence", "frequency"))
    some = voxels > 0
    return {
        "voxels": voxels[some].tolist(),
        "probability": (confidence[some] / voxels[some]).tolist(),
        "frequency": (frequency[some] / voxels[some]).tolist(),
    }
