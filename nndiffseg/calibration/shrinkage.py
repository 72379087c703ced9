"""How far the log ratio of spread and error can be believed that a few groups of cases show.

A case's error is one draw, so a few cases tell little. Scales are therefore modes of a posterior: a normal likelihood of
the log ratio of spread and error, and a normal prior of the scale's logarithm around 0 (Gelman et al. 2013, Bayesian Data
Analysis, sections 2.5 and 4.1). The standard error comes from leaving out one group of cases (:mod:`nndiffseg.data.groups`) at
a time, for cases of one person are alike in their errors too. Two groups may agree by chance, so their variance has a
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


def mode(log_scales: NDArray, log_ratios: NDArray, without: NDArray, prior_sd: float, left_alone: float = 0.0) -> float:
    """The likeliest log scale.

    Args:
        log_scales: candidates ``(C,)``.
        log_ratios: of spread and error at each candidate ``(C,)``; 0 is right.
        without: log ratio at the scale 1 with one group left out ``(G,)``.
        prior_sd: of the log scale.
        left_alone: log ratios so far from 0 are as good as 0.
    """
    variance = standard_error(without) ** 2 + TOLERANCE**2
    apart = (np.abs(log_ratios) - left_alone).clip(0)
    return float(log_scales[(apart**2 / variance + (log_scales / prior_sd) ** 2).argmin()])


def standard_error(without: NDArray) -> NDArray:
    """Half the width of a 68 % interval around an estimate, from its values with one group left out ``(groups, ...)``.

    The jackknife gives the variance of a single group. It is drawn towards ``GROUP_SD``^2 as if ``PRIOR_GROUPS`` more had been
    seen (Gelman et al. 2013, section 3.3); Student's distribution widens the interval by what is then still unknown of it.
    """
    groups = len(without)
    freedom = PRIOR_GROUPS + groups - 1
    of_one = groups * (groups - 1) * without.var(0)  # the jackknife's variance of the estimate, times the groups
    variance = (PRIOR_GROUPS * GROUP_SD**2 + (groups - 1) * of_one) / freedom / groups
    return student_t.ppf(norm.cdf(1), freedom) * np.sqrt(variance)


def candidates(first: float, last: float) -> NDArray[np.float64]:
    """Logarithms of scales from ``first`` to ``last``, 0 among them."""
    low, high = np.log(first), np.log(last)
    return np.unique([low, high, *STEP * np.arange(np.ceil(low / STEP), high / STEP)])
