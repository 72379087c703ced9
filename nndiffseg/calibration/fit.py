"""Fits a calibration to tables of validation cases; cross-fitted, so that no case is scored with what it helped to fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nndiffseg.calibration.calibration import Calibration
from nndiffseg.calibration.fusion import fit_fusion_weight
from nndiffseg.calibration.tables import CaseTable
from nndiffseg.calibration.volumes import fit_volume_scale

#: most parts that cross-fitting divides the groups into
PARTS = 10


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
    """For each case a calibration that was fitted without its group.

    Groups are left out one at a time, with many of them a tenth at a time. With a single group these are the defaults.
    """
    group_of = {t.case: (groups or {}).get(t.case, t.case) for t in tables}
    names = sorted(set(group_of.values()))
    part_of = {group: i % PARTS for i, group in enumerate(names)}
    without = {
        part: fit([t for t in tables if part_of[group_of[t.case]] != part], groups, folds) for part in set(part_of.values())
    }
    return {case: without[part_of[group]] for case, group in group_of.items()}
