"""What a report shows of a case: slices through its segmentation, image, uncertainty maps and samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from numpy.typing import NDArray

from nndiffseg.data.dataset_json import structures_of
from nndiffseg.data.images import planned_reader, read_image
from nndiffseg.report.planes import Planes, find_planes
from nndiffseg.uncertainty.prediction_folder import read_array, sample_files, uncertainty_map

#: A whole sample is read for a few slices of it, so fewer samples of a large volume are drawn.
MAX_SAMPLES = 16
SAMPLE_VOXELS = 64_000_000


@dataclass(frozen=True)
class View:
    """One slice of a case; every array is ``(H, W)``.

    Attributes:
        name: ``axial``, ``coronal`` or ``sagittal``; ``axis 1`` and so on where the file does not state its
            orientation; empty for a 2D image.
        spacing: height and width of a pixel; in mm for the anatomical planes.
        image: grey values.
        segmentation: labels.
        maps: ``total`` and, if several folds were used, ``aleatoric`` and ``epistemic`` uncertainty, in [0, 1].
        samples: labels of each saved sample.
        reference: true labels, if they are known.
        window: grey values that are drawn black and white; those of the slice if None.
    """

    name: str
    spacing: tuple[float, float]
    image: NDArray
    segmentation: NDArray
    maps: dict[str, NDArray] = field(default_factory=dict)
    samples: list[NDArray] = field(default_factory=list)
    reference: NDArray | None = None
    window: tuple[float, float] | None = None


@dataclass(frozen=True)
class CaseViews:
    """What is shown of a case.

    Attributes:
        frames: to scroll through; each is one view per plane.
        middle: index of the frame that is shown first.
        doubtful: the view with the largest area of undecided voxels.
    """

    frames: list[list[View]]
    middle: int
    doubtful: View


@dataclass(frozen=True)
class _Cuts:
    """The slices of every volume of a case: per frame, and last at the doubtful position, ``(H, W)`` per plane."""

    image: list[list[NDArray]]
    segmentation: list[list[NDArray]]
    maps: dict[str, list[list[NDArray]]]
    samples: list[list[list[NDArray]]]
    reference: list[list[NDArray]] | None

    def view(self, planes: Planes, frame: int, plane: int) -> View:
        """Scrolling through the frames of a plane does not change its grey values."""
        return View(
            planes.names[plane],
            planes.pixel_spacing(plane),
            self.image[frame][plane],
            self.segmentation[frame][plane],
            {kind: slices[frame][plane] for kind, slices in self.maps.items()},
            [slices[frame][plane] for slices in self.samples],
            None if self.reference is None else self.reference[frame][plane],
            grey_window(np.stack([slices[plane] for slices in self.image[:-1]])),
        )


def full_scale(dataset_json: Mapping[str, Any]) -> float:
    """Uncertainty of a voxel with two equally probable labels: the bright end of the colour scale.

    The maps are entropies divided by log C, so two labels at 1/2 give log 2 / log C. For R regions the maps average R
    binary entropies, so one undecided region gives 1 / R (:func:`nndiffseg.uncertainty.maps.entropy`).
    """
    structures = structures_of(dataset_json)
    if any(len(labels) > 1 for labels in structures.values()):
        return 1 / len(structures)
    return float(np.log(2) / np.log(1 + len(structures)))


def report_reader(predictions: Path, dataset_json: Mapping[str, Any], example: Path) -> BaseReaderWriter:
    """The reader named in the model's plans, or else nnU-Net's choice for ``example``.

    Raises:
        UserError: the plans are not as planners write them, or dataset.json names an unknown reader.
    """
    return planned_reader(predictions / "plans.json", dataset_json, example)()


def read_views(
    predictions: Path,
    case: str,
    image_file: Path,
    dataset_json: Mapping[str, Any],
    reference_file: Path | None = None,
    frames: int = 1,
) -> CaseViews:
    """Reads the slices of one case. Each file is read once, with no more than a few volumes in memory at a time.

    Args:
        predictions: folder written by ``nndiffseg_predict``.
        case: its id.
        image_file: its first channel. A photograph is shown as the mean of its colours.
        dataset_json: of the dataset.
        reference_file: its true labels, if there are any.
        frames: odd number of positions at which the planes cut the volume.

    Returns:
        Frames of three orthogonal slices, cropped around the segmentation; a 2D image gives one slice, uncropped.

    Raises:
        UserError: a file is missing, truncated or not an image.
    """
    reader, ending = report_reader(predictions, dataset_json, image_file), dataset_json["file_ending"]
    labels, properties = read_image(reader, predictions / f"{case}{ending}", label=True)
    reference = None if reference_file is None else _read_labels(reader, reference_file)
    total_file = uncertainty_map(predictions, case, "total")
    total = np.zeros(labels.shape[1:], np.float32) if total_file is None else read_array(total_file, reader)
    planes = find_planes(labels[0], total, reference, properties, full_scale(dataset_json), frames)
    places = [replace(planes, position=position) for position in (*planes.frames, planes.doubtful)]

    def cut(volume: NDArray) -> list[list[NDArray]]:
        return [place.cut(volume) for place in places]

    maps = {} if total_file is None else {"total": cut(total)}
    del total
    maps |= {kind: cut(read_array(file, reader)) for kind, file in _parts_of_total(predictions, case).items()}
    drawn = sample_files(predictions, case, ending)[: max_samples_drawn(labels.size)]
    samples = [cut(_read_labels(reader, file)) for file in drawn]
    truth = None if reference is None else cut(reference)
    cuts = _Cuts(cut(_read_grey(reader, image_file)), cut(labels[0]), maps, samples, truth)
    shown = [[cuts.view(planes, i, plane) for plane in range(len(planes.names))] for i in range(len(planes.frames))]
    middle = planes.frames.index(planes.position)
    return CaseViews(shown, middle, cuts.view(planes, len(planes.frames), planes.doubtful_plane))


def grey_window(image: NDArray) -> tuple[float, float]:
    """The grey values to draw black and white, not equal: a slice keeps 99 % of its contrast."""
    low, high = np.percentile(image, (0.5, 99.5))
    return float(low), float(max(high, low + 1e-6))


def _read_labels(reader: BaseReaderWriter, file: Path) -> NDArray:
    return read_image(reader, file, label=True)[0][0]


def _read_grey(reader: BaseReaderWriter, file: Path) -> NDArray:
    """First channel ``(*spatial)``, or the mean of the three colours of a 2D image."""
    image, _ = read_image(reader, file)
    photograph = len(image) == 3 and image.shape[1] == 1
    return image.mean(0) if photograph else image[0]


def _parts_of_total(predictions: Path, case: str) -> dict[str, Path]:
    """Files of the aleatoric and the epistemic map; none with one fold, since then the aleatoric map equals the total."""
    files = {kind: uncertainty_map(predictions, case, kind) for kind in ("aleatoric", "epistemic")}
    return {} if files["epistemic"] is None else {kind: file for kind, file in files.items() if file is not None}


def max_samples_drawn(voxels: int) -> int:
    """At most so many samples of a volume of this size are drawn."""
    return min(MAX_SAMPLES, max(4, SAMPLE_VOXELS // voxels))
