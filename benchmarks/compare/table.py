"""The table of a comparison: metrics of all sides over the cases, their paired differences, and how they are shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.compare.evaluation import CaseMetrics, SideMetrics
from benchmarks.compare.pooling import (
    Interval,
    interval,
    mean_of_columns,
    means,
    pooled_auroc,
    pooled_brier,
    pooled_ece,
    pooled_nll,
    resamples,
)

#: fields of :class:`benchmarks.compare.metrics.Agreement` -> words of the table
AGREEMENT = {
    "sample_dice": "Dice of two samples",
    "truth_dice": "Dice of a sample and the truth",
    "energy": "energy score, 1 - IoU",
    "energy_as_drawn": "energy score of the samples as a distribution",
    "ged": "GED^2",
    "cross": "GED^2: E d(sample, truth)",
    "within_samples": "GED^2: E d(sample, sample)",
    "within_references": "GED^2: E d(truth, truth)",
    "sample_spread": "spread of samples, 1 - IoU",
    "reference_spread": "spread of annotations, 1 - IoU",
    "coverage_as_drawn": "volume inside the samples' 90 % interval, as drawn",
    "coverage": "volume inside the 90 % interval, calibrated",
    "width": "width of that interval / volume",
}
GAP = "Dice of two samples - of a sample and the truth"
PARTS = {"head": "deterministic part", "samples": "mean of samples", "sample": "one sample"}
POOLED: dict[str, Callable[..., NDArray]] = {"NLL": pooled_nll, "Brier": pooled_brier, "ECE": pooled_ece}
SCALED, ISOTONIC = "fitted temperature", "isotonic regression"
AUROC = "AUROC of uncertainty for errors"


@dataclass(frozen=True)
class Metric:
    """One metric: value and interval of each side, and of the base minus each other side."""

    name: str
    values: dict[str, Interval]
    differences: dict[str, Interval]


def metrics(structures: Sequence[str], cases: Sequence[CaseMetrics], base: str | None = None) -> list[Metric]:
    """All metrics of all cases, with intervals over groups of cases.

    Args:
        structures: names of the K structures.
        cases: of one or several folds.
        base: name of the side that all others are compared with; None for no differences.
    """
    weights, sides = resamples([c.group for c in cases]), list(cases[0].sides)

    def column(side: str, of: Callable[[SideMetrics], Any]) -> list[Any]:
        return [of(c.sides[side]) for c in cases]

    def over_cases(of: Callable[[SideMetrics], NDArray], present: Sequence[str] = sides) -> dict[str, NDArray]:
        return {s: means(weights, np.stack(column(s, of))) for s in present}

    found: list[Metric] = []
    found += _by_structure("Dice", structures, over_cases(lambda m: m.dice), base)
    found += _by_structure("IoU", structures, over_cases(lambda m: m.iou), base)
    found += _by_structure("NSD", structures, over_cases(lambda m: m.nsd), base)
    for part in {p: None for s in sides for p in cases[0].sides[s].parts}:
        present = [s for s in sides if part in cases[0].sides[s].parts]
        values = {s: mean_of_columns(v) for s, v in over_cases(lambda m, part=part: m.parts[part], present).items()}
        found.append(_metric(f"Dice: {part_words(part)}", values, base))
    for words, pool in POOLED.items():
        plain = {s: pool(weights, column(s, lambda m: m.plain)) for s in sides}
        found += _by_structure(words, structures, plain, base)
        for label, of in ((SCALED, lambda m: m.scaled), (ISOTONIC, lambda m: m.isotonic)):
            found.append(_metric(f"{words}, {label}", {s: mean_of_columns(pool(weights, column(s, of))) for s in sides}, base))
    found.append(_metric(AUROC, {s: pooled_auroc(weights, column(s, lambda m: m.errors)) for s in sides}, base))
    for name, words in AGREEMENT.items():
        values = over_cases(lambda m, name=name: np.array([getattr(m.agreement, name)]))
        found.append(_metric(words, {s: v[:, 0] for s, v in values.items()}, base))
    gaps = over_cases(lambda m: np.array([m.agreement.sample_dice - m.agreement.truth_dice]))
    found.append(_metric(GAP, {s: v[:, 0] for s, v in gaps.items()}, base))
    return found


def part_words(part: str) -> str:
    """``samples`` -> ``mean of samples``."""
    return PARTS[part]


def _by_structure(words: str, structures: Sequence[str], found: Mapping[str, NDArray], base: str | None) -> list[Metric]:
    """Statistics ``(R, K)`` -> one metric for each structure and, with several, one for their mean."""
    rows = [_metric(f"{words}, {s}", {m: v[:, k] for m, v in found.items()}, base) for k, s in enumerate(structures)]
    if len(structures) == 1:
        return rows
    return [*rows, _metric(f"{words}, mean", {m: mean_of_columns(v) for m, v in found.items()}, base)]


def _metric(name: str, statistics: Mapping[str, NDArray], base: str | None) -> Metric:
    """Statistics over resamples ``(R,)`` by side -> values and paired differences."""
    others = {s: v for s, v in statistics.items() if base in statistics and s != base}
    differences = {s: interval(statistics[base] - v) for s, v in others.items()} if base is not None else {}
    return Metric(name, {s: interval(v) for s, v in statistics.items()}, differences)


# ---- for people and for files -------------------------------------------------------------------------------------


def rows(found: Sequence[Metric], sides: Sequence[str], base: str) -> list[list[str]]:
    """Cells: name, the value of each side, and the base's difference to each other side with its interval."""
    others = [s for s in sides if s != base]
    return [
        [m.name, *(_value(m.values.get(s)) for s in sides), *(_difference(m.differences.get(s)) for s in others)] for m in found
    ]


def header(title: str, labels: Mapping[str, str], base: str) -> list[str]:
    """Heads of the columns of :func:`rows`; ``labels`` by name of the side."""
    return [title, *labels.values(), *(f"{labels[base]} - {label}" for s, label in labels.items() if s != base)]


def _value(value: Interval | None) -> str:
    return "" if value is None or np.isnan(value.value) else f"{value.value:.4f}"


def _difference(value: Interval | None) -> str:
    if value is None or np.isnan(value.value):
        return ""
    return f"{value.value:+.4f} [{value.low:+.4f}, {value.high:+.4f}]"


def summary(found: Sequence[Metric]) -> dict[str, Any]:
    """JSON-ready: metric -> side -> value; unknown numbers are None."""
    return {m.name: {s: rounded(i.value) for s, i in m.values.items()} for m in found}


def differences(found: Sequence[Metric]) -> dict[str, Any]:
    """JSON-ready: metric -> side -> [base - side, and the ends of its interval]."""
    return {m.name: {s: [rounded(v) for v in i] for s, i in m.differences.items()} for m in found if m.differences}


def rounded(value: float) -> float | None:
    """Five decimals; None for NaN and infinity."""
    return round(float(value), 5) if np.isfinite(value) else None


def by_case(cases: Mapping[str, CaseMetrics]) -> dict[str, Any]:
    """Dice, surface distance and agreement of every case and side, JSON-ready."""

    def of_side(m: SideMetrics) -> dict[str, Any]:
        return {
            "dice": [rounded(v) for v in m.dice],
            "iou": [rounded(v) for v in m.iou],
            "nsd": [rounded(v) for v in m.nsd],
            "parts": {part: [rounded(v) for v in values] for part, values in m.parts.items()},
            "agreement": {k: rounded(v) for k, v in m.agreement._asdict().items()},
            "seconds": round(m.seconds, 3),
        }

    return {
        case: {"group": c.group, "annotations": c.annotations, **{s: of_side(m) for s, m in c.sides.items()}}
        for case, c in cases.items()
    }
