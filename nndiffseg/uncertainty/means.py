"""Means of what is there."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


def nanmean(values: Iterable[float | None]) -> float:
    """Mean of the numbers that are there; NaN when there is none."""
    numbers = [float(v) for v in values if v is not None and not np.isnan(v)]
    return float(np.mean(numbers)) if numbers else float("nan")


def nanmean_rows(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the first axis of what is there, NaN where nothing is: ``(N, K)`` -> ``(K,)``."""
    present = np.isfinite(values)
    count = present.sum(0)
    return np.where(count > 0, np.where(present, values, 0.0).sum(0) / np.maximum(count, 1), np.nan)
