"""MAP shrinkage of the log spread/error ratio, estimated from few groups of cases.

A case's error is one draw, so a few cases tell little. A scale is therefore the mode of a posterior: a normal likelihood of
the log ratio of spread and error, and a normal prior of the scale's logarithm around 0 (Gelman et al. 2013, Bayesian Data
Analysis, sections 2.5 and 4.1). The standard error is the jackknife's, one group of cases (:mod:`nndiffseg.data.groups`) left
out at a time, since cases of one person are alike in their errors too. Two groups may agree by chance, so their variance has a
prior as well (scaled inverse chi squared, the same book, section 3.3).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm
from scipy.stats import t as student_t

#: standard error of the log ratios, at least; keeps the priors alive where many cases agree
TOLERANCE = 0.02
#: standard deviation of the log ratios between groups that is expected, and as how many groups that counts; it was 0.19 to
#: 0.34 on fold 3 of the hippocampus, which no table reports
GROUP_SD = 0.25
PRIOR_GROUPS = 4
#: of the scales' logarithms, where the mode is looked for
STEP = 0.01


def map_log_scale(log_scales: NDArray, log_ratios: NDArray, without: NDArray, prior_sd: float) -> float:
    """The log scale of the largest posterior density.

    Args:
        log_scales: candidates ``(C,)``.
        log_ratios: of spread and error at each candidate ``(C,)``; 0 is right.
        without: log ratio at the scale 1 with one group left out ``(G,)``.
        prior_sd: of the log scale.
    """
    variance = standard_error(without) ** 2 + TOLERANCE**2
    return float(log_scales[(log_ratios**2 / variance + (log_scales / prior_sd) ** 2).argmin()])


def standard_error(without: NDArray) -> float:
    """Half the width of a 68 % interval around an estimate, from its values with one group left out ``(groups,)``.

    The jackknife gives the variance of a single group. It is drawn towards ``GROUP_SD``^2 as if ``PRIOR_GROUPS`` more had been
    seen (Gelman et al. 2013, section 3.3); Student's distribution widens the interval by what is then still unknown of it.
    """
    groups = len(without)
    freedom = PRIOR_GROUPS + groups - 1
    of_one = groups * (groups - 1) * without.var()  # the jackknife's variance of the estimate, times the groups
    variance = (PRIOR_GROUPS * GROUP_SD**2 + (groups - 1) * of_one) / freedom / groups
    return float(student_t.ppf(norm.cdf(1), freedom) * np.sqrt(variance))


def candidates(first: float, last: float) -> NDArray[np.float64]:
    """Logarithms of scales from ``first`` to ``last``, 0 among them."""
    low, high = np.log(first), np.log(last)
    return np.unique([low, high, *STEP * np.arange(np.ceil(low / STEP), high / STEP)])
