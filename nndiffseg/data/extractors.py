"""Parts of a fingerprint, and fingerprints by an extractor of the user's own, run as nnU-Net runs it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

from nndiffseg.data.check import TrainingCase
from nndiffseg.data.files import read_json
from nndiffseg.errors import UserError

FINGERPRINT = "dataset_fingerprint.json"
#: what planners read
KEYS = (
    "spacings",
    "shapes_after_crop",
    "foreground_intensity_properties_per_channel",
    "median_relative_size_after_cropping",
)


def run_extractor(
    extractor: type[DatasetFingerprintExtractor],
    cases: Sequence[TrainingCase],
    folder: Path,
    processes: int = 1,
    progress: bool = True,
) -> None:
    """Has an extractor write ``dataset_fingerprint.json``, as ``nnUNetv2_extract_fingerprint -fpe`` of nnU-Net 2.8.1 does.

    Args:
        extractor: the class.
        cases: training cases; the extractor's own list would hold hidden files too.
        folder: the dataset's preprocessed folder, in ``nnUNet_preprocessed``.
        processes: worker processes.

    Raises:
        UserError: the file is not one of ``len(cases)`` cases, or lacks what planners read.
    """
    made = extractor(folder.name, processes)
    made.dataset = {case.name: {"images": list(case.images), "label": case.label} for case in cases}
    made.show_progress_bar = progress
    made.run(overwrite_existing=True)
    file, advice = folder / FINGERPRINT, "correct the class, or leave out -fpe"
    if not file.is_file():
        raise UserError(f"{extractor.__name__} wrote no {file}; {advice}.")
    content = read_json(file, advice)
    lacking = [key for key in KEYS if key not in content] if isinstance(content, dict) else KEYS
    if lacking or any(len(content[key]) != len(cases) for key in KEYS[:2]):
        problem = f"lacks {', '.join(lacking)}" if lacking else f"is not of the dataset's {len(cases)} cases"
        raise UserError(f"The fingerprint that {extractor.__name__} made {problem}; {advice}.")


def intensity_statistics(values: np.ndarray) -> dict[str, float]:
    """nnU-Net's statistics of one channel's foreground intensities ``(n,)``."""
    low, median, high = np.percentile(values, (0.5, 50.0, 99.5))
    return {
        "mean": float(np.mean(values)),
        "median": float(median),
        "std": float(np.std(values)),
        "min": float(np.min(values)),
        "max": float(np.max(values)),
        "percentile_99_5": float(high),
        "percentile_00_5": float(low),
    }
