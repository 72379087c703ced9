"""Fingerprint and preprocessing with nnU-Net's own functions, resumable, and never undoing what is already there.

nnU-Net's ``DefaultPreprocessor.run`` deletes the folder it writes to, which may be the one that nnU-Net's own plans
share. Here only what is missing, or was made from other files or settings (:mod:`nndiffseg.data.records`), is made, case by
case, each moved into place when it is complete.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nndiffseg.data.check import TrainingCase, reader_of
from nndiffseg.data.dataset_json import channel_names
from nndiffseg.data.extractors import FINGERPRINT, intensity_statistics, run_extractor
from nndiffseg.data.files import full_disk_told, read_json, write_atomically, write_json
from nndiffseg.data.images import read_image
from nndiffseg.data.listing import TIFF, side_file
from nndiffseg.data.memory import is_out_of_memory, little_memory_told
from nndiffseg.data.normalization import preprocessor_of
from nndiffseg.data.parallel import map_cases
from nndiffseg.data.plans_schema import check_plans
from nndiffseg.data.records import (
    FORMAT,
    CaseKey,
    Records,
    hash_of,
    labels_key,
    preprocessing_settings,
    settings_key,
    write_case_key,
)
from nndiffseg.errors import UserError

SUFFIXES = (".b2nd", "_seg.b2nd", ".pkl")  # in the order in which they are put in place
FEWER = "use one process (-np 1 -npfp 1)"


def extract_fingerprint(
    cases: Sequence[TrainingCase],
    dataset_json: dict[str, Any],
    folder: Path,
    *,
    processes: int = 1,
    clean: bool = False,
    progress: bool = True,
    extractor: type[DatasetFingerprintExtractor] = DatasetFingerprintExtractor,
) -> None:
    """Writes ``dataset_fingerprint.json``, the same as nnU-Net 2.8.1's, unless it is there for these very files.

    nnU-Net's extractor always starts worker processes; this one does not with ``processes`` of 1.

    Args:
        cases: training cases.
        dataset_json: the dataset's description.
        folder: the dataset's preprocessed folder.
        processes: worker processes.
        clean: compute it again.
        extractor: nnU-Net's, whose work is done here, or a class that :func:`run_extractor` runs.
    """
    file, records = folder / FINGERPRINT, Records(folder)
    reader = reader_of(cases, dataset_json)
    key = _fingerprint_key(records, cases, dataset_json, reader)
    known, own = records.get("fingerprint"), extractor is not DatasetFingerprintExtractor
    if own:  # never takes over what nnU-Net's made
        key, known = hash_of([key, extractor.__name__]), known or ""
    records.save()
    if file.is_file() and not clean:
        if (stale := _stale_fingerprint(file, known, key, cases)) is None:
            records.put("fingerprint", key)
            return
        print(f"{stale}, so the fingerprint is computed again.")
    if own:
        records.put("fingerprint", "")  # from here to its rewriting, what lies there is made anew
        run_extractor(extractor, cases, folder, processes, progress)
        records.put("fingerprint", key)
        return
    # nnU-Net samples 10e7 foreground voxels over all cases (fingerprint_extractor.py).
    per_case = int(10e7 // len(cases))
    arguments = [(list(c.images), c.label, reader, per_case) for c in cases]
    results = map_cases(
        _analyze, arguments, processes, description="Extracting the fingerprint", progress=progress, flags="-npfp 1"
    )
    shapes, spacings, intensities, _, relative_sizes = zip(*results, strict=True)
    statistics = {
        str(c): intensity_statistics(np.concatenate([case[c] for case in intensities]))
        for c in range(len(channel_names(dataset_json)))
    }
    fingerprint = {
        "spacings": [[float(v) for v in s] for s in spacings],
        "shapes_after_crop": [[int(v) for v in s] for s in shapes],
        "foreground_intensity_properties_per_channel": statistics,
        "median_relative_size_after_cropping": float(np.median(relative_sizes)),
    }
    write_json(fingerprint, file, strict=False)
    records.put("fingerprint", key)


def _fingerprint_key(records: Records, cases: Sequence[TrainingCase], dataset_json: dict[str, Any], reader: type) -> str:
    content = [records.content(c.images, c.label) for c in cases]
    return hash_of([content, channel_names(dataset_json), reader.__name__, version("nnunetv2"), FORMAT])


def _stale_fingerprint(file: Path, known: str | None, key: str, cases: Sequence[TrainingCase]) -> str | None:
    """Why a fingerprint cannot be used, or None. One that nnU-Net made can where no file of the dataset is newer."""
    number = len(read_json(file, "plan again with --clean")["spacings"])
    if number != len(cases):
        return f"The fingerprint is of {number} cases and the dataset has {len(cases)}"
    if known is None:
        return None if _older(cases, file) else "Images or labels are newer than the fingerprint"
    return None if known == key else "Images, labels, dataset.json or the extractor have changed"


def _older(cases: Sequence[TrainingCase], made: Path) -> bool:
    """Whether all files of the cases are older than something that was made from them."""
    return all(os.path.getmtime(f) <= made.stat().st_mtime for c in cases for f in (*c.images, c.label))


@contextlib.contextmanager
def _explained(images: Sequence[str], label: str, reader: Any) -> Iterator[None]:
    """nnU-Net's own code reads these files; where it fails, the reason is told if it is in a file.

    Raises:
        UserError: a file is damaged.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or is_out_of_memory(error):
            raise
        for file in images:
            read_image(reader, file)
        read_image(reader, label, label=True)
        raise


def _analyze(*arguments: Any) -> Any:
    images, label, reader, _ = arguments
    with little_memory_told(label, FEWER), _explained(images, label, reader()), contextlib.redirect_stdout(io.StringIO()):
        return DatasetFingerprintExtractor.analyze_case(*arguments)


def complete(folder: Path, name: str) -> bool:
    """Whether a preprocessed case has all its files."""
    return all((folder / f"{name}{suffix}").is_file() for suffix in SUFFIXES)


@dataclass(frozen=True)
class Preprocessed:
    """What :func:`preprocess_configuration` did.

    Attributes:
        made: number of cases that were preprocessed.
        changed: names of those among them that were there, made from other files or with other settings.
        removed: names of cases that were preprocessed before and are no longer in the dataset.
    """

    made: int
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()


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
) -> Preprocessed:
    """Preprocesses the cases that one configuration lacks, or has from other files or other settings.

    Args:
        cases: training cases.
        dataset_json: the dataset's description.
        plans: content of the plans file.
        configuration: e.g. ``3d_fullres``.
        folder: the dataset's preprocessed folder; data goes into its sub-folder ``data_identifier``.
        processes: worker processes; 1 starts none.
        clean: delete what is there first.

    Raises:
        UserError: the plans name what no planner writes.
    """
    check_plans(plans, "The plans")
    identifier = PlansManager(plans).get_configuration(configuration).data_identifier
    target = folder / identifier
    staging = target.with_name(f".{target.name}.partial")
    records = Records(folder)
    if clean:
        shutil.rmtree(target, ignore_errors=True)
        records.forget(identifier)
    settings, labels = settings_key(plans, configuration), labels_key(dataset_json)
    keys = {c.name: CaseKey(records.content(c.images, c.label), settings, labels) for c in cases}
    records.save()
    removed = _remove_strangers(records, target, identifier, keys)
    adopted = _made_by_nnunet(folder, plans, configuration, identifier)
    todo, changed = [], []
    for case in cases:
        state = _state(records, target, identifier, case, keys[case.name], adopted)
        if state != "sound":
            todo.append(case)
        if state == "changed":
            changed.append(case.name)
    if todo:
        shutil.rmtree(staging, ignore_errors=True)  # left over from a killed run
        staging.mkdir(parents=True)
        target.mkdir(exist_ok=True)
        try:
            arguments = [
                (c, plans, configuration, dataset_json, str(staging), str(target), verbose, keys[c.name],
                 records.case_file(identifier, c.name))
                for c in todo
            ]  # fmt: skip
            map_cases(_preprocess_case, arguments, processes, description=f"Preprocessing {configuration}", progress=progress)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return Preprocessed(len(todo), tuple(changed), removed)


def _state(records: Records, target: Path, identifier: str, case: TrainingCase, key: CaseKey, adopted: bool) -> str:
    """``missing``, ``changed`` or ``sound``."""
    if not complete(target, case.name):
        return "missing"
    known = records.case(identifier, case.name)
    if known is None and adopted and _older([case], target / f"{case.name}.pkl"):
        write_case_key(key, records.case_file(identifier, case.name))
        return "sound"
    return "sound" if known == key else "changed"


def _made_by_nnunet(folder: Path, plans: dict[str, Any], configuration: str, identifier: str) -> bool:
    """Whether plans of nnU-Net's own planner lie in the folder that preprocess into ``identifier`` as these do."""
    file = folder / "nnUNetPlans.json"
    other = read_json(file, "remove it and plan again") if file.is_file() else None
    if not isinstance(other, dict) or not isinstance(other.get("configurations"), dict):
        return False
    theirs = other["configurations"].get(configuration)
    if not isinstance(theirs, dict) or theirs.get("data_identifier") != identifier:
        return False
    ours = PlansManager(plans).get_configuration(configuration).configuration
    return preprocessing_settings(plans, ours) == preprocessing_settings(other, theirs)


def _remove_strangers(records: Records, target: Path, identifier: str, known: Container[str]) -> tuple[str, ...]:
    """Removes cases that were preprocessed here and are no longer in the dataset; nnU-Net's loader would take them."""
    strangers = tuple(name for name in records.cases(identifier) if name not in known)
    for name in strangers:
        for suffix in SUFFIXES:
            (target / f"{name}{suffix}").unlink(missing_ok=True)
        records.case_file(identifier, name).unlink(missing_ok=True)
    return strangers


def _preprocess_case(
    case: TrainingCase,
    plans: dict[str, Any],
    configuration: str,
    dataset_json: dict[str, Any],
    staging: str,
    target: str,
    verbose: bool,
    key: CaseKey,
    key_file: Path,
) -> None:
    plans_manager = PlansManager(plans)
    configuration_manager = plans_manager.get_configuration(configuration)
    preprocessor = preprocessor_of(configuration_manager, verbose=verbose)
    quiet = contextlib.nullcontext() if verbose else contextlib.redirect_stdout(io.StringIO())
    reader = plans_manager.image_reader_writer_class()
    told = little_memory_told(case.name, FEWER)
    with full_disk_told(Path(staging), case.name), told, _explained(case.images, case.label, reader), quiet:
        preprocessor.run_case_save(
            os.path.join(staging, case.name),
            list(case.images),
            case.label,
            plans_manager,
            configuration_manager,
            dataset_json,
        )
    key_file.unlink(missing_ok=True)  # from here to its rewriting, a kill leaves a case that is made anew
    for name in (case.name + suffix for suffix in SUFFIXES):
        os.replace(os.path.join(staging, name), os.path.join(target, name))
    write_case_key(key, key_file)


def copy_ground_truth(cases: Sequence[TrainingCase], folder: Path, file_ending: str) -> None:
    """Copies the labels, and the spacing of 3D TIFFs, into ``gt_segmentations``, where nnU-Net's validation looks for them."""
    target, records = folder / "gt_segmentations", Records(folder)
    target.mkdir(parents=True, exist_ok=True)
    for case in cases:
        copies: dict[Path, Path | None] = {target / f"{case.name}{file_ending}": Path(case.label)}
        if file_ending in TIFF:
            copies[target / f"{case.name}.json"] = side_file(Path(case.label), label=True)
        for copy, source in copies.items():
            if source is None:
                copy.unlink(missing_ok=True)
            elif not copy.is_file() or records.hash(copy) != records.hash(source):
                with write_atomically(copy) as temporary:
                    shutil.copy2(source, temporary)
    records.save()
