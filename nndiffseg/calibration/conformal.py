"""Split conformal prediction with groups of cases.

For exchangeable scores s_1 ... s_n of calibration cases, a new one is at most the ceil((n + 1) q)-th smallest with a
probability of at least q (Vovk et al. 2005; Lei et al. 2018, arXiv 1604.04173). Cases of one group, such as scans of one
patient, are not exchangeable with those of others, but groups are. Hierarchical conformal prediction (Lee, Barber & Willett
2023, arXiv 2306.06342, section 3) therefore gives every group the same weight 1 / (G + 1), divided among its cases, and the
same weight to infinity. With one case in each group this is the usual quantile.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

LEVEL = 0.9
#: groups without which no interval of :data:`LEVEL` can be promised
FEWEST_GROUPS = math.ceil(LEVEL / (1 - LEVEL) - 1e-9)


def conformal_quantile(scores: ArrayLike, groups: Sequence[str], level: float = LEVEL) -> float | None:
    """The score that a case of a new group does not exceed with a probability of at least ``level``.

    Args:
        scores: of the cases ``(n,)``; NaN where a case has none.
        groups: of the cases.
        level: q in (0, 1).

    Returns:
        None where the groups are too few, or a share of 1 - q of the cases has an infinite score.
    """
    values = np.asarray(scores, dtype=np.float64)
    keep = ~np.isnan(values)
    values, names = values[keep], np.asarray(groups)[keep]
    if not len(values):
        return None
    _, member, sizes = np.unique(names, return_inverse=True, return_counts=True)
    weights = 1 / ((len(sizes) + 1) * sizes[member])
    order = np.argsort(values, kind="stable")
    reached = np.flatnonzero(np.cumsum(weights[order]) >= level - 1e-9)
    quantile = float(values[order][reached[0]]) if len(reached) else math.inf
    return quantile if math.isfinite(quantile) else None
