"""Fits a calibration to tables of validation cases; cross-fitted, so that no case is scored with what it helped to fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from nndiffseg.calibration.calibration import Calibration
from nndiffseg.calibration.fusion import fit_fusion_weight
from nndiffseg.calibration.tables import CaseTable
from nndiffseg.calibration.volumes import fit_volume_scale

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
    number = len({(groups or {}).get(t.case, t.case) for t in tables})
    return Calibration(fit_fusion_weight(tables), fit_volume_scale(tables, groups), number, tuple(folds))


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
