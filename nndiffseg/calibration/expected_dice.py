"""From the confidence of a case's probabilities to the Dice that its segmentation can be expected to have, with an interval.

Were the probabilities right, their soft Dice confidence (:mod:`nndiffseg.calibration.confidence`) would be close to the
expected Dice. It ranks cases well but is too high, so a straight line is fitted to validation cases. The interval is conformal
(:mod:`nndiffseg.calibration.conformal`), from residuals of lines that were fitted without the case's group (Barber et al. 2021,
arXiv 1905.02928, the jackknife+, of which this is the symmetric, simpler form).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic.dataclasses import dataclass

from nndiffseg.calibration.conformal import conformal_quantile
from nndiffseg.data.schema import CONFIG, Real, Share

#: Fewer groups of cases tell nothing about a slope.
FEWEST = 5
#: Cases of equal confidence would make any slope possible.
STEEPEST = 10.0


@dataclass(frozen=True, config=CONFIG)
class DiceMap:
    """Expected Dice = intercept + slope * confidence.

    Attributes:
        intercept, slope: of the line; the slope is not negative.
        margin: half the width of the 90 % interval; None where the groups are too few to promise one.
    """

    intercept: Real
    slope: Real
    margin: Share | None = None

    def expected(self, confidence: float) -> float:
        """Expected Dice in [0, 1] of a case of this confidence, mean over structures."""
        return float(np.clip(self.intercept + self.slope * confidence, 0, 1))

    def interval(self, confidence: float) -> list[float] | None:
        """90 % interval of the Dice, ``[low, high]``; None where none can be promised."""
        if self.margin is None:
            return None
        centre = self.intercept + self.slope * confidence
        return [float(np.clip(centre + d, 0, 1)) for d in (-self.margin, self.margin)]


def fit_dice_map(confidence: NDArray, dice: NDArray, groups: Sequence[str]) -> DiceMap | None:
    """Fits line and margin.

    Args:
        confidence: soft Dice confidence, mean over structures ``(cases,)``; NaN where there is none.
        dice: of the segmentation and the truth ``(cases,)``; NaN where both are empty.
        groups: of the cases.

    Returns:
        None with fewer than :data:`FEWEST` groups.
    """
    known = np.isfinite(confidence) & np.isfinite(dice)
    x, y, names = confidence[known], dice[known], np.asarray(groups)[known]
    members = np.unique(names)
    if len(members) < FEWEST:
        return None
    residuals = np.empty(len(y))
    for name in members:
        out = names == name
        intercept, slope = _line(x[~out], y[~out])
        residuals[out] = np.abs(y[out] - (intercept + slope * x[out]))
    intercept, slope = _line(x, y)
    margin = conformal_quantile(residuals, names.tolist())
    return DiceMap(intercept, slope, None if margin is None else min(margin, 1.0))


def _line(x: NDArray, y: NDArray) -> tuple[float, float]:
    """Intercept and slope of least squares, the slope from 0 to :data:`STEEPEST`."""
    apart = x - x.mean()
    slope = float((apart * (y - y.mean())).sum() / max(float((apart**2).sum()), 1e-12))
    slope = min(max(slope, 0.0), STEEPEST)
    return float(y.mean() - slope * x.mean()), slope
