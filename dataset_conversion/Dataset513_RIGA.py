"""RIGA: optic disc and cup in fundus photographs, drawn by six ophthalmologists; regions, since the disc contains the cup.

Almazroa et al., SPIE 10579:105790B, 2018. Each annotation is a copy of the photograph (``image1prime``) with two contours
drawn into it (``image1-1`` to ``image1-6``). The contours are where both differ; filled, the larger is the disc, the
smaller, inside it, the cup. Where that does not give two such regions (contours that touch, a blurred JPEG), the annotation
is left out and said so: a wrong label would be worse. BinRushed1 has no photographs without contours; BinRushed1-Corrected
is read instead.

    nndiffseg_convert RIGA FOLDER     with BinRushed, Magrabia and MESSIDOR
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from nndiffseg.dataset_conversion.labels import UnusableAnnotationError
from nndiffseg.dataset_conversion.pixels import read_picture
from nndiffseg.dataset_conversion.published import Published
from nndiffseg.dataset_conversion.source import Part
from nndiffseg.errors import UserError

#: grey levels by which a contour differs from the photograph in some channel; JPEG changes less
DIFFERENT = 40
#: area inside a contour by that of its line: below, it is not closed, or a blot
OPEN = 1.5
#: part of the disc's area; what is smaller is no cup
SMALLEST = 0.01
#: folder that tells the source apart, and number
FOLDER = r"(?P<case1>BinRushed1-Corrected|BinRushed[2-4]|MagrabiaMale|MagrabiFemale|MESSIDOR)/"
KIND = r"(?:tif|jpg|jpeg|png)"


def disc_and_cup(files: Sequence[Path], image: NDArray) -> NDArray[np.uint8]:
    """1 in the rim of the disc, 2 in the cup, from contours drawn into a copy of the photograph.

    Raises:
        UnusableAnnotationError: there are not two closed contours, one inside the other.
        UserError: the file is broken, or has another size than the photograph.
    """
    (file,) = files
    drawn = read_picture(file, colour=True)
    if drawn.shape != image.shape:
        raise UserError(f"{file} and its photograph differ in size; download it again.")
    disc_cup = _closed(np.abs(drawn.astype(np.int16) - image).max(-1) > DIFFERENT)
    if len(disc_cup) != 2:
        raise UnusableAnnotationError(f"{file.parent.name}/{file.name} has {len(disc_cup)} closed contours instead of two")
    disc, cup = disc_cup
    if (cup & ~disc).any():
        raise UnusableAnnotationError(f"{file.parent.name}/{file.name} has two contours beside each other")
    return disc.astype(np.uint8) + cup


def _closed(lines: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """What closed lines enclose, with the line, the largest first; specks of compression are left out."""
    numbers, _ = ndimage.label(lines, np.ones((3, 3)))
    found = []
    for i, box in enumerate(ndimage.find_objects(numbers), 1):
        line = numbers[box] == i
        filled = ndimage.binary_fill_holes(line)
        if filled.sum() >= OPEN * line.sum():
            found.append((int(filled.sum()), box, filled))
    found.sort(key=lambda f: -f[0])
    regions = []
    for area, box, filled in found:
        if area >= SMALLEST * found[0][0]:
            region = np.zeros(lines.shape, bool)
            region[box] = filled
            regions.append(region)
    return regions


RIGA = Published(
    name="RIGA",
    number=513,
    task="optic disc and cup (regions) in fundus photographs, six annotations, 2D",
    licence="CC BY-NC 4.0",
    reference="Almazroa et al., Retinal fundus images for glaucoma analysis: the RIGA dataset, Proc SPIE 10579:105790B, 2018",
    get="https://deepblue.lib.umich.edu/data/concern/data_sets/3b591905z",
    channels=("R", "G", "B"),
    labels={"background": 0, "disc": (1, 2), "cup": (2,)},
    order=(1, 2),
    raters=6,
    read_label=disc_and_cup,
    parts=(
        Part(
            "photographs",
            images=rf"{FOLDER}image(?P<case2>\d+)prime\.{KIND}",
            labels=rf"{FOLDER}image(?P<case2>\d+)-(?P<rater>[1-6])\.{KIND}",
            count=(750,),
            example="MESSIDOR/image1prime.tif",
            unused=r"BinRushed1/.*",
        ),
    ),
)
CONVERTERS = (RIGA.converter(),)
