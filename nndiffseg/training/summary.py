"""nnU-Net's ``summary.json`` of a validation, computed in this process.

``compute_metrics_on_folder`` of nnunetv2/evaluation/evaluate_predictions.py (2.8.1) starts a pool even for one process. When
one of them is killed, as by want of memory, it waits for ever. Its function for one case is used here, one case after another.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.evaluation.evaluate_predictions import compute_metrics, save_summary_json
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.utilities.json_export import recursive_fix_for_json_export

from nndiffseg.data.files import write_atomically
from nndiffseg.data.listing import list_labels


def write_summary(
    references: Path,
    predictions: Path,
    reader: BaseReaderWriter,
    file_ending: str,
    labels: Sequence[Any],
    ignore_label: int | None,
    final: Path | None = None,
) -> dict[str, Any]:
    """Writes ``summary.json`` into the folder of predictions.

    Args:
        references: folder of the true labels.
        predictions: folder of segmentations; each has a reference of the same name.
        reader: of both.
        file_ending: of both.
        labels: numbers, or tuples of them for regions.
        ignore_label: of voxels that do not count.
        final: where the folder of predictions will lie, for the paths in the file; None where it stays.

    Returns:
        What was written: ``metric_per_case``, ``mean`` of each label over the cases where it is defined, ``foreground_mean``.
    """
    names = [file.name for file in list_labels(predictions, file_ending).values()]
    cases = [
        compute_metrics(str(references / name), str(predictions / name), reader, list(labels), ignore_label) for name in names
    ]
    for case, name in zip(cases, names, strict=True):
        case["prediction_file"] = str((final or predictions) / name)
    means: dict[Any, dict[str, float]] = {}
    for label in labels:
        rows = [case["metrics"][label] for case in cases]
        means[label] = {key: np.nanmean([row[key] for row in rows]) for key in rows[0]}
    foreground = [values for label, values in means.items() if label != 0]
    mean = {key: np.mean([values[key] for values in foreground]) for key in foreground[0]}
    for part in (*cases, means, mean):
        recursive_fix_for_json_export(part)
    result = {"metric_per_case": cases, "mean": means, "foreground_mean": mean}
    with write_atomically(predictions / "summary.json") as temporary:
        save_summary_json(result, str(temporary))
    return result
