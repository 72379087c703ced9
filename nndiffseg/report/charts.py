"""The charts of the demo's report: volumes against the truth, and a reliability diagram."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nndiffseg.calibration.expected_dice import DiceMap
from nndiffseg.data.images import PIXELS
from nndiffseg.report.pictures import COLOURS, DPI, INK, MUTED, add_legend
from nndiffseg.uncertainty.volumes import MM3_PER_ML

TOLERANCE = 0.3  # relative, drawn as a band around "measured = known"
#: The colours of the contours on grey images, darkened for a white page.
DARK_COLOURS = ("#1f77b4", "#c77700", "#158765", "#a8497f", "#a39200", "#b34700", "#2c5aa0")


class VolumeRow(TypedDict):
    """The volume of one structure of one case, in ml; see :func:`nndiffseg.uncertainty.evaluation.evaluate_predictions`.

    ``mean_ml``, ``sd_ml`` and ``interval_90_ml`` describe the samples, the last two calibrated.
    """

    reference_ml: float
    mean_ml: float | None
    sd_ml: float | None
    interval_90_ml: list[float] | None
    known_sd_ml: float | None


class ReliabilityBins(TypedDict):
    """Voxels grouped by predicted probability: their number, mean probability and frequency of the label, ``(bins,)`` each."""

    voxels: list[float]
    probability: list[float]
    frequency: list[float]


def spread_figure(volumes: Mapping[str, Sequence[VolumeRow]], unit: str = "ml") -> Figure | None:
    """Known and measured standard deviation of the volumes, one point per case and structure; None if none is known.

    Args:
        volumes: structure -> a row per case.
        unit: of what is drawn, see :func:`nndiffseg.data.images.volume_unit`.
    """
    figure, ax = _square(f"known sd of the volume, {unit}", f"calibrated sd over the samples, {unit}")
    highest, entries = 0.0, list[tuple[Artist, str]]()
    for i, (structure, rows) in enumerate(volumes.items()):
        points = np.array([(r["known_sd_ml"], r["sd_ml"]) for r in rows if r["known_sd_ml"] and r["sd_ml"] is not None], float)
        points *= _per_ml(unit)
        if len(points):
            known, measured = points.T
            marks = ax.scatter(known, measured, s=30, color=_colour(i), alpha=0.8, linewidths=0, zorder=3)
            entries.append((marks, structure))
            highest = max(highest, points.max())
    if highest == 0:
        return None
    limit = 1.12 * highest
    ax.fill_between([0, limit], [0, limit * (1 - TOLERANCE)], [0, limit * (1 + TOLERANCE)], color="#e8edf2", linewidth=0)
    ax.text(0.97, 0.03, f"grey: within {100 * TOLERANCE:.0f} %", transform=ax.transAxes, ha="right", color=MUTED, fontsize=8)
    _finish(ax, 0, limit, entries)
    return figure


def volume_figure(volumes: Mapping[str, Sequence[VolumeRow]], unit: str = "ml") -> Figure | None:
    """True volume, and mean and 90 % interval of the samples, one mark per case and structure; None without samples.

    Args:
        volumes: structure -> a row per case.
        unit: of what is drawn, see :func:`nndiffseg.data.images.volume_unit`.
    """
    figure, ax = _square(f"true volume, {unit}", f"mean and 90 % interval, {unit}")
    drawn, entries = list[float](), list[tuple[Artist, str]]()
    for i, (structure, rows) in enumerate(volumes.items()):
        points = np.array([(r["reference_ml"], r["mean_ml"], *r["interval_90_ml"]) for r in rows if r["interval_90_ml"]], float)
        points *= _per_ml(unit)
        if len(points):
            true, mean, low, high = points.T
            ax.vlines(true, low, high, color=_colour(i), linewidth=1.4, alpha=0.7)
            entries.append((ax.scatter(true, mean, s=22, color=_colour(i), linewidths=0, zorder=3), structure))
            drawn += points.ravel().tolist()
    if not drawn:
        return None
    margin = 0.06 * (max(drawn) - min(drawn)) or 1.0
    _finish(ax, max(0.0, min(drawn) - margin), max(drawn) + margin, entries)
    return figure


def _per_ml(unit: str) -> float:
    return MM3_PER_ML if unit == PIXELS else 1.0


def reliability_figure(bins: ReliabilityBins) -> Figure | None:
    """Predicted probability and how often the label was true. The area of a mark grows with its number of voxels."""
    if not bins["voxels"]:
        return None
    voxels = np.asarray(bins["voxels"], float)
    sizes = 15 + 160 * np.sqrt(voxels / voxels.sum())
    figure, ax = _square("predicted probability", "how often it was right")
    x, y = bins["probability"], bins["frequency"]
    ax.plot(x, y, color=_colour(0), linewidth=1.2)
    ax.scatter(x, y, s=sizes, color=COLOURS[0], edgecolors=_colour(0), linewidths=0.8, zorder=3, clip_on=False)
    _finish(ax, -0.04, 1.04)  # the marks at 0 and 1 are the largest, and would cover the axes' numbers
    return figure


def dice_figure(points: Sequence[Sequence[float]], line: DiceMap | None) -> Figure | None:
    """Soft Dice confidence and Dice of the segmentation, a mark per case, with the fitted line and its interval."""
    known = np.array([p for p in points if np.isfinite(p).all()])
    if not len(known):
        return None
    figure, ax = _square("confidence", "Dice of the segmentation")
    low = max(0.0, float(known.min()) - 0.05)
    if line is not None:
        x = np.linspace(low, 1, 50)
        ax.plot(x, [line.expected(v) for v in x], color=_colour(0), linewidth=1.2)
        if line.margin is not None:
            ends = np.array([line.interval(v) for v in x])
            ax.fill_between(x, ends[:, 0], ends[:, 1], color="#e8edf2", linewidth=0)
    ax.scatter(known[:, 0], known[:, 1], s=22, color=_colour(0), linewidths=0, zorder=3)
    _finish(ax, low, 1)
    return figure


def _colour(structure: int) -> str:
    return DARK_COLOURS[structure % len(DARK_COLOURS)]


def _square(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure((3.6, 3.5), dpi=DPI, facecolor="white")
    ax = figure.add_axes((0.17, 0.15, 0.8, 0.8))  # the same in every chart, so that they line up
    ax.set_xlabel(x, fontsize=9, color=INK)
    ax.set_ylabel(y, fontsize=9, color=INK)
    return figure, ax


def _finish(ax: Axes, low: float, high: float, entries: Sequence[tuple[Artist, str]] = ()) -> None:
    """Both axes from ``low`` to ``high``, the line of equality, light frame, legend."""
    ax.plot([low, high], [low, high], color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    ax.set(xlim=(low, high), ylim=(low, high))
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(5))
    ax.tick_params(labelsize=8, colors=MUTED, length=0)
    ax.grid(color="#eef1f4", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color("#c6ced6")
    if entries:
        add_legend(ax, entries, loc="upper left", handletextpad=0.3)
