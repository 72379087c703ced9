"""Does the expected Dice tell which cases are segmented badly?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata


class RiskCoverage(NamedTuple):
    """What remains wrong if the least confident cases are sent to a reader.

    Attributes:
        aurc: area under the risk-coverage curve (Geifman et al., arXiv 1805.08206): mean over k = 1 ... n of the
            mean risk of the k most confident of the n cases.
        augrc: area under the generalised risk-coverage curve (Traub et al., arXiv 2407.01032): the integral over the coverage
            c in [0, 1] of the risk that stays undetected, (1 / n) sum of the risks of the most confident c n cases, which is
            0 at c = 0 and linear in between.
        mean_risk: of all cases. A confidence that knows nothing has, in expectation, this aurc and half of it as augrc.
        spearman: rank correlation of confidence and 1 - risk; NaN where one of them is constant.
        cases: n.
    """

    aurc: float
    augrc: float
    mean_risk: float
    spearman: float
    cases: int


def risk_coverage(confidence: Sequence[float], risk: Sequence[float]) -> RiskCoverage:
    """Risk over coverage; cases of equal confidence enter in any order, so each gets their mean risk.

    Args:
        confidence: of each case, such as its expected Dice.
        risk: of each case, 0 is best, such as 1 - Dice.

    Returns:
        NaN everywhere with fewer than two cases.
    """
    n = len(risk)
    if n < 2:
        return RiskCoverage(math.nan, math.nan, math.nan, math.nan, n)
    c, r = np.asarray(confidence, float), np.asarray(risk, float)
    sums = np.cumsum(_mean_of_ties(c, r))
    aurc = float((sums / np.arange(1, n + 1)).mean())
    augrc = float((sums.sum() - sums[-1] / 2) / n**2)  # trapezoids
    return RiskCoverage(aurc, augrc, float(r.mean()), _spearman(c, -r), n)


def _mean_of_ties(confidence: NDArray[np.float64], risk: NDArray[np.float64]) -> NDArray[np.float64]:
    """Risks, the most confident case first, ties replaced by their mean."""
    _, block = np.unique(-confidence, return_inverse=True)
    mean = np.bincount(block, weights=risk) / np.bincount(block)
    return mean[np.sort(block)]


def _spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])
