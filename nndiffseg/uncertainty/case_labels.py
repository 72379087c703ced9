"""The label maps of a case: as predicted, of the annotators, and of the samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from numpy.typing import NDArray

from nndiffseg.data.dataset_json import structures_of
from nndiffseg.data.images import geometry_mismatch, read_image, voxel_volume
from nndiffseg.errors import UserError
from nndiffseg.uncertainty.prediction_folder import sample_files, shown
from nndiffseg.uncertainty.reliability import region_of_interest
from nndiffseg.uncertainty.volumes import MM3_PER_ML

DILATION = 3  # voxels


@dataclass(frozen=True)
class Setting:
    """What is the same for all cases. Holds plain data only, so it can be sent to worker processes.

    Attributes:
        predictions: folder of the segmentations.
        dataset_json: of the dataset.
        reader: of the segmentations.
        tolerance: of the surfaces in mm; None leaves them out, which saves much of the time.
    """

    predictions: Path
    dataset_json: Mapping[str, Any]
    reader: type[BaseReaderWriter]
    tolerance: float | None = None

    @property
    def structures(self) -> dict[str, tuple[int, ...]]:
        """Labels of each of the K structures."""
        return structures_of(self.dataset_json)

    @property
    def ending(self) -> str:
        """Of the files."""
        return self.dataset_json["file_ending"]

    @property
    def ignore(self) -> int | None:
        """The ignore label."""
        return self.dataset_json["labels"].get("ignore")

    @property
    def regions(self) -> bool:
        """Whether probabilities are those of regions; then they have no background."""
        return any(len(labels) > 1 for labels in self.structures.values())

    @property
    def heads(self) -> list[tuple[int, ...]]:
        """Labels of each channel of the probabilities: regions as dataset.json lists them, or all labels in their order."""
        structures = list(self.structures.values())
        return structures if self.regions else [(0,), *sorted(set(structures))]

    @property
    def channels(self) -> list[int]:
        """The channel of each structure."""
        return [self.heads.index(labels) for labels in self.structures.values()]


@dataclass(frozen=True)
class CaseLabels:
    """Label maps of a case ``(*image)``, ignored voxels set to background, for nobody to be right or wrong about.

    Attributes:
        segmentation: as predicted.
        references: of M annotators ``(M, *image)``.
        samples: ``(N, *image)``, N may be 0.
        ignored: voxels that an annotator left open, bool.
        spacing: mm.
        remark: how the references' geometry differs from the segmentation's; empty if it does not.
    """

    segmentation: NDArray
    references: NDArray
    samples: NDArray
    ignored: NDArray[np.bool_]
    spacing: tuple[float, ...]
    remark: str

    @property
    def region(self) -> NDArray[np.bool_]:
        """Near the structures: foreground of the segmentation or of an annotator, dilated by :data:`DILATION` voxels."""
        return near_structures([self.segmentation, *self.references]) & ~self.ignored

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel."""
        return voxel_volume(self.segmentation.shape, self.spacing) / MM3_PER_ML


def near_structures(labels: Iterable[NDArray]) -> NDArray[np.bool_]:
    """Foreground of any of the label maps ``(*image)``, dilated by :data:`DILATION` voxels; where calibration is judged."""
    return region_of_interest(np.any([label != 0 for label in labels], axis=0), DILATION)


def read_labels(setting: Setting, name: str, references: Sequence[Path]) -> CaseLabels:
    """Reads segmentation, references and samples of a case.

    Raises:
        UserError: a file is damaged, of another shape, or holds a label that dataset.json does not name.
    """
    reader = setting.reader()
    allowed = sorted({0, *(v for labels in setting.structures.values() for v in labels)})
    file = setting.predictions / f"{name}{setting.ending}"
    segmentation, properties = read_image(reader, file, label=True)
    maps, remark = [_checked(segmentation, file, allowed)], ""
    with_ignored = allowed if setting.ignore is None else [*allowed, setting.ignore]
    for reference in references:
        values, others = read_image(reader, reference, label=True)
        check_shape(name, reference, values.shape[1:], segmentation.shape[1:])
        difference = geometry_mismatch(properties, others, segmentation.shape[1:], values.shape[1:])
        remark = remark or (f"{name} and its reference {reference} differ in {difference}" if difference else "")
        maps.append(_checked(values, reference, with_ignored))
    annotations = np.stack(maps[1:])
    ignored = (annotations == setting.ignore).any(0) if setting.ignore is not None else np.zeros(annotations.shape[1:], bool)
    samples = np.zeros((0, *ignored.shape), annotations.dtype)
    if files := sample_files(setting.predictions, name, setting.ending):
        found = []
        for file in files:
            values = read_image(reader, file, label=True)[0]
            check_shape(name, file, values.shape[1:], ignored.shape)
            found.append(_checked(values, file, allowed))
        samples = np.stack(found)
    if ignored.any():
        for array in (maps[0], annotations, samples):
            array[..., ignored] = 0
    spacing = tuple(float(s) for s in properties["spacing"])
    return CaseLabels(maps[0], annotations, samples, ignored, spacing, remark)


def _checked(values: NDArray, file: Path, allowed: Sequence[int]) -> NDArray:
    """Labels ``(1, *image)`` as small integers ``(*image)``.

    Raises:
        UserError: the file has several channels, or a label that dataset.json does not name.
    """
    if len(values) != 1:
        raise UserError(f"{file} has {len(values)} channels; a label has one, with the label numbers as values.")
    unknown = ~np.isin(values[0], allowed)
    if unknown.any():
        raise UserError(
            f"{file} holds the label {float(values[0][unknown][0]):g}, which dataset.json does not name (it names "
            f"{', '.join(map(str, allowed))}); correct the file or give the dataset.json that belongs to it with -djfile."
        )
    return values[0].astype(np.uint8 if max(allowed) < 256 else np.uint16)


def check_shape(name: str, file: Path, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Checks the shape of a file of a case.

    Raises:
        UserError: it is not that of the segmentation.
    """
    if shape != expected:
        raise UserError(
            f"The segmentation of {name} has the shape {shown(expected)}, but {file} has {shown(shape)}; "
            "both must lie on the grid of the image."
        )
