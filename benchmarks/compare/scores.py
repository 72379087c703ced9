"""Dice of a prediction's parts, for experiments that predict the same cases over and over."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from benchmarks.compare.data import Data, references_of
from benchmarks.compare.library import CasePrediction, Change, Model, Options, labels_of, predict_case
from nndiffseg.uncertainty import PairwiseOverlap, expected_dice
from nndiffseg.uncertainty.agreement import dice_of
from nndiffseg.uncertainty.means import nanmean

Scores = dict[str, float | None]


def mean_dice(data: Data, case: str, prediction: NDArray, references: NDArray | None = None) -> float:
    """Dice of one label map ``(*image)``, mean over the case's annotations and the structures."""
    if references is None:
        references, _ = references_of(data, case)
    return nanmean(value for r in references for value in dice_of(prediction, r, list(data.structures.values())))


def dice_scores(data: Data, case: str, prediction: CasePrediction) -> Scores:
    """Dice of the deterministic prediction, of the mean of the samples, of a single sample, and between samples."""
    references, _ = references_of(data, case)
    overlap = PairwiseOverlap(len(prediction.labels), list(data.structures.values()))
    overlap.add(prediction.labels)
    return {
        "deterministic": mean_dice(data, case, labels_of(data, prediction.deterministic), references),
        "samples": mean_dice(data, case, labels_of(data, prediction.sampled), references),
        "single": nanmean(mean_dice(data, case, labels, references) for labels in prediction.labels),
        "between_samples": expected_dice(overlap),
        "seconds": prediction.seconds,
    }


def predicted_scores(model: Model, case: str, options: Options, change: Change | None = None) -> Scores:
    """:func:`dice_scores` of a fresh prediction; arguments as in :func:`benchmarks.compare.library.predict_case`."""
    return dice_scores(model.data, case, predict_case(model, case, options, change))


def means(rows: list[Scores]) -> dict[str, float]:
    """Means over cases of what is there; of the seconds the median."""
    result = {key: nanmean(row[key] for row in rows) for key in rows[0] if key != "seconds"}
    return {**result, "seconds": float(np.median([row["seconds"] for row in rows]))}
