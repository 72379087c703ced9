"""The least standard deviation of a volume: scores of the conformal intervals against the share of the mean that it is.

    python -m benchmarks.volume_floor --preprocessed FOLDER [FOLDER ...] --models MODEL_FOLDER [...] --name NAME

Stock nnU-Nets are read as ``nndiffseg_calibrate`` reads them, nndiffseg's models by the tables of their validation; folds are
pooled, q is fitted without a case's group. The score of an interval is its width plus 20 times what it misses the true volume
by (Gneiting & Raftery 2007, JASA 102, section 6.2, for 90 %), over the structure's mean volume: proper, less is better. The
last column gives every interval the same share of the mean, whatever the samples say.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import report
from benchmarks.compare.finished import finished_models, observed_cases
from nndiffseg.calibration.coherent_fit import fit_coherent
from nndiffseg.calibration.conformal import conformal_quantile
from nndiffseg.calibration.fit import cross_fitted
from nndiffseg.data.groups import read_groups
from nndiffseg.inference.stock_model import is_stock

FLOORS = (0.01, 0.05, 0.1, 0.2, 0.3, 0.5, np.inf)
MISS = 2 / 0.1


class Volumes(NamedTuple):
    """Of one case, in ml: of each structure in each sample ``(K, N)`` and the true ones ``(K, M)``."""

    sampled: NDArray
    true: NDArray


def main() -> None:
    name, models = finished_models(__doc__)
    rows, found = [], []
    for title, folder, data in models:
        cases, groups = _cases(folder, data), read_groups(data)
        scores = {f: score(cases, groups, f) for f in FLOORS}
        rows.append([title, str(len(cases)), *(f"{s:.3f} ({c:.2f})" for s, c in scores.values())])
        found.append(
            {"model": title, "cases": len(cases), "scores": {str(f): [round(v, 4) for v in s] for f, s in scores.items()}}
        )
        print(rows[-1], flush=True)
    header = ["interval score (coverage)", "cases", *(f"{f:g}" if np.isfinite(f) else "share of mean" for f in FLOORS)]
    report(name, rows, header, {"models": found})


def score(cases: Mapping[str, Volumes], groups: Mapping[str, str], floor: float) -> tuple[float, float]:
    """Interval score and coverage, mean over cases and structures."""
    structures = range(len(next(iter(cases.values())).true))
    mean = np.mean([c.true.mean(1) for c in cases.values()], 0)
    values, held = [], []
    for k in structures:
        centre = {n: c.sampled[k].mean() for n, c in cases.items()}
        error = {n: np.abs(c.true[k] - centre[n]) for n, c in cases.items()}
        scale = {n: max(_scale(c.sampled[k], floor), 1e-12) for n, c in cases.items()}

        def quantile(others: list[str], error: dict = error, scale: dict = scale) -> float:
            names = [groups.get(n, n) for n in others for _ in error[n]]
            found = conformal_quantile(np.concatenate([error[n] / scale[n] for n in others]), names)
            return np.inf if found is None else found

        for n, q in cross_fitted(list(cases), groups, quantile).items():
            low, high = max(centre[n] - q * scale[n], 0), centre[n] + q * scale[n]
            missed = np.maximum(low - cases[n].true[k], 0) + np.maximum(cases[n].true[k] - high, 0)
            values.append((high - low + MISS * missed.mean()) / mean[k])
            held.append((missed == 0).mean())
    return float(np.mean(values)), float(np.mean(held))


def _scale(volumes: NDArray, floor: float) -> float:
    """Standard deviation, at least ``floor`` of the mean; infinite: the mean alone."""
    return float(volumes.mean() if np.isinf(floor) else max(volumes.std(ddof=1), floor * volumes.mean()))


def _cases(folder: Path, data: Path) -> dict[str, Volumes]:
    if not is_stock(folder):
        tables = sorted(folder.glob("fold_*/validation/tables/*.npz"))
        return {f.stem: Volumes(*(np.load(f)[k].astype(float) for k in ("sampled_ml", "true_ml"))) for f in tables}
    cases, kind, finest = observed_cases(folder, data)
    fitted = fit_coherent(cases, kind, read_groups(data), ("0",), finest)
    return {name: Volumes(table.sampled_ml, table.true_ml) for name, table in fitted.tables.items()}


if __name__ == "__main__":
    main()
