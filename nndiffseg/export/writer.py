"""The files of a case: all of them, or none."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from batchgenerators.utilities.file_and_folder_operations import save_pickle
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nndiffseg.data.dataset_json import structures_of
from nndiffseg.data.files import check_gzip, is_full, write_json
from nndiffseg.data.names import is_plain_name
from nndiffseg.errors import UserError
from nndiffseg.export.geometry import CaseGeometry
from nndiffseg.export.maps import write_map, write_probability
from nndiffseg.export.summary import case_record, case_summary
from nndiffseg.uncertainty.statistics import CaseStatistics

MAPS = ("total", "aleatoric", "epistemic")
#: how probabilities can be written: nnU-Net's npz and pkl; one image for each structure
PROBABILITIES = ("npz", "nifti")
#: Cases are written here first. Hidden, and in the output folder, so that moving a file is atomic.
STAGING = ".nndiffseg_tmp"


@dataclass(frozen=True)
class ExportJob:
    """What to write, and where. Holds plain data only, so it can be sent to worker processes.

    Attributes:
        output: folder of the segmentations.
        plans, configuration, dataset_json: of the model.
        save_samples: write the samples' label maps.
        save_probabilities: True for nnU-Net's npz and pkl, or any of :data:`PROBABILITIES`.
        settings: how the prediction was made, recorded in the case's JSON.
        fuse: ``mean``, or ``staple`` for the segmentation that :mod:`nndiffseg.export.staple` makes of the samples.
    """

    output: Path
    plans: dict[str, Any]
    configuration: str
    dataset_json: dict[str, Any]
    save_samples: bool = False
    save_probabilities: bool | Sequence[str] = False
    settings: dict[str, Any] = field(default_factory=dict)
    fuse: str = "mean"

    def __post_init__(self) -> None:
        if unknown := self.probabilities - set(PROBABILITIES):
            raise UserError(f"Probabilities are saved as {' or '.join(PROBABILITIES)}, not as {', '.join(sorted(unknown))}.")

    @property
    def file_ending(self) -> str:
        return self.dataset_json["file_ending"]

    @property
    def probabilities(self) -> set[str]:
        """Which of :data:`PROBABILITIES` are written."""
        given = self.save_probabilities
        if isinstance(given, bool):
            return {"npz"} if given else set()
        return {given} if isinstance(given, str) else set(given)

    def files(self, case_id: str, samples: int, folds: int) -> list[Path]:
        """Everything that belongs to a finished case, relative to the output folder, the segmentation last."""
        kinds = MAPS if folds > 1 else MAPS[:2]
        names = [f"uncertainty/{case_id}_{kind}.nii.gz" for kind in kinds] + [f"uncertainty/{case_id}.json"]
        if self.save_samples:
            names += [sample_name(case_id, n, self.file_ending) for n in range(samples)]
        if "npz" in self.probabilities:
            names += [f"{case_id}.npz", f"{case_id}.pkl"]
        if "nifti" in self.probabilities:
            names += probability_names(case_id, self.dataset_json)
        return [Path(name) for name in [*names, case_id + self.file_ending]]


def sample_name(case_id: str, index: int, file_ending: str) -> str:
    """File of a sample's label map, relative to the output folder."""
    return f"samples/{case_id}_s{index:02d}{file_ending}"


def probability_names(case_id: str, dataset_json: dict[str, Any]) -> list[str]:
    """Files of the structures' probabilities, relative to the output folder, in the order of nnU-Net's heads.

    Heads of labels are ordered by value, those of regions as in dataset.json. A structure is named by its place in that order
    and by what of its name can stand in a file's name.
    """
    structures = structures_of(dataset_json)
    regions = any(len(labels) > 1 for labels in structures.values())
    ordered = list(structures) if regions else sorted(structures, key=lambda name: structures[name])
    names = [re.sub(r"[^\w-]+", "_", name)[:60] for name in ordered]
    return [f"probabilities/{case_id}/{n:02d}_{name}.nii.gz" for n, name in enumerate(names, 1)]


def export_case(
    job: ExportJob,
    case_id: str,
    statistics: CaseStatistics,
    properties: dict[str, Any],
    record: dict[str, Any] | None = None,
) -> None:
    """Writes everything that belongs to one case, or nothing.

    Args:
        job: what to write.
        case_id: name of the case.
        statistics: of the case, on the grid of the preprocessed image.
        properties: as nnU-Net's preprocessor returns them.
        record: what else goes into the case's JSON.

    Raises:
        UserError: the disk is full.
    """
    plans = PlansManager(job.plans)
    geometry = CaseGeometry(properties, plans, plans.get_configuration(job.configuration))
    with _staged(job, case_id) as stage:
        try:
            _write_case(job, case_id, statistics, geometry, stage, record or {})
            check_gzip(stage)
        except (OSError, RuntimeError, EOFError) as error:
            if is_full(error, job.output):
                raise UserError(
                    f"No space left on the disk of {job.output} for {case_id}; free some space, then go on "
                    "with --continue_prediction."
                ) from error
            raise


def _write_case(
    job: ExportJob,
    case_id: str,
    statistics: CaseStatistics,
    geometry: CaseGeometry,
    stage: Path,
    record: dict[str, Any],
) -> None:
    writer = geometry.plans.image_reader_writer_class()
    properties = geometry.properties
    segmentation, probabilities = geometry.segmentation(
        statistics, job.dataset_json, with_probabilities=bool(job.probabilities), fuse=job.fuse
    )
    if probabilities is not None:
        _write_probabilities(job, case_id, probabilities, geometry, stage)
        del probabilities
    for kind, values in statistics.maps.items():
        restored = geometry.maps_to_image(values.numpy()[None])[0]
        write_map(restored, stage / "uncertainty" / f"{case_id}_{kind}.nii.gz", properties, geometry.is_2d)
    summary = case_summary(statistics, segmentation, geometry, job.dataset_json)
    written = case_record(case_id, summary, statistics, job.settings) | record
    write_json(written, stage / "uncertainty" / f"{case_id}.json")
    if job.save_samples:
        for n, labels in enumerate(statistics.labels):
            name = sample_name(case_id, n, job.file_ending)
            writer.write_seg(geometry.labels_to_image(labels), str(stage / name), properties)
    writer.write_seg(segmentation, str(stage / (case_id + job.file_ending)), properties)


def _write_probabilities(job: ExportJob, case_id: str, probabilities: np.ndarray, geometry: CaseGeometry, stage: Path) -> None:
    """Of all heads, ``(heads, *image)``."""
    if "npz" in job.probabilities:
        np.savez_compressed(stage / f"{case_id}.npz", probabilities=probabilities)
        save_pickle(geometry.properties, str(stage / f"{case_id}.pkl"))
    if "nifti" in job.probabilities:
        names = probability_names(case_id, job.dataset_json)
        (stage / names[0]).parent.mkdir(parents=True)
        # labels have a head for the background in front, regions have none
        for name, p in zip(names, probabilities[len(probabilities) - len(names) :], strict=True):
            write_probability(p, stage / name, geometry.properties, geometry.is_2d)


def staging_folder(output: Path, case_id: str) -> Path:
    """Where a case is written before it is whole. It is removed with all in it, so it must lie in the staging folder.

    Raises:
        ValueError: the id is no plain name, or the staging folder is a link to elsewhere.
    """
    if not is_plain_name(case_id):
        raise ValueError(f"{case_id!r} is no plain name of a file.")
    if (output / STAGING).is_symlink():
        raise ValueError(f"{output / STAGING} is a link; remove it.")
    return output / STAGING / case_id


@contextmanager
def _staged(job: ExportJob, case_id: str) -> Iterator[Path]:
    """A folder that becomes part of the output when the block ends, and disappears when it fails."""
    stage = staging_folder(job.output, case_id)
    shutil.rmtree(stage, ignore_errors=True)
    for sub in ("uncertainty", *(["samples"] if job.save_samples else [])):
        (stage / sub).mkdir(parents=True)
    try:
        yield stage
        _commit(job, case_id, stage)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def remove_staging(output: Path, case_ids: Iterable[str] = ()) -> None:
    """Removes what a killed run left of these cases, and the folder for unfinished cases if nobody works in it."""
    for case_id in case_ids:
        shutil.rmtree(staging_folder(output, case_id), ignore_errors=True)
    with suppress(OSError):
        (output / STAGING).rmdir()


def _commit(job: ExportJob, case_id: str, stage: Path) -> None:
    """Moves a finished case into place, the segmentation last: where it is, the case is complete."""
    segmentation = Path(case_id + job.file_ending)
    (job.output / segmentation).unlink(missing_ok=True)
    stale = [job.output / "uncertainty" / f"{case_id}_{kind}.nii.gz" for kind in MAPS]
    stale += [job.output / name for name in probability_names(case_id, job.dataset_json)]
    stale += [
        f
        for f in (job.output / "samples").glob("*")
        if re.fullmatch(re.escape(case_id) + rf"_s\d+({re.escape(job.file_ending)}|\.json)", f.name)
    ]
    for file in stale:
        file.unlink(missing_ok=True)
    files = [f.relative_to(stage) for f in sorted(stage.rglob("*")) if f.is_file()]
    for file in sorted(files, key=lambda f: f == segmentation):
        (job.output / file).parent.mkdir(parents=True, exist_ok=True)
        os.replace(stage / file, job.output / file)
