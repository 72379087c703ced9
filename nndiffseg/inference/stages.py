"""The stages of a cascade: what one has segmented is input of the next, as label maps on the next one's grid.

Segmentation and a few samples of a stage go on, in the image's own geometry, and are preprocessed as nnU-Net preprocesses the
files of ``-prev_stage_predictions``. So it makes no difference whether they come from files or from the stage before itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from numpy.typing import NDArray
from torch import Tensor

from nndiffseg.data.cases import Case, preprocess, read_and_preprocess
from nndiffseg.data.images import geometry_mismatch, read_image
from nndiffseg.errors import UserError
from nndiffseg.export.geometry import CaseGeometry
from nndiffseg.export.writer import sample_name
from nndiffseg.uncertainty.statistics import CaseStatistics

#: Samples of a stage that samples of the next one start from. The image network runs once for each, so they are few.
STARTS = 4


@dataclass(frozen=True)
class PreviousStage:
    """What the stage before found, on the grid of the next one.

    Attributes:
        segmentation: label values ``(*grid)``, uint8 or uint16.
        samples: of some samples ``(K, *grid)``; K may be 0.
    """

    segmentation: NDArray
    samples: NDArray

    @property
    def starts(self) -> int:
        """Number of samples."""
        return len(self.samples)

    def start(self, number: int) -> Tensor:
        """Label map ``(*grid)``: 0 is the segmentation, then come the samples."""
        labels = self.segmentation if number == 0 else self.samples[number - 1]
        return torch.from_numpy(labels if labels.dtype == np.uint8 else labels.astype(np.int32))


def previous_stage(maps: Sequence[NDArray]) -> PreviousStage:
    """Of label maps ``(*grid)``, the segmentation first."""
    first, *others = maps
    return PreviousStage(first, np.stack(others) if others else np.zeros((0, *first.shape), first.dtype))


class Stage(NamedTuple):
    """One case, preprocessed for one stage of a cascade, or for a configuration that is none.

    Attributes:
        data: ``(C, *grid)``.
        properties: that lead back to the image.
        previous: what the stage before found, where that is known.
        before: the same case for the stage before, where it is still to be found.
    """

    data: NDArray
    properties: dict[str, Any]
    previous: PreviousStage | None = None
    before: Stage | None = None


def evenly(samples: int) -> list[int]:
    """Which of a stage's samples go on: :data:`STARTS`, spread evenly, so that they come from different folds."""
    number = min(STARTS, samples)
    return [i * samples // number for i in range(number)]


# ---- preprocessing ----------------------------------------------------------------------------------------------------


def read_stages(case: Case, plans: dict[str, Any], configuration: str, dataset_json: dict[str, Any]) -> Stage:
    """Reads and preprocesses a case, for the stages before as well where their predictions are not given.

    Raises:
        UserError: what is wrong with the case.
    """
    data, properties = read_and_preprocess(case, plans, configuration, dataset_json)
    manager = PlansManager(plans)
    before = manager.get_configuration(configuration).previous_stage_name
    if before is None:
        return Stage(data, properties)
    if case.previous:
        maps = _read_previous(case, manager, dataset_json, properties)
        return Stage(data, properties, on_grid(maps, properties, manager, configuration, data.shape[1:]))
    return Stage(data, properties, before=read_stages(case, plans, before, dataset_json))


def preprocess_stages(
    data: NDArray, properties: dict[str, Any], plans: PlansManager, configuration: str, dataset_json: dict[str, Any]
) -> Stage:
    """As :func:`read_stages`, of an image ``(C, *image)`` at hand."""
    before = plans.get_configuration(configuration).previous_stage_name
    stage = None if before is None else preprocess_stages(data, dict(properties), plans, before, dataset_json)
    data, properties = preprocess(data, properties, plans, configuration, dataset_json)
    return Stage(data, properties, before=stage)


def on_grid(
    maps: Iterable[NDArray], properties: dict[str, Any], plans: PlansManager, configuration: str, shape: Sequence[int]
) -> PreviousStage:
    """Segmentation and samples of the image -> on the grid of a preprocessed image.

    Args:
        maps: label values, ``(*image)`` each; the segmentation first.
        properties: of the preprocessed image.
        plans, configuration: by which it was preprocessed.
        shape: of its grid.
    """
    geometry = CaseGeometry(properties, plans, plans.get_configuration(configuration))
    return previous_stage([geometry.labels_to_grid(labels, shape) for labels in maps])


def outcome(
    statistics: CaseStatistics, segmentation: NDArray, geometry: CaseGeometry, samples: Sequence[int]
) -> Iterator[NDArray]:
    """What goes on from a stage to the next, ``(*image)`` each, one after the other: the segmentation, then some samples.

    Args:
        statistics: of the case.
        segmentation: ``(*image)``.
        geometry: of the stage that found them.
        samples: indices, see :func:`evenly`.
    """
    kind = statistics.labels.dtype
    yield np.asarray(segmentation).astype(kind)
    for n in samples:
        yield geometry.labels_to_image(statistics.labels[n])


# ---- predictions in a folder ------------------------------------------------------------------------------------------


def with_previous(cases: Sequence[Case], folder: Path, dataset_json: dict[str, Any], stage: str) -> list[Case]:
    """Cases with the files of what the stage before predicted: the segmentation, and some samples where they were saved.

    Args:
        cases: to predict.
        folder: that ``nndiffseg_predict`` or ``nnUNetv2_predict`` wrote with the model of the stage before.
        stage: its configuration, for the message.

    Raises:
        UserError: there is no such folder, or a case's segmentation is missing.
    """
    ending = dataset_json["file_ending"]
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}; give the one that the predictions of {stage} were written to.")
    lacking = [case.id for case in cases if not (folder / f"{case.id}{ending}").is_file()]
    if lacking:
        raise UserError(
            f"{folder} holds no prediction of {stage} for {len(lacking)} of {len(cases)} cases, such as {lacking[0]}{ending}; "
            f"predict them there with -c {stage} and --save_samples, or leave out -prev_stage_predictions to have it done."
        )
    return [replace(case, previous=_files(case.id, folder, ending)) for case in cases]


def _files(case_id: str, folder: Path, ending: str) -> tuple[Path, ...]:
    names = (folder / sample_name(case_id, n, ending) for n in itertools.count())
    samples = list(itertools.takewhile(Path.is_file, names))
    return (folder / f"{case_id}{ending}", *(samples[n] for n in evenly(len(samples))))


def _read_previous(case: Case, plans: PlansManager, dataset_json: dict[str, Any], properties: dict[str, Any]) -> list[NDArray]:
    """Label maps ``(*image)``; ``properties`` are the preprocessed image's.

    Raises:
        UserError: one is damaged, lies on another grid than the image, or holds what is no label.
    """
    reader, known = plans.image_reader_writer_class(), plans.get_label_manager(dataset_json).all_labels
    shape = tuple(properties["shape_before_cropping"][i] for i in plans.transpose_backward)
    maps = []
    for file in case.previous:
        labels, own = read_image(reader, file, label=True)
        again = "predict it again with the model of the stage before"
        if (problem := geometry_mismatch(properties, own, shape, labels.shape[1:])) is not None:
            raise UserError(f"{case.files[0].name} and {file} differ in geometry ({problem}); {again}.")
        if unknown := sorted(set(np.unique(labels).tolist()) - {0, *known}):
            raise UserError(f"{file} holds the value {unknown[0]:g}, which is no label of the model; {again}.")
        maps.append(labels[0].astype(np.uint16 if max(known) > 255 else np.uint8))
    return maps
