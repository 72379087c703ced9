"""MoNuSeg: nuclei in histology of several organs, drawn as polygons; images of one patient stay together.

Kumar et al., IEEE TMI 36(7):1550, 2017 and 39(5):1380, 2020. All nuclei are one label; nuclei that touch grow together, as
in the binary scores that are published. The patient is the first twelve characters of the name (TCGA-XX-YYYY). The training
data have 30 images in the paper and 37 in the download of today.

    nndiffseg_convert MoNuSeg FOLDER     with "MoNuSeg 2018 Training Data" and "MoNuSegTestData" in it
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nndiffseg.dataset_conversion.polygons import fill
from nndiffseg.dataset_conversion.published import Published
from nndiffseg.dataset_conversion.source import Part
from nndiffseg.dataset_conversion.xml_file import read_xml
from nndiffseg.errors import UserError

TRAINING, TEST = r"[^/]*Training[^/]*/(?:.*/)?", r"[^/]*Test[^/]*/(?:.*/)?"


def nuclei(files: Sequence[Path], image: NDArray) -> NDArray[np.uint8]:
    """The polygons of an Aperio ImageScope file, filled.

    Raises:
        UserError: the file is no such one, or holds no polygon.
    """
    (file,) = files
    try:
        outlines = [
            [(float(v.attrib["X"]), float(v.attrib["Y"])) for v in region.iter("Vertex")]
            for region in read_xml(file).iter("Region")
            if region.get("NegativeROA", "0") == "0"
        ]
    except (KeyError, ValueError) as error:
        raise UserError(f"{file} holds a vertex without numbers X and Y ({error}); download it again.") from None
    if not outlines:
        raise UserError(f"{file} holds no polygons of nuclei; download it again.")
    height, width = image.shape[:2]
    return fill(outlines, (height, width))


def by_patient(_: Path, names: Sequence[str]) -> Mapping[str, str]:
    """``TCGA-18-5592-01Z-00-DX1`` -> ``TCGA-18-5592``."""
    return {name: name[:12] for name in names}


MONUSEG = Published(
    name="MoNuSeg",
    number=504,
    task="nuclei in H&E histology of several organs, 2D",
    licence="CC BY-NC-SA 4.0",
    reference="Kumar et al., IEEE TMI 36(7):1550-1560, 2017; Kumar et al., IEEE TMI 39(5):1380-1391, 2020",
    get="https://monuseg.grand-challenge.org/Data",
    channels=("R", "G", "B"),
    labels={"background": 0, "nucleus": 1},
    read_label=nuclei,
    groups=by_patient,
    parts=(
        Part(
            "training images",
            images=rf"{TRAINING}(?P<case>TCGA-[0-9A-Z-]+)\.tif",
            labels=rf"{TRAINING}(?P<case>TCGA-[0-9A-Z-]+)\.xml",
            count=(30, 37),
            example="MoNuSeg 2018 Training Data/Tissue Images/TCGA-18-5592-01Z-00-DX1.tif",
        ),
        Part(
            "test images",
            images=rf"{TEST}(?P<case>TCGA-[0-9A-Z-]+)\.tif",
            labels=rf"{TEST}(?P<case>TCGA-[0-9A-Z-]+)\.xml",
            count=(14,),
            example="MoNuSegTestData/TCGA-2Z-A9J9-01A-01-TS1.tif",
            test=True,
        ),
    ),
)
CONVERTERS = (MONUSEG.converter(),)
