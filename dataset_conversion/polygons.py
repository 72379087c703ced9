"""Outlines as masks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Outline = Sequence[tuple[float, float]]


def fill(outlines: Iterable[Outline], shape: tuple[int, int], *, edge: bool = True) -> NDArray[np.uint8]:
    """What lies inside any of the outlines.

    Args:
        outlines: each a list of ``(x, y)`` in pixels, pixel centres at whole numbers. Those with fewer than three points or
            with numbers that are not finite are left out.
        shape: height and width.
        edge: the outlines' own pixels belong to the mask.

    Returns:
        0 and 1, ``(H, W)``.
    """
    height, width = shape
    mask = Image.new("L", (width, height))
    draw = ImageDraw.Draw(mask)
    for outline in outlines:
        points = np.asarray(outline, float).reshape(-1, 2)
        if len(points) < 3 or not np.isfinite(points).all():
            continue
        inside = [(float(x), float(y)) for x, y in np.clip(points, -1, (width, height))]
        if edge:
            draw.polygon(inside, fill=1, outline=1)
        else:
            one = Image.new("L", (width, height))
            ImageDraw.Draw(one).polygon(inside, fill=1, outline=0)
            mask.paste(1, mask=one.point(lambda v: 255 * v))
    return np.array(mask)
