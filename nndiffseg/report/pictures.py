"""Draws the slices of a case. Without pyplot: no window, no global state, safe in any process."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from contourpy import contour_generator
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Colormap, ListedColormap, Normalize, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray
from PIL import Image

from nndiffseg.report.planes import ANATOMICAL
from nndiffseg.report.slices import View, grey_window

#: After Okabe and Ito, so that colour-blind readers can tell them apart. The brightest come first: they lie on grey images.
COLOURS = ("#56b4e9", "#e69f00", "#2fbf8f", "#cc79a7", "#f0e442", "#d55e00", "#4d86d8")
ERROR, INK, MUTED = "#ff3b30", "#1f2933", "#6b7785"
TEXT_BOX = {"boxstyle": "round,pad=0.25", "facecolor": (0, 0, 0, 0.45), "edgecolor": "none"}
TITLES = {
    "segmentation": "Segmentation",
    "total": "Total uncertainty",
    "aleatoric": "Aleatoric uncertainty",
    "epistemic": "Epistemic uncertainty",
    "errors": "Errors",
}
DPI = 130
DASHES = (0, (3, 2))
GAP, TITLE, COLOUR_BAR, LEGEND = 0.06, 0.27, 0.62, 0.36  # inches: between pictures, above a row, right of it, below all
SAMPLE_EDGE = 2.2  # inches: the longer edge of the picture of a sample
WEBP_QUALITY = 80

Structures = Mapping[str, Sequence[int]]  # name -> labels


def case_figure(views: Sequence[View], structures: Structures, *, scale: float = 1.0, width: float = 9.0) -> Figure:
    """Draws one case: image with contours, uncertainty maps, and errors if the truth is known.

    Three slices make one row per kind of picture. The pictures of a 2D image stand two to a row.

    Args:
        views: a frame of :func:`nndiffseg.report.slices.read_views`.
        structures: their names and labels.
        scale: uncertainty at the bright end of the colour bar.
        width: in inches.
    """
    rows = _rows(views)
    # Pictures in a row have equal heights, so their widths follow from their aspect ratios.
    aspects = [v.image.shape[1] * v.spacing[1] / (v.image.shape[0] * v.spacing[0]) for _, v in rows[0]]
    height = min((width - COLOUR_BAR - GAP * (len(aspects) - 1)) / sum(aspects), 0.62 * width)
    widths = [height * aspect for aspect in aspects]
    figure = Figure((width, len(rows) * (height + TITLE) + LEGEND), dpi=DPI, facecolor="white")
    for i, row in enumerate(rows):
        bottom, left = LEGEND + (len(rows) - 1 - i) * (height + TITLE), 0.0
        for j, (kind, view) in enumerate(row):
            if len(views) == 1 or j == 0:
                _title(figure, left, bottom + height + 0.07, TITLES[kind])
            draw_view(_axes(figure, left, bottom, widths[j], height), view, kind, structures, scale)
            left += widths[j] + GAP
        if any(kind in view.maps for kind, view in row):
            _colour_bar(_axes(figure, sum(widths) + GAP * len(widths) + 0.04, bottom, 0.11, height), scale)
    _scale_bars(figure, rows[0])
    _legend(figure, views[0], structures)
    return figure


def sample_figures(view: View, structures: Structures, count: int) -> list[Figure]:
    """Draws the first ``count`` samples of a slice: each filled, under the white outlines of the segmentation."""
    height, width = (n * s for n, s in zip(view.image.shape, view.spacing, strict=True))
    inches = SAMPLE_EDGE / max(height, width)
    figures = []
    for sample in view.samples[:count]:
        figure = Figure((width * inches, height * inches), dpi=DPI)
        ax = _axes(figure, 0, 0, *figure.get_size_inches())
        _grey(ax, view)
        line = _line_width(ax, len(view.image))
        for i, labels in enumerate(structures.values()):
            colour, mask = COLOURS[i % len(COLOURS)], np.isin(sample, labels)
            _show(ax, view, mask[..., None] * to_rgba(colour, 0.45), interpolation="nearest")
            _contours(ax, [mask], view.spacing, color=colour, linewidth=0.6 * line)
        for labels in structures.values():
            _contours(ax, [np.isin(view.segmentation, labels)], view.spacing, color="white", linewidth=0.6 * line)
        _frame(ax, view)
        figures.append(figure)
    return figures


def _rows(views: Sequence[View]) -> list[list[tuple[str, View]]]:
    """The kind of every picture and the slice that it shows, row by row."""
    kinds = ["segmentation", *views[0].maps, *(["errors"] if views[0].reference is not None else [])]
    if len(views) > 1:
        return [[(kind, view) for view in views] for kind in kinds]
    pictures = [(kind, views[0]) for kind in kinds]
    return [pictures[i : i + 2] for i in range(0, len(pictures), 2)]


def _title(figure: Figure, left: float, bottom: float, title: str) -> None:
    """A picture's title, placed in inches."""
    w, h = figure.get_size_inches()
    figure.text(left / w, bottom / h, title, fontsize=9.5, color=INK, weight="bold")


def _axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes placed in inches."""
    w, h = figure.get_size_inches()
    return figure.add_axes((left / w, bottom / h, width / w, height / h))


def draw_view(ax: Axes, view: View, kind: str, structures: Structures, scale: float) -> None:
    """Draws one slice: the image and, over it, the ``segmentation``, the ``errors`` or the map named ``kind``."""
    _grey(ax, view)
    line = _line_width(ax, len(view.image))
    if kind in view.maps:
        _show(ax, view, _overlay(view.maps[kind], scale), interpolation="bilinear")
        for labels in structures.values():
            _contours(ax, [np.isin(view.segmentation, labels)], view.spacing, color="white", linewidth=0.35 * line, alpha=0.75)
    elif kind == "errors":
        red = np.zeros((*view.image.shape, 4))
        red[wrong_voxels(view, structures)] = (1.0, 0.23, 0.19, 0.85)
        _show(ax, view, red, interpolation="nearest")
        _true_outlines(ax, view, structures, 0.65 * line)
    else:
        _outlines(ax, view, structures, line)
        _true_outlines(ax, view, structures, 0.65 * line)
        if view.name:
            ax.text(0.03, 0.97, view.name, transform=ax.transAxes, va="top", color="white", fontsize=7.5, bbox=TEXT_BOX)
    _frame(ax, view)


def _frame(ax: Axes, view: View) -> None:
    """Nothing but the slice."""
    height, width = (n * s for n, s in zip(view.image.shape, view.spacing, strict=True))
    ax.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def _grey(ax: Axes, view: View) -> None:
    low, high = view.window or grey_window(view.image)
    _show(ax, view, view.image, interpolation="bilinear", cmap="gray", vmin=low, vmax=high)


def _show(ax: Axes, view: View, pixels: NDArray, **style: Any) -> None:
    """Shows grey values ``(H, W)`` or colours ``(H, W, 4)`` on axes in the unit of the spacing."""
    height, width = (n * s for n, s in zip(view.image.shape, view.spacing, strict=True))
    ax.imshow(pixels, extent=(0, width, height, 0), **style)


def wrong_voxels(view: View, structures: Structures) -> NDArray[np.bool_]:
    """Where segmentation and reference differ ``(H, W)``, except where the reference is neither structure nor background."""
    assert view.reference is not None
    labelled = np.isin(view.reference, [0, *(label for labels in structures.values() for label in labels)])
    return (view.segmentation != view.reference) & labelled


def _line_width(ax: Axes, rows: int) -> float:
    """Of outlines, in points: 1.7, or less where voxels are drawn so small that outlines would hide fine structures."""
    assert isinstance(ax.figure, Figure)
    points_per_voxel = 72 * ax.get_position().height * ax.figure.get_figheight() / rows
    return float(np.clip(0.6 + 0.4 * points_per_voxel, 0.7, 1.7))


def _outlines(ax: Axes, view: View, structures: Structures, width: float) -> None:
    """Of the samples, and over them those of the segmentation; ``width`` in points."""
    colours = [COLOURS[i % len(COLOURS)] for i in range(len(structures))]
    for colour, labels in zip(colours, structures.values(), strict=True):
        samples = [np.isin(sample, labels) for sample in view.samples]
        _contours(ax, samples, view.spacing, color=colour, linewidth=0.3 * width, alpha=0.5)
    for colour, labels in zip(colours, structures.values(), strict=True):
        _contours(ax, [np.isin(view.segmentation, labels)], view.spacing, color=colour, linewidth=width)


def _true_outlines(ax: Axes, view: View, structures: Structures, width: float) -> None:
    """Of the reference, if there is one; ``width`` in points."""
    if view.reference is not None:
        for labels in structures.values():
            _contours(ax, [np.isin(view.reference, labels)], view.spacing, color="white", linewidth=width, linestyle=DASHES)


def _contours(ax: Axes, masks: Iterable[NDArray[np.bool_]], spacing: tuple[float, float], **style: Any) -> None:
    """Outlines of masks ``(H, W)``, all in one collection: many times faster than ``ax.contour``."""
    lines: list[NDArray] = []
    for mask in masks:
        if mask.any():
            padded = np.pad(mask, 1).astype(np.float32)  # closes outlines at the border
            y, x = ((np.arange(n) - 0.5) * s for n, s in zip(padded.shape, spacing, strict=True))
            lines += [np.asarray(line) for line in contour_generator(x, y, padded).lines(0.5)]
    if lines:
        ax.add_collection(LineCollection(lines, **style), autolim=False)


def _uncertainty_colours() -> Colormap:
    """Inferno without its dark end, which could be mistaken for the image."""
    return ListedColormap(colormaps["inferno"](np.linspace(0.25, 0.97, 256)))


def _overlay(values: NDArray, scale: float) -> NDArray:
    """Colours ``(H, W, 4)`` of a map ``(H, W)``: transparent where certain."""
    relative = np.clip(values / scale, 0, 1)
    rgba = _uncertainty_colours()(relative)
    rgba[..., 3] = np.clip((relative - 0.06) / 0.3, 0, 0.9)
    return rgba


def _colour_bar(ax: Axes, scale: float) -> None:
    """Colour bar of the uncertainty maps, from 0 to ``scale``."""
    assert isinstance(ax.figure, Figure)
    bar = ax.figure.colorbar(
        ScalarMappable(Normalize(0, scale), _uncertainty_colours()), cax=ax, ticks=np.linspace(0, scale, 3)
    )
    ticks = [f"{t:.2f}" for t in np.linspace(0, scale, 3)]
    bar.set_ticklabels([*ticks[:2], ("≥ " if scale < 1 else "") + ticks[2]])
    bar.ax.tick_params(labelsize=7.5, length=0, colors=MUTED)
    bar.outline.set_visible(False)


def _scale_bars(figure: Figure, row: Sequence[tuple[str, View]]) -> None:
    """Scale bars of equal length on the first row, if the spacing is known to be in mm."""
    if row[0][1].name not in ANATOMICAL:
        return
    narrowest = min(view.image.shape[1] * view.spacing[1] for _, view in row)
    length = max((n for n in (1, 2, 5, 10, 20, 50, 100) if n <= 0.3 * narrowest), default=1)
    for ax in figure.axes[: len(row)]:
        x, y = 0.04 * ax.get_xlim()[1], 0.95 * ax.get_ylim()[0]
        ax.plot([x, x + length], [y, y], color="white", linewidth=2, solid_capstyle="butt")
        ax.text(x, 0.96 * y, f"{length} mm", color="white", fontsize=7, va="bottom", bbox=TEXT_BOX)


def _legend(figure: Figure, view: View, structures: Structures) -> None:
    """Below all pictures; of more than ten entries, the first seven structures are named."""
    entries: list[tuple[Artist, str]] = []
    for i, name in enumerate(structures):
        label = name if len(name) <= 28 else name[:27] + "…"
        entries.append((Line2D([], [], color=COLOURS[i % len(COLOURS)], linewidth=2), label))
    if view.samples:
        entries.append((Line2D([], [], color=MUTED, linewidth=0.7), f"{len(view.samples)} samples"))
    if view.reference is not None:
        entries.append((Line2D([], [], color=MUTED, linewidth=1.2, linestyle=DASHES), "true outline"))
        entries.append((Patch(color=ERROR), "wrong label"))
    shown = entries if len(entries) <= 10 else [*entries[:7], *entries[len(structures) :]]
    place = {"loc": "lower left", "bbox_to_anchor": (0, 0), "borderaxespad": 0.1, "ncols": len(shown)}
    add_legend(figure, shown, **place, handlelength=1.5, columnspacing=1.4)


def add_legend(owner: Figure | Axes, entries: Sequence[tuple[Artist, str]], **style: Any) -> None:
    """A legend that prints names as they are; matplotlib would drop ``_name`` and typeset ``$name$`` as a formula."""
    handles = [handle for handle, _ in entries]
    labels = [f"\u200b{label}" for _, label in entries]  # a zero-width space hides a leading underscore
    legend = owner.legend(handles, labels, frameon=False, fontsize=8, labelcolor=INK, **style)
    for text in legend.get_texts():
        text.set_parse_math(False)


def as_data_uri(figure: Figure) -> str:
    """A chart as a PNG to embed in HTML. Without the two lowest bits of its colours, it is much smaller."""
    return _data_uri(Image.fromarray(_pixels(figure) | 3), "png")  # white stays white


def as_small_data_uri(figure: Figure) -> str:
    """Slices as a WebP to embed in HTML: a fifth of a PNG, and the small text stays readable."""
    return _data_uri(Image.fromarray(_pixels(figure)), "webp", quality=WEBP_QUALITY)


def _pixels(figure: Figure) -> NDArray:
    """Colours ``(H, W, 3)``, 0 to 255."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def _data_uri(picture: Image.Image, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **options)
    return f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
