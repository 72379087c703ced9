"""How label files are read: functions of the files of one annotation and of the pixels of its image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nndiffseg.dataset_conversion.pixels import read_picture
from nndiffseg.errors import UserError

#: files of one annotation, pixels of its image ``(H, W)`` or ``(H, W, 3)`` -> labels ``(H, W)``
LabelReader = Callable[[Sequence[Path], NDArray], NDArray[np.uint8]]


class UnusableAnnotationError(UserError):
    """An annotation that cannot be made out. It is left out, and named; any other fault of a file ends the work."""


@dataclass(frozen=True)
class Above:
    """1 where any of the files is above a threshold: masks of 0 and 255, and those that JPEG has blurred."""

    threshold: int = 0

    def __call__(self, files: Sequence[Path], image: NDArray) -> NDArray[np.uint8]:
        masks = [read_label(f, image) > self.threshold for f in files]
        return np.logical_or.reduce(masks).astype(np.uint8)


@dataclass(frozen=True)
class Values:
    """Grey values that stand for labels."""

    labels: Mapping[int, int]

    def __call__(self, files: Sequence[Path], image: NDArray) -> NDArray[np.uint8]:
        (file,) = files
        values = read_label(file, image)
        return map_values(values, self.labels, file)


def read_label(file: Path, image: NDArray) -> NDArray:
    """A grey image of the size of the image that it belongs to.

    Raises:
        UserError: it is none, or has another size.
    """
    label = read_picture(file, colour=False)
    if label.shape != image.shape[:2]:
        sizes = " against ".join(f"{h}x{w}" for h, w in (label.shape, image.shape[:2]))
        raise UserError(f"{file} and its image differ in size ({sizes}); replace it by the label of that image.")
    return label


def map_values(values: NDArray, labels: Mapping[int, int], file: Path) -> NDArray[np.uint8]:
    """Replaces values by labels.

    Raises:
        UserError: there is a value without a label.
    """
    result = np.zeros(values.shape, np.uint8)
    known = np.zeros(values.shape, bool)
    for value, label in labels.items():
        here = values == value
        result[here] = label
        known |= here
    if not known.all():
        wanted = ", ".join(map(str, sorted(labels)))
        raise UserError(f"{file} holds the value {values[~known].flat[0]:g}, and labels here are {wanted}; replace it.")
    return result
