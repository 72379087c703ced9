"""Plots of the comparisons: the same look and colours everywhere, written to ``docs/images``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.compare.trainers import LABELS, label_of

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"


def colour_of(name: str) -> str:
    """The same colour for a method in every plot; ``name`` of its trainer, or its label."""
    labels = list(LABELS.values())
    label = name if name in labels else label_of(name)
    return f"C{labels.index(label)}" if label in labels else f"C{len(labels) + len(label) % 3}"


def plain_ticks(axis: Any, values: Sequence[float] | None = None) -> None:
    """Numbers instead of powers of ten on logarithmic axes, on x exactly the ``values`` if there are any."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    plain = FuncFormatter(lambda value, _: f"{value:g}")
    for scale, chosen in ((axis.xaxis, values), (axis.yaxis, None)):
        if scale.get_scale() != "log":
            continue
        low, high = scale.get_view_interval()
        narrow = high < 30 * low
        scale.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,)))
        scale.set_major_formatter(plain)
        scale.set_minor_formatter(NullFormatter())
        if chosen is not None:
            scale.set_ticks(list(chosen), [f"{v:g}" for v in chosen])
            scale.set_minor_locator(NullLocator())


def save_figure(figure: Any, name: str) -> None:
    """Writes ``docs/images/NAME.png``."""
    from matplotlib import pyplot as plt

    IMAGES.mkdir(parents=True, exist_ok=True)
    figure.savefig(IMAGES / f"{name}.png", dpi=110)
    plt.close(figure)
    print(f"figure: docs/images/{name}.png", flush=True)


def new_figure(columns: int = 1) -> tuple[Any, list[Any]]:
    """A figure with axes side by side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, columns, figsize=(6.4 * columns, 4.4), layout="constrained", squeeze=False)
    for axis in axes[0]:
        axis.grid(alpha=0.3)
    return figure, list(axes[0])
