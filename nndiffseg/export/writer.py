"""From the grid of the preprocessed image back to the image: segmentation, maps, samples, volumes, and their files."""

from __future__ import annotations

import errno
import gzip
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import insert_crop_into_image
from batchgenerators.utilities.file_and_folder_operations import save_pickle
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nndiffseg.data.dataset_json import structures_of
from nndiffseg.data.files import write_json
from nndiffseg.data.names import is_plain_name
from nndiffseg.errors import UserError
from nndiffseg.export.staple import consensus_of
from nndiffseg.uncertainty import PairwiseOverlap, expected_dice, volume_statistics
from nndiffseg.uncertainty.agreement import mean_pairwise_dice
from nndiffseg.uncertainty.statistics import CaseStatistics
from nndiffseg.uncertainty.volumes import MM3_PER_ML

MAPS = ("total", "aleatoric", "epistemic")
#: Cases are written here first. Hidden, and in the output folder, so that moving a file is atomic.
STAGING = ".nndiffseg_tmp"
#: Probabilities are kept this far from 0 and 1 before the logarithm.
EPSILON = 1e-7


@dataclass(frozen=True)
class ExportJob:
    """What to write, and where. Holds plain data only, so it can be sent to worker processes.

    Attributes:
        output: folder of the segmentations.
        plans, configuration, dataset_json: of the model.
        save_samples: write the samples' label maps.
        save_probabilities: write nnU-Net's npz and pkl.
        settings: how the prediction was made, recorded in the case's JSON.
        fuse: ``mean``, or ``staple`` for the segmentation that :mod:`nndiffseg.export.staple` makes of the samples.
    """

    output: Path
    plans: dict[str, Any]
    configuration: str
    dataset_json: dict[str, Any]
    save_samples: bool = False
    save_probabilities: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    fuse: str = "mean"

    @property
    def file_ending(self) -> str:
        return self.dataset_json["file_ending"]

    def files(self, case_id: str, samples: int, folds: int) -> list[Path]:
        """Everything that belongs to a finished case, relative to the output folder, the segmentation last."""
        kinds = MAPS if folds > 1 else MAPS[:2]
        names = [f"uncertainty/{case_id}_{kind}.nii.gz" for kind in kinds] + [f"uncertainty/{case_id}.json"]
        if self.save_samples:
            names += [sample_name(case_id, n, self.file_ending) for n in range(samples)]
        if self.save_probabilities:
            names += [f"{case_id}.npz", f"{case_id}.pkl"]
        return [Path(name) for name in [*names, case_id + self.file_ending]]


def sample_name(case_id: str, index: int, file_ending: str) -> str:
    """File of a sample's label map, relative to the output folder."""
    return f"samples/{case_id}_s{index:02d}{file_ending}"


@dataclass
class CaseGeometry:
    """Undoes nnU-Net's preprocessing of one case: resampling, cropping and transposition.

    Attributes:
        properties: as nnU-Net's preprocessor returns them.
        plans, configuration: managers of the model's plans.
    """

    properties: dict[str, Any]
    plans: PlansManager
    configuration: ConfigurationManager

    @property
    def is_2d(self) -> bool:
        """nnU-Net's readers give 2D images one slice of a huge thickness."""
        spacing = self.properties["spacing"]
        thickness = self.plans.transpose_forward.index(0)
        return self.properties["shape_before_cropping"][thickness] == 1 and spacing[0] > 900 * max(spacing[1:])

    def voxel_volume(self, shape: tuple[int, ...] | None = None) -> float:
        """Volume in mm^3 of a voxel of the image, or of the preprocessed grid of this shape.

        The preprocessed grid has a whole number of voxels, so its true spacing differs a little from the planned one.
        A 2D image counts as 1 mm thick.
        """
        spacing = [1.0, *self.properties["spacing"][1:]] if self.is_2d else self.properties["spacing"]
        volume = float(np.prod(spacing))
        if shape is not None:
            volume *= np.prod(self.properties["shape_after_cropping_and_before_resampling"]) / np.prod(shape)
        return volume

    def _spacings(self) -> tuple[list[float], list[float]]:
        """Spacing of the preprocessed grid and of the transposed image (export_prediction.py of nnU-Net)."""
        image = [self.properties["spacing"][i] for i in self.plans.transpose_forward]
        planned = list(self.configuration.spacing)
        return planned if len(planned) == len(image) else [image[0], *planned], image

    def _restore(self, values: np.ndarray) -> np.ndarray:
        """Cropped ``(M, *crop)`` -> image ``(M, *image)``, 0 outside the crop."""
        whole = np.zeros((len(values), *self.properties["shape_before_cropping"]), values.dtype)
        whole = insert_crop_into_image(whole, values, self.properties["bbox_used_for_cropping"])
        return whole.transpose(0, *[i + 1 for i in self.plans.transpose_backward])

    def maps_to_image(self, maps: np.ndarray) -> np.ndarray:
        """Uncertainty maps ``(M, *grid)`` -> ``(M, *image)`` float32 in [0, 1], linearly resampled."""
        shape = self.properties["shape_after_cropping_and_before_resampling"]
        resampled = self.configuration.resampling_fn_probabilities(maps, shape, *self._spacings())
        return self._restore(np.clip(np.asarray(resampled, dtype=np.float32), 0, 1))

    def labels_to_image(self, labels: np.ndarray) -> np.ndarray:
        """One label map ``(*grid)`` -> ``(*image)``, resampled as nnU-Net resamples labels."""
        shape = self.properties["shape_after_cropping_and_before_resampling"]
        resampled = self.configuration.resampling_fn_seg(labels[None], shape, *self._spacings())
        return self._restore(np.asarray(resampled).astype(labels.dtype, copy=False))[0]

    def segmentation(
        self, statistics: CaseStatistics, dataset_json: dict[str, Any], *, with_probabilities: bool, fuse: str = "mean"
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """nnU-Net's own export, fed with ``log p`` (regions: ``logit p``): its softmax (sigmoid) gives p back.

        ``fuse="staple"`` puts the consensus of the samples in the place of nnU-Net's labels.

        Returns:
            Labels ``(*image)``, and probabilities ``(heads, *image)`` if asked for.
        """
        manager = self.plans.get_label_manager(dataset_json)
        p = statistics.probabilities.clamp(EPSILON, 1 - EPSILON)
        logits = torch.logit(p) if statistics.regions else p.log_()
        result = convert_predicted_logits_to_segmentation_with_correct_shape(
            logits.numpy(),
            self.plans,
            self.configuration,
            manager,
            self.properties,
            return_probabilities=with_probabilities,
            num_threads_torch=torch.get_num_threads(),
        )
        segmentation, probabilities = result if with_probabilities else (result, None)
        if fuse == "staple":
            segmentation = self.labels_to_image(consensus_of(statistics, manager))
        return segmentation, probabilities


def case_summary(
    statistics: CaseStatistics, segmentation: np.ndarray, geometry: CaseGeometry, dataset_json: dict[str, Any]
) -> dict[str, Any]:
    """Volumes and agreement of the samples, JSON-ready.

    The samples' voxels are counted on the grid of the preprocessed image, where the samples were drawn; resampling
    sixteen label maps of a large image for their volumes would cost more than drawing them.

    Args:
        statistics: of the case.
        segmentation: as written, ``(*image)``.
        geometry: of the case.
        dataset_json: of the model.

    Returns:
        ``samples``; ``expected_dice``, the mean pairwise Dice of the samples, mean over structures; and per structure
        ``segmentation_ml``, ``expected_dice`` and what :func:`nndiffseg.uncertainty.volume_statistics` returns.
    """
    structures = structures_of(dataset_json)
    overlap = PairwiseOverlap(len(statistics.labels), list(structures.values()))
    for part in np.array_split(statistics.labels, max(1, statistics.labels.shape[1] // 16), axis=1):
        overlap.add(part)
    counts = dict(zip(structures, overlap.counts, strict=True))
    scales = [c.volume_scale for c in statistics.calibrations]
    volumes = volume_statistics(counts, geometry.voxel_volume(statistics.labels.shape[1:]), scales)
    per_structure = mean_pairwise_dice(overlap)
    for i, (name, labels) in enumerate(structures.items()):
        voxels = int(np.isin(segmentation, labels).sum())
        own = {"segmentation_ml": voxels * geometry.voxel_volume() / MM3_PER_ML}
        agreement = {"expected_dice": None if per_structure is None else float(per_structure[i])}
        volumes[name] = own | volumes[name] | agreement
    summary: dict[str, Any] = {
        "samples": len(statistics.labels),
        "expected_dice": expected_dice(overlap),
        "structures": volumes,
    }
    if geometry.is_2d:
        summary["note"] = "2D image: volumes assume a thickness of 1 mm."
    return summary


def write_map(values: np.ndarray, file: Path, properties: dict[str, Any], two_dimensional: bool) -> None:
    """Writes a float32 map in the image's geometry as NIfTI, whatever the image's own format.

    Args:
        values: ``(*image)``, three axes in the order of nnU-Net's readers.
        file: ``*.nii.gz``.
        properties: as the reader of the image gave them.
        two_dimensional: the image is 2D.
    """
    values = values.astype(np.float32, copy=False)
    if (affines := properties.get("nibabel_stuff")) is not None:
        _write_with_nibabel(values, file, affines)
        return
    image = sitk.GetImageFromArray(values[0] if two_dimensional else values)
    if (geometry := properties.get("sitk_stuff")) is not None:
        image.SetSpacing(geometry["spacing"])
        image.SetOrigin(geometry["origin"])
        image.SetDirection(geometry["direction"])
        if "original_orientation" in geometry:  # nnU-Net's SimpleITKIOWithReorient
            image = sitk.DICOMOrient(image, geometry["original_orientation"])
    elif not two_dimensional:  # 3D TIFF
        image.SetSpacing([float(s) for s in properties["spacing"]][::-1])
    sitk.WriteImage(image, str(file), True)


def _write_with_nibabel(values: np.ndarray, file: Path, affines: dict[str, Any]) -> None:
    image = nibabel.Nifti1Image(values.transpose(2, 1, 0), affines.get("reoriented_affine", affines["original_affine"]))
    if "reoriented_affine" in affines:  # nnU-Net's NibabelIOWithReorient
        original = io_orientation(affines["original_affine"])
        image = image.as_reoriented(ornt_transform(axcodes2ornt("RAS"), original))
    nibabel.save(image, str(file))


def export_case(job: ExportJob, case_id: str, statistics: CaseStatistics, properties: dict[str, Any]) -> None:
    """Writes everything that belongs to one case, or nothing.

    Raises:
        UserError: the disk is full.
    """
    plans = PlansManager(job.plans)
    geometry = CaseGeometry(properties, plans, plans.get_configuration(job.configuration))
    with _staged(job, case_id) as stage:
        try:
            _write_case(job, case_id, statistics, geometry, stage)
            _check_gzip(stage)
        except (OSError, RuntimeError, EOFError) as error:
            if _is_full(error, job.output):
                raise UserError(
                    f"No space left on the disk of {job.output} for {case_id}; free some space, then go on "
                    "with --continue_prediction."
                ) from error
            raise


def _check_gzip(stage: Path) -> None:
    """Reads compressed files to their end: on a full disk, ITK leaves a truncated NIfTI and reports success.

    Raises:
        EOFError: a file is truncated.
    """
    for file in stage.rglob("*.gz"):
        with gzip.open(file) as stream:
            while stream.read(1 << 22):
                pass


def _is_full(error: BaseException, folder: Path) -> bool:
    """Whether a full disk (or quota) is behind an error in writing; ITK's RuntimeError does not tell."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return isinstance(error, EOFError) or shutil.disk_usage(folder).free < 2**20


def _write_case(job: ExportJob, case_id: str, statistics: CaseStatistics, geometry: CaseGeometry, stage: Path) -> None:
    writer = geometry.plans.image_reader_writer_class()
    properties = geometry.properties
    segmentation, probabilities = geometry.segmentation(
        statistics, job.dataset_json, with_probabilities=job.save_probabilities, fuse=job.fuse
    )
    if probabilities is not None:
        np.savez_compressed(stage / f"{case_id}.npz", probabilities=probabilities)
        save_pickle(properties, str(stage / f"{case_id}.pkl"))
        del probabilities
    for kind, values in statistics.maps.items():
        restored = geometry.maps_to_image(values.numpy()[None])[0]
        write_map(restored, stage / "uncertainty" / f"{case_id}_{kind}.nii.gz", properties, geometry.is_2d)
    summary = case_summary(statistics, segmentation, geometry, job.dataset_json)
    calibration = [c.to_json() for c in statistics.calibrations]
    summary = {"case": case_id, **summary, "calibration": calibration, "settings": job.settings}
    write_json(summary, stage / "uncertainty" / f"{case_id}.json")
    if job.save_samples:
        for n, labels in enumerate(statistics.labels):
            name = sample_name(case_id, n, job.file_ending)
            writer.write_seg(geometry.labels_to_image(labels), str(stage / name), properties)
    writer.write_seg(segmentation, str(stage / (case_id + job.file_ending)), properties)


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
    stale += [
        f
        for f in (job.output / "samples").glob("*")
        if re.fullmatch(re.escape(case_id) + r"_s\d+" + re.escape(job.file_ending), f.name)
    ]
    for file in stale:
        file.unlink(missing_ok=True)
    files = [f.relative_to(stage) for f in sorted(stage.rglob("*")) if f.is_file()]
    for file in sorted(files, key=lambda f: f == segmentation):
        (job.output / file).parent.mkdir(parents=True, exist_ok=True)
        os.replace(stage / file, job.output / file)
