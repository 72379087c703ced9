"""Fits a calibration to tables of validation cases; cross-fitted, so that no case is scored with what it helped to fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from nndiffseg.calibration.calibration import Calibration
from nndiffseg.calibration.expected_dice import fit_dice_map
from nndiffseg.calibration.fusion import WEIGHTS, fit_fusion_weight
from nndiffseg.calibration.tables import CaseTable
from nndiffseg.calibration.temperature import fit_temperature
from nndiffseg.calibration.volumes import fit_volume_quantiles, fit_volume_scale

#: most parts that cross-fitting divides the groups into
PARTS = 10

Fitted = TypeVar("Fitted")


def fit(tables: Sequence[CaseTable], groups: Mapping[str, str] | None = None, folds: Sequence[str] = ()) -> Calibration:
    """The calibration that fits these cases best.

    Args:
        tables: one for each case; none gives the defaults.
        groups: case -> group; a case that is not in it is a group of its own.
        folds: whose validation cases these are, for the record.
    """
    if not tables:
        return Calibration(folds=tuple(folds))
    names = [(groups or {}).get(t.case, t.case) for t in tables]
    weight = fit_fusion_weight(tables)
    at = int(np.argmin(np.abs(WEIGHTS - weight)))
    confidence, dice = (_mean_over_structures(x) for x in ([t.confidence[at] for t in tables], [t.dice[at] for t in tables]))
    return Calibration(
        fusion_weight=weight,
        temperature=fit_temperature([t.curves[at] for t in tables]),
        volume_scale=fit_volume_scale(tables, groups),
        volume_quantiles=fit_volume_quantiles(tables, names),
        dice=fit_dice_map(confidence, dice, names),
        groups=len(set(names)),
        folds=tuple(folds),
    )


def _mean_over_structures(values: Sequence[NDArray]) -> NDArray[np.float64]:
    """Of each case ``(K,)``, NaN for absent structures -> ``(cases,)``, NaN where all are absent."""
    table = np.stack(values)
    present = np.isfinite(table)
    total = np.where(present, table, 0).sum(1)
    return np.where(present.any(1), total / np.maximum(present.sum(1), 1), np.nan)


def cross_fit(
    tables: Sequence[CaseTable], groups: Mapping[str, str] | None = None, folds: Sequence[str] = ()
) -> dict[str, Calibration]:
    """For each case a calibration that was fitted without its group; with a single group these are the defaults."""
    table_of = {t.case: t for t in tables}
    return cross_fitted(list(table_of), groups, lambda others: fit([table_of[c] for c in others], groups, folds))


def cross_fitted(
    cases: Sequence[str], groups: Mapping[str, str] | None, fit_to: Callable[[list[str]], Fitted]
) -> dict[str, Fitted]:
    """For each case what ``fit_to(other cases)`` gives without the case's group.

    Groups are left out one at a time, with many of them a tenth at a time.

    Args:
        cases: names.
        groups: case -> group; a case that is not in it is a group of its own.
        fit_to: called once for each part that is left out.
    """
    group_of = {case: (groups or {}).get(case, case) for case in cases}
    part_of_group = {group: i % PARTS for i, group in enumerate(sorted(set(group_of.values())))}
    part_of = {case: part_of_group[group] for case, group in group_of.items()}
    without = {part: fit_to([c for c in cases if part_of[c] != part]) for part in sorted(set(part_of.values()))}
    return {case: without[part] for case, part in part_of.items()}
