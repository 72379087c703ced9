"""The pictures of a report. Figures are made without pyplot: no window, no state, safe in any process."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from contourpy import contour_generator
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Colormap, ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray
from PIL import Image

from nndiffseg.report.slices import ANATOMICAL, View

#: After Okabe and Ito, told apart by colour-blind readers too; the brightest first, for the grey image below.
COLOURS = ("#56b4e9", "#e69f00", "#2fbf8f", "#cc79a7", "#f0e442", "#d55e00", "#4d86d8")
ERROR, INK, QUIET = "#ff3b30", "#1f2933", "#6b7785"
SHADE = {"boxstyle": "round,pad=0.25", "facecolor": (0, 0, 0, 0.45), "edgecolor": "none"}
TITLES = {
    "segmentation": "Segmentation",
    "total": "Total uncertainty",
    "aleatoric": "Aleatoric uncertainty",
    "epistemic": "Epistemic uncertainty",
    "errors": "Errors",
}
DPI = 130
GAP, TITLE, BAR, LEGEND = 0.06, 0.27, 0.62, 0.36  # inches: between pictures, above a row, right of it, below all


def case_figure(
    views: Sequence[View], structures: Mapping[str, Sequence[int]], *, scale: float = 1.0, width: float = 9.0
) -> Figure:
    """Draws one case: image with contours, uncertainty maps, and errors where the truth is known.

    Three slices make a row per kind of picture; those of a 2D image stand two in a row.

    Args:
        views: see :func:`nndiffseg.report.slices.read_views`.
        structures: name -> its labels.
        scale: uncertainty at the bright end of the colour bar.
        width: in inches.
    """
    kinds = ["segmentation", *views[0].maps, *(["errors"] if views[0].reference is not None else [])]
    if len(views) > 1:
        rows = [[(kind, view) for view in views] for kind in kinds]
    else:
        columns = 2 if len(kinds) > 1 else 1
        cells = [(kind, views[0]) for kind in kinds]
        rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    # pictures of one row have equal height, so their widths follow from their proportions
    proportions = [v.image.shape[1] * v.spacing[1] / (v.image.shape[0] * v.spacing[0]) for _, v in rows[0]]
    height = min((width - BAR - GAP * (len(proportions) - 1)) / sum(proportions), 0.62 * width)
    widths = [height * p for p in proportions]
    size = (width, len(rows) * (height + TITLE) + LEGEND)
    figure = Figure(size, dpi=DPI, facecolor="white")
    for i, row in enumerate(rows):
        bottom, left = LEGEND + (len(rows) - 1 - i) * (height + TITLE), 0.0
        for j, (kind, view) in enumerate(row):
            if len(views) == 1 or j == 0:
                figure.text(
                    left / size[0], (bottom + height + 0.07) / size[1], TITLES[kind], fontsize=9.5, color=INK, weight="bold"
                )
            draw_view(_axes(figure, left, bottom, widths[j], height), view, kind, structures, scale)
            left += widths[j] + GAP
        if any(kind in view.maps for kind, view in row):
            _colour_bar(_axes(figure, sum(widths) + GAP * len(widths) + 0.04, bottom, 0.11, height), scale)
    _scale_bars(figure, rows[0])
    _legend(figure, views, structures)
    return figure


def _axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes placed in inches."""
    w, h = figure.get_size_inches()
    return figure.add_axes((left / w, bottom / h, width / w, height / h))


def draw_view(ax: Axes, view: View, kind: str, structures: Mapping[str, Sequence[int]], scale: float) -> None:
    """Draws one slice: ``segmentation``, ``errors`` or the map of that name over the image."""
    height, width = (n * s for n, s in zip(view.image.shape, view.spacing, strict=True))
    extent = (0, width, height, 0)
    low, high = np.percentile(view.image, (0.5, 99.5))
    ax.imshow(view.image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), extent=extent, interpolation="bilinear")
    line = _line_width(ax, len(view.image))
    if kind in view.maps:
        ax.imshow(_overlay(view.maps[kind], scale), extent=extent, interpolation="bilinear")
        for labels in structures.values():
            _contours(ax, [np.isin(view.segmentation, labels)], view.spacing, color="white", linewidth=0.35 * line, alpha=0.75)
    elif kind == "errors" and view.reference is not None:
        wrong = np.zeros((*view.image.shape, 4))
        wrong[wrong_voxels(view, structures)] = (1.0, 0.23, 0.19, 0.85)
        ax.imshow(wrong, extent=extent, interpolation="nearest")
        _truth(ax, view, structures, 0.65 * line)
    else:
        for i, labels in enumerate(structures.values()):
            masks = [np.isin(s, labels) for s in view.samples]
            _contours(ax, masks, view.spacing, color=COLOURS[i % len(COLOURS)], linewidth=0.3 * line, alpha=0.5)
        for i, labels in enumerate(structures.values()):
            mask = np.isin(view.segmentation, labels)
            _contours(ax, [mask], view.spacing, color=COLOURS[i % len(COLOURS)], linewidth=line)
        if view.reference is not None:
            _truth(ax, view, structures, 0.65 * line)
        if view.name:
            ax.text(0.03, 0.97, view.name, transform=ax.transAxes, va="top", color="white", fontsize=7.5, bbox=SHADE)
    ax.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def wrong_voxels(view: View, structures: Mapping[str, Sequence[int]]) -> NDArray[np.bool_]:
    """Where the segmentation differs from the reference; not where the reference is neither structure nor background."""
    assert view.reference is not None
    judged = np.isin(view.reference, [0, *(label for labels in structures.values() for label in labels)])
    return (view.segmentation != view.reference) & judged


def _line_width(ax: Axes, rows: int) -> float:
    """Of outlines, in points: 1.7, less where voxels are drawn small and outlines would hide fine structures."""
    assert isinstance(ax.figure, Figure)
    points_per_voxel = 72 * ax.get_position().height * ax.figure.get_figheight() / rows
    return float(np.clip(0.6 + 0.4 * points_per_voxel, 0.7, 1.7))


def _truth(ax: Axes, view: View, structures: Mapping[str, Sequence[int]], width: float) -> None:
    assert view.reference is not None
    for labels in structures.values():
        _contours(ax, [np.isin(view.reference, labels)], view.spacing, color="white", linewidth=width, linestyle=(0, (3, 2)))


def _contours(ax: Axes, masks: Iterable[NDArray], spacing: tuple[float, float], **style: Any) -> None:
    """Outlines of masks ``(H, W)``, all in one collection: many times faster than ``ax.contour``."""
    lines: list[NDArray] = []
    for mask in masks:
        if mask.any():
            padded = np.pad(mask, 1).astype(np.float32)  # closes outlines at the border
            y, x = ((np.arange(n) - 0.5) * s for n, s in zip(padded.shape, spacing, strict=True))
            lines += [np.asarray(line) for line in contour_generator(x, y, padded).lines(0.5)]
    if lines:
        ax.add_collection(LineCollection(lines, **style), autolim=False)


def _colours_of_maps() -> Colormap:
    """Inferno without its black end, which would be mistaken for the image."""
    return ListedColormap(colormaps["inferno"](np.linspace(0.25, 0.97, 256)))


def _overlay(values: NDArray, scale: float) -> NDArray:
    """RGBA ``(H, W, 4)``: transparent where certain."""
    relative = np.clip(values / scale, 0, 1)
    rgba = _colours_of_maps()(relative)
    rgba[..., 3] = np.clip((relative - 0.06) / 0.3, 0, 0.9)
    return rgba


def _colour_bar(ax: Axes, scale: float) -> None:
    """The scale of an uncertainty map."""
    assert isinstance(ax.figure, Figure)
    bar = ax.figure.colorbar(ScalarMappable(Normalize(0, scale), _colours_of_maps()), cax=ax, ticks=np.linspace(0, scale, 3))
    ticks = [f"{t:.2f}" for t in np.linspace(0, scale, 3)]
    bar.set_ticklabels([*ticks[:2], ("≥ " if scale < 1 else "") + ticks[2]])
    bar.ax.tick_params(labelsize=7.5, length=0, colors=QUIET)
    bar.outline.set_visible(False)


def _scale_bars(figure: Figure, row: Sequence[tuple[str, View]]) -> None:
    """One length for all slices of the first row, where the spacing is known to be in mm."""
    if row[0][1].name not in ANATOMICAL:
        return
    narrowest = min(view.image.shape[1] * view.spacing[1] for _, view in row)
    length = max((n for n in (1, 2, 5, 10, 20, 50, 100) if n <= 0.3 * narrowest), default=1)
    for ax in figure.axes[: len(row)]:
        x, y = 0.04 * ax.get_xlim()[1], 0.95 * ax.get_ylim()[0]
        ax.plot([x, x + length], [y, y], color="white", linewidth=2, solid_capstyle="butt")
        ax.text(x, 0.96 * y, f"{length} mm", color="white", fontsize=7, va="bottom", bbox=SHADE)


def _legend(figure: Figure, views: Sequence[View], structures: Mapping[str, Sequence[int]]) -> None:
    entries: list[tuple[Any, str]] = []
    for i, name in enumerate(structures):
        label = name if len(name) <= 28 else name[:27] + "…"
        entries.append((Line2D([], [], color=COLOURS[i % len(COLOURS)], linewidth=2), label))
    if views[0].samples:
        entries.append((Line2D([], [], color=QUIET, linewidth=0.7), f"{len(views[0].samples)} samples"))
    if views[0].reference is not None:
        entries += [
            (Line2D([], [], color=QUIET, linewidth=1.2, linestyle=(0, (3, 2))), "true outline"),
            (Patch(color=ERROR), "wrong label"),
        ]
    shown = entries if len(entries) <= 10 else [*entries[:7], *entries[len(structures) :]]
    labels = [f"\u200b{label}" for _, label in shown]  # a leading underscore would hide an entry
    legend = figure.legend(
        [handle for handle, _ in shown],
        labels,
        loc="lower left",
        bbox_to_anchor=(0, 0),
        ncols=len(shown),
        frameon=False,
        fontsize=8,
        handlelength=1.5,
        columnspacing=1.4,
        borderaxespad=0.1,
        labelcolor=INK,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def as_data_uri(figure: Figure) -> str:
    """The figure as a PNG that HTML can hold; without the two last bits of the colours it is much smaller."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    colours = np.asarray(canvas.buffer_rgba())[..., :3] | 3  # white stays white
    buffer = io.BytesIO()
    Image.fromarray(colours).save(buffer, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
