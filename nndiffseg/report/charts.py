"""The charts of the demo's report: volumes against the known truth, and a reliability diagram."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nndiffseg.report.pictures import COLOURS, DPI, INK, QUIET

BAND = 0.3  # relative tolerance drawn around "measured = known"
#: The colours of contours on a grey image, darkened for a white page.
DARK = ("#1f77b4", "#c77700", "#158765", "#a8497f", "#a39200", "#b34700", "#2c5aa0")


def spread_figure(cases: Mapping[str, Any], structures: Sequence[str]) -> Figure | None:
    """Known versus measured standard deviation of the volumes, a point per case and structure; None if none is known."""
    figure, ax = _square("known sd of the volume, ml", "calibrated sd over the samples, ml")
    highest = 0.0
    for i, structure in enumerate(structures):
        rows = [case["volumes"][structure] for case in cases.values()]
        points = np.array([(r["known_sd_ml"], r["sd_ml"]) for r in rows if r["known_sd_ml"] and r["sd_ml"] is not None])
        if len(points):
            ax.scatter(
                points[:, 0], points[:, 1], s=30, color=DARK[i % len(DARK)], alpha=0.8, linewidths=0, label=structure, zorder=3
            )
            highest = max(highest, points.max())
    if highest == 0:
        return None
    limit = 1.12 * highest
    ax.fill_between([0, limit], [0, limit * (1 - BAND)], [0, limit * (1 + BAND)], color="#e8edf2", linewidth=0)
    ax.text(0.97, 0.03, f"grey: within {100 * BAND:.0f} %", transform=ax.transAxes, ha="right", color=QUIET, fontsize=8)
    _finish(ax, 0, limit)
    return figure


def volume_figure(cases: Mapping[str, Any], structures: Sequence[str]) -> Figure | None:
    """True volume versus the samples' mean and 90 % interval, one mark per case and structure; None without samples."""
    figure, ax = _square("true volume, ml", "mean and 90 % interval, ml")
    drawn: list[float] = []
    for i, structure in enumerate(structures):
        rows = [case["volumes"][structure] for case in cases.values()]
        points = np.array([(r["reference_ml"], r["mean_ml"], *r["interval_90_ml"]) for r in rows if r["interval_90_ml"]])
        if len(points):
            true, mean, low, high = points.T
            colour = DARK[i % len(DARK)]
            ax.vlines(true, low, high, color=colour, linewidth=1.4, alpha=0.7)
            ax.scatter(true, mean, s=22, color=colour, linewidths=0, label=structure, zorder=3)
            drawn += points.ravel().tolist()
    if not drawn:
        return None
    margin = 0.06 * (max(drawn) - min(drawn)) or 1.0
    _finish(ax, max(0.0, min(drawn) - margin), max(drawn) + margin)
    return figure


def reliability_figure(calibration: Mapping[str, Any] | None) -> Figure | None:
    """Predicted probability versus how often the label was true; the marks' area tells the share of voxels."""
    if calibration is None or not calibration["bins"]["voxels"]:
        return None
    bins = {key: np.asarray(values, float) for key, values in calibration["bins"].items()}
    figure, ax = _square("predicted probability", "how often it was right")
    ax.plot(bins["probability"], bins["frequency"], color=DARK[0], linewidth=1.2)
    ax.scatter(
        bins["probability"],
        bins["frequency"],
        s=15 + 160 * np.sqrt(bins["voxels"] / bins["voxels"].sum()),
        color=COLOURS[0],
        edgecolors=DARK[0],
        linewidths=0.8,
        zorder=3,
    )
    _finish(ax, 0, 1)
    return figure


def _square(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure((3.6, 3.5), dpi=DPI, facecolor="white")
    ax = figure.add_axes((0.17, 0.15, 0.8, 0.8))  # the same for every chart, so that they line up
    ax.set_xlabel(x, fontsize=9, color=INK)
    ax.set_ylabel(y, fontsize=9, color=INK)
    return figure, ax


def _finish(ax: Axes, low: float, high: float) -> None:
    """Equal axes, the line of equality, quiet frame, legend."""
    ax.plot([low, high], [low, high], color=QUIET, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    ax.set(xlim=(low, high), ylim=(low, high))
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(5))
    ax.tick_params(labelsize=8, colors=QUIET, length=0)
    ax.grid(color="#eef1f4", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color("#c6ced6")
    if handles := ax.get_legend_handles_labels()[0]:
        labels = [f"\u200b{h.get_label()}" for h in handles]  # a leading underscore would hide an entry
        legend = ax.legend(handles, labels, loc="upper left", frameon=False, fontsize=8, handletextpad=0.3, labelcolor=INK)
        for text in legend.get_texts():
            text.set_parse_math(False)
