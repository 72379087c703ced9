"""The table of :mod:`benchmarks.versus_nnunet`: figures of all methods, their paired differences, and how they are shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.comparison_metrics import (
    Agreement,
    Interval,
    interval,
    means,
    pooled_auroc,
    pooled_brier,
    pooled_ece,
    pooled_nll,
    resamples,
)
from benchmarks.speed import SAMPLES
from benchmarks.versus_accuracy import METHODS, CaseResult

#: name in the JSON -> words of the table, for the fields of :class:`benchmarks.comparison_metrics.Agreement`
AGREEMENT = {
    "sample_dice": "Dice of two samples (nnU-Net: voxels drawn one by one; nnU-Nets: members)",
    "truth_dice": "Dice of a sample and the truth",
    "ged": "GED^2",
    "cross": "GED^2: E d(sample, truth)",
    "within_samples": "GED^2: E d(sample, sample)",
    "within_references": "GED^2: E d(truth, truth)",
    "sample_spread": "spread of samples, 1 - IoU",
    "reference_spread": "spread of annotations, 1 - IoU",
    "coverage": "volume of the truth inside the samples' 90 % interval",
}
#: those that mean something with one annotation per case
FOR_ONE = ("sample_dice", "truth_dice", "coverage")


@dataclass(frozen=True)
class Figure:
    """One row: value and interval of each method, and of nndiffseg minus each other method."""

    name: str
    values: dict[str, Interval]
    differences: dict[str, Interval]


def figures(structures: Sequence[str], results: Sequence[CaseResult], groups: Sequence[str]) -> list[Figure]:
    """All figures of all cases, with intervals over their ``groups``."""
    weights = resamples(groups)
    present = [m for m in METHODS if m in results[0].calibration]
    rows: list[Figure] = []
    for kind, words in (("dice", "Dice"), ("nsd", "NSD")):
        found = {m: means(weights, np.stack([getattr(r, kind)[m] for r in results])) for m in present}
        rows += _by_structure(words, structures, found)
    for name, words in (("head", "deterministic head"), ("samples", "mean of samples"), ("sample", "one sample")):
        rows.append(_figure(f"Dice: {words}", _ours_against_stock(weights, results, name)))
    for name in results[0].dice:
        if name.startswith("steps_"):
            words = f"Dice: mean of samples, {name.removeprefix('steps_')} steps"
            rows.append(_figure(words, _ours_against_stock(weights, results, name)))
    pooled: list[tuple[str, Callable[..., NDArray]]] = [("NLL", pooled_nll), ("Brier", pooled_brier), ("ECE", pooled_ece)]
    for words, pool in pooled:
        found = {m: pool(weights, [r.calibration[m] for r in results]) for m in present}
        rows += _by_structure(words, structures, found)
    rows.append(
        _figure(
            "AUROC of uncertainty for errors", {m: pooled_auroc(weights, [r.calibration[m] for r in results]) for m in present}
        )
    )
    return rows + _agreement(weights, results, present)


def _ours_against_stock(weights: NDArray, results: Sequence[CaseResult], name: str) -> dict[str, NDArray]:
    values = {"nndiffseg": name, "nnunet": "nnunet"} if "nnunet" in results[0].dice else {"nndiffseg": name}
    return {m: means(weights, np.stack([r.dice[key] for r in results])).mean(1) for m, key in values.items()}


def _by_structure(words: str, structures: Sequence[str], found: Mapping[str, NDArray]) -> list[Figure]:
    """Statistics ``(R, K)`` -> one row for each structure and, with several, one for their mean."""
    rows = [_figure(f"{words}, {s}", {m: v[:, k] for m, v in found.items()}) for k, s in enumerate(structures)]
    if len(structures) == 1:
        return rows
    return [*rows, _figure(f"{words}, mean", {m: _mean_of_structures(v) for m, v in found.items()})]


def _mean_of_structures(statistic: NDArray) -> NDArray:  # (R, K) -> (R,), leaving out NaN
    count = np.isfinite(statistic).sum(1)
    return np.where(count > 0, np.nansum(statistic, 1) / np.maximum(count, 1), np.nan)


def _figure(name: str, statistics: Mapping[str, NDArray]) -> Figure:
    """Statistics over resamples ``(R,)`` by method -> values and paired differences."""
    ours = statistics["nndiffseg"]
    return Figure(
        name,
        {m: interval(v) for m, v in statistics.items()},
        {m: interval(ours - v) for m, v in statistics.items() if m != "nndiffseg"},
    )


def _agreement(weights: NDArray, results: Sequence[CaseResult], present: Sequence[str]) -> list[Figure]:
    several = any(r.agreement["nndiffseg"].reference_spread is not None for r in results)
    names = AGREEMENT if several else {k: AGREEMENT[k] for k in FOR_ONE}
    rows = []
    for name, words in names.items():
        found = {m: means(weights, np.array([[_number(r.agreement[m], name)] for r in results]))[:, 0] for m in present}
        rows.append(_figure(words, found))
    gap = {
        m: means(weights, np.array([[_number(r.agreement[m], "sample_dice") - r.agreement[m].truth_dice] for r in results]))[
            :, 0
        ]
        for m in present
    }
    rows.insert(2, _figure("Dice of two samples - of a sample and the truth", gap))
    return rows


def _number(agreement: Agreement, name: str) -> float:
    value = getattr(agreement, name)
    return np.nan if value is None else value


# ---- for people and for files -----------------------------------------------------------------------------------------


def rows(found: Sequence[Figure]) -> list[list[str]]:
    """Cells: name, the three methods, and both differences with their intervals."""
    return [
        [
            f.name,
            *(_value(f.values.get(m)) for m in METHODS),
            *(_difference(f.differences.get(m)) for m in ("nnunet", "ensemble")),
        ]
        for f in found
    ]


def _value(value: Interval | None) -> str:
    return "" if value is None or np.isnan(value.value) else f"{value.value:.4f}"


def _difference(value: Interval | None) -> str:
    if value is None or np.isnan(value.value):
        return ""
    return f"{value.value:+.4f} [{value.low:+.4f}, {value.high:+.4f}]"


def plain(found: Sequence[Figure]) -> dict[str, Any]:
    """JSON-ready: each interval is [value, low, high], unknown numbers are None."""

    def numbers(intervals: Mapping[str, Interval]) -> dict[str, list[float | None]]:
        return {m: [float(v) if np.isfinite(v) else None for v in i] for m, i in intervals.items()}

    return {f.name: {"values": numbers(f.values), "nndiffseg_minus": numbers(f.differences)} for f in found}


def by_case(results: Mapping[str, CaseResult]) -> dict[str, Any]:
    """Dice, surface distance and agreement of every case, JSON-ready."""

    def plainly(values: NDArray) -> list[float | None]:
        return [round(float(v), 5) if np.isfinite(v) else None for v in values]

    return {
        case: {
            "dice": {m: plainly(v) for m, v in r.dice.items()},
            "nsd": {m: plainly(v) for m, v in r.nsd.items()},
            "agreement": {m: a._asdict() for m, a in r.agreement.items()},
        }
        for case, r in results.items()
    }


def speed_rows(speed: Mapping[str, Any]) -> list[list[str]]:
    """Time and memory, in the columns of nnU-Net and nndiffseg."""
    seconds, ratios, memory = speed["prediction"]["seconds"], speed["prediction"]["ratios"], speed["memory"]

    def predicted(name: str) -> str:
        peak = f", {memory[name]['peak_gb']:.2f} GB" if "peak_gb" in memory.get(name, {}) else ""
        return f"{seconds[name]:.3f} s{peak}"

    train = speed["training"]["seconds"]
    table = [
        [
            "seconds of a training step",
            f"{train['nnunet']:.3f}",
            f"{train['nndiffseg']:.3f}",
            "",
            f"{speed['training_ratio']:.2f} times",
            "",
        ]
    ]
    table += [
        ["predict, one pass", predicted("nnunet"), "", "", "", ""],
        [
            "predict, mirroring",
            predicted("nnunet_mirroring"),
            predicted("nndiffseg_16_mirroring"),
            "",
            f"{ratios['nndiffseg_16_mirroring'] / ratios['nnunet_mirroring']:.2f} times",
            "",
        ],
    ]
    for name in (f"nndiffseg_{n}" for n in SAMPLES):
        words = name.removeprefix("nndiffseg_")
        table.append([f"predict, samples: {words}", "", predicted(name), "", f"{ratios[name]:.2f} passes", ""])
    return table
