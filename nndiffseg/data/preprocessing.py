"""Fingerprint and preprocessing with nnU-Net's own functions, resumable, and never undoing what is already there.

nnU-Net's ``DefaultPreprocessor.run`` deletes the folder it writes to, which may be the one that nnU-Net's own plans
share. Here only what is missing is made, case by case, each moved into place when it is complete.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nndiffseg.data.check import TrainingCase
from nndiffseg.data.dataset_json import channel_names
from nndiffseg.data.files import full_disk_told, read_json, write_atomically, write_json
from nndiffseg.data.images import find_reader, read_image
from nndiffseg.data.parallel import map_cases
from nndiffseg.data.plans_schema import check_plans
from nndiffseg.errors import UserError

SUFFIXES = (".b2nd", "_seg.b2nd", ".pkl")  # in the order in which they are put in place
FINGERPRINT = "dataset_fingerprint.json"


def extract_fingerprint(
    cases: Sequence[TrainingCase],
    dataset_json: dict[str, Any],
    folder: Path,
    *,
    processes: int = 1,
    clean: bool = False,
    progress: bool = True,
) -> None:
    """Writes ``dataset_fingerprint.json``, the same as nnU-Net 2.8.1's, unless it is there already.

    nnU-Net's extractor always starts worker processes; this one does not with ``processes`` of 1.

    Args:
        cases: training cases.
        dataset_json: the dataset's description.
        folder: the dataset's preprocessed folder.
        processes: worker processes.
        clean: compute it again.
    """
    file = folder / FINGERPRINT
    if file.is_file() and not clean:
        known = len(read_json(file, "plan again with --clean")["spacings"])
        if known == len(cases):
            return
        print(f"The fingerprint is of {known} cases and the dataset has {len(cases)}, so it is computed again.")
    reader = find_reader(dataset_json, cases[0].images[0])
    # nnU-Net samples 10e7 foreground voxels over all cases (fingerprint_extractor.py).
    per_case = int(10e7 // len(cases))
    arguments = [(list(c.images), c.label, reader, per_case) for c in cases]
    results = map_cases(
        _analyze, arguments, processes, description="Extracting the fingerprint", progress=progress, flags="-npfp 1"
    )
    shapes, spacings, intensities, _, relative_sizes = zip(*results, strict=True)
    statistics = {
        str(c): _intensity_statistics(np.concatenate([case[c] for case in intensities]))
        for c in range(len(channel_names(dataset_json)))
    }
    fingerprint = {
        "spacings": [[float(v) for v in s] for s in spacings],
        "shapes_after_crop": [[int(v) for v in s] for s in shapes],
        "foreground_intensity_properties_per_channel": statistics,
        "median_relative_size_after_cropping": float(np.median(relative_sizes)),
    }
    write_json(fingerprint, file, strict=False)


def _intensity_statistics(values: np.ndarray) -> dict[str, float]:
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


@contextlib.contextmanager
def _explained(images: Sequence[str], label: str, reader: Any) -> Iterator[None]:
    """nnU-Net's own code reads these files; where it fails, the reason is told if it is in a file.

    Raises:
        UserError: a file is damaged.
    """
    try:
        yield
    except UserError:
        raise
    except Exception:
        for file in images:
            read_image(reader, file)
        read_image(reader, label, label=True)
        raise


def _analyze(*arguments: Any) -> Any:
    images, label, reader, _ = arguments
    with _explained(images, label, reader()), contextlib.redirect_stdout(io.StringIO()):
        return DatasetFingerprintExtractor.analyze_case(*arguments)


def complete(folder: Path, name: str) -> bool:
    """Whether a preprocessed case has all its files."""
    return all((folder / f"{name}{suffix}").is_file() for suffix in SUFFIXES)


def preprocess_configuration(
    cases: Sequence[TrainingCase],
    dataset_json: dict[str, Any],
    plans: dict[str, Any],
    configuration: str,
    folder: Path,
    *,
    processes: int = 1,
    clean: bool = False,
    progress: bool = True,
    verbose: bool = False,
) -> int:
    """Preprocesses the cases that one configuration still lacks.

    Args:
        cases: training cases.
        dataset_json: the dataset's description.
        plans: content of the plans file.
        configuration: e.g. ``3d_fullres``.
        folder: the dataset's preprocessed folder; data goes into its sub-folder ``data_identifier``.
        processes: worker processes; 1 starts none.
        clean: delete what is there first.

    Returns:
        The number of cases that were preprocessed.

    Raises:
        UserError: the plans name what no planner writes.
    """
    check_plans(plans, "The plans")
    target = folder / plans["configurations"][configuration]["data_identifier"]
    staging = target.with_name(f".{target.name}.partial")
    if clean:
        shutil.rmtree(target, ignore_errors=True)
    todo = [c for c in cases if not complete(target, c.name)]
    if not todo:
        return 0
    shutil.rmtree(staging, ignore_errors=True)  # left over from a killed run
    staging.mkdir(parents=True)
    target.mkdir(exist_ok=True)
    try:
        arguments = [(c, plans, configuration, dataset_json, str(staging), str(target), verbose) for c in todo]
        map_cases(_preprocess_case, arguments, processes, description=f"Preprocessing {configuration}", progress=progress)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return len(todo)


def _preprocess_case(
    case: TrainingCase,
    plans: dict[str, Any],
    configuration: str,
    dataset_json: dict[str, Any],
    staging: str,
    target: str,
    verbose: bool,
) -> None:
    plans_manager = PlansManager(plans)
    configuration_manager = plans_manager.get_configuration(configuration)
    preprocessor = configuration_manager.preprocessor_class(verbose=verbose)
    quiet = contextlib.nullcontext() if verbose else contextlib.redirect_stdout(io.StringIO())
    reader = plans_manager.image_reader_writer_class()
    with full_disk_told(Path(staging), case.name), _explained(case.images, case.label, reader), quiet:
        preprocessor.run_case_save(
            os.path.join(staging, case.name),
            list(case.images),
            case.label,
            plans_manager,
            configuration_manager,
            dataset_json,
        )
    for suffix in SUFFIXES:
        os.replace(os.path.join(staging, case.name + suffix), os.path.join(target, case.name + suffix))


def copy_ground_truth(cases: Sequence[TrainingCase], folder: Path, file_ending: str) -> None:
    """Copies the labels into ``gt_segmentations``, where nnU-Net's validation looks for them."""
    target = folder / "gt_segmentations"
    target.mkdir(parents=True, exist_ok=True)
    for case in cases:
        copy = target / f"{case.name}{file_ending}"
        if not copy.is_file() or copy.stat().st_mtime < os.path.getmtime(case.label):
            with write_atomically(copy) as temporary:
                shutil.copy2(case.label, temporary)
