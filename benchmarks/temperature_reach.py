"""Where the temperature of coherent samples holds: everywhere, or near the segmentation alone.

    python -m benchmarks.temperature_reach --preprocessed FOLDER [FOLDER ...] --models MODEL_FOLDER [...] --name NAME

Stock nnU-Nets are read as ``nndiffseg_calibrate`` reads them, nndiffseg's models by what their validation observed (their heads
alone). Temperature and lengths are fitted without a case's group, both ways. Scores are those of
:mod:`nndiffseg.calibration.coherence`, of outlines and, over the structure's mean volume, of volumes; less is better. The last
column is the paired difference of their sum, with a 95 % bootstrap interval over groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.common import report
from benchmarks.compare.finished import finished_models, observed_cases
from benchmarks.compare.pooling import interval, means, resamples
from nndiffseg.calibration.coherent_fit import fit_coherent, index_of
from nndiffseg.calibration.voxels import CaseVoxels, LabelKind
from nndiffseg.data.groups import read_groups


def main() -> None:
    name, models = finished_models(__doc__)
    rows, found = [], []
    for title, folder, data in models:
        cases, kind, finest = observed_cases(folder, data)
        groups = read_groups(data)
        near = scores(cases, kind, groups, finest)
        everywhere = scores([replace(c, reach=torch.ones_like(c.reach)) for c in cases], kind, groups, finest)
        weights = resamples([groups.get(c.case, c.case) for c in cases])
        difference = interval(means(weights, (near - everywhere).sum(1, keepdims=True))[:, 0])
        shown = [f"{outlines:.4f} + {volumes:.4f}" for outlines, volumes in (everywhere.mean(0), near.mean(0))]
        rows.append([title, str(len(cases)), *shown, "{:+.4f} [{:+.4f}, {:+.4f}]".format(*difference)])
        found.append(
            {
                "model": title,
                "cases": len(cases),
                "everywhere": everywhere.mean(0).round(4).tolist(),
                "near": near.mean(0).round(4).tolist(),
                "difference": [round(float(d), 4) for d in difference],
            }
        )
        print(rows[-1], flush=True)
    header = ["outlines + volumes", "cases", "T everywhere", "T near the segmentation", "difference of the sums"]
    report(name, rows, header, {"models": found})


def scores(cases: Sequence[CaseVoxels], kind: LabelKind, groups: Mapping[str, str], finest: float) -> NDArray[np.float64]:
    """Scores of outlines and volumes of each case, mean over structures ``(cases, 2)``."""
    fitted = fit_coherent(cases, kind, groups, ("0",), finest)
    size = np.maximum(np.mean([c.true.mean(1).numpy() for c in cases], 0), 1)
    rows = []
    for case in cases:
        score, at = fitted.scores[case.case], index_of(fitted.crossed[case.case])
        rows.append([np.nanmean(score.outlines[at]), np.nanmean(score.volumes[at] / size)])
    return np.array(rows)


if __name__ == "__main__":
    main()
