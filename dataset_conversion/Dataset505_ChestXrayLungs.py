"""Lungs in chest radiographs: Montgomery County, Shenzhen and JSRT, or those of them that are there.

Jaeger et al., Quant Imaging Med Surg 4(6):475, 2014 (Montgomery: one mask for each lung; Shenzhen: 566 of its 662
radiographs have masks by Stirenko et al., the others are left out); Shiraishi et al., AJR 174:71, 2000, with the masks of
van Ginneken et al., Med Image Anal 10:19, 2006 (JSRT: raw 2048x2048 images of 12 bits, masks of 1024x1024 as GIF, doubled
here). Both lungs are one label.

    nndiffseg_convert ChestXrayLungs FOLDER     with any of MontgomerySet, ChinaSet_AllFiles (and mask), JSRT (and SCR)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nndiffseg.dataset_conversion.labels import read_label
from nndiffseg.dataset_conversion.pixels import read_picture
from nndiffseg.dataset_conversion.published import OpenCase, Published, open_picture
from nndiffseg.dataset_conversion.source import Part, SourceCase, find_cases, parts_present
from nndiffseg.errors import UserError

JSRT_SIDE = 2048
#: 12 bits of optical density, where lungs are high: turned round, as radiographs are shown
JSRT_WHITE = 4095


def find(source: Path, _: bool) -> tuple[list[SourceCase], list[str]]:
    """The radiographs of the parts that are there; only these are counted."""
    return find_cases("ChestXrayLungs", parts_present(PARTS, source) or PARTS, source, 1)


def lungs(files: Sequence[Path], image: NDArray) -> NDArray[np.uint8]:
    """Both lungs; a mask of half the height and width, as JSRT has it, is doubled."""
    small = np.broadcast_to(np.uint8(0), (image.shape[0] // 2, image.shape[1] // 2))
    masks = []
    for file in files:
        half = read_picture(file, colour=False).shape == small.shape
        mask = read_label(file, small if half else image) > 0
        masks.append(mask.repeat(2, 0).repeat(2, 1) if half else mask)
    return np.logical_or.reduce(masks).astype(np.uint8)


def read(dataset: Published, case: SourceCase) -> Iterator[OpenCase]:
    """A radiograph; JSRT's are raw big-endian numbers of 16 bits."""
    if case.image.suffix.lower() != ".img":
        yield from open_picture(dataset, case)
        return
    wanted = 2 * JSRT_SIDE**2
    if (size := case.image.stat().st_size) != wanted:
        raise UserError(f"{case.image} has {size} bytes and a radiograph of JSRT {wanted}; download it again.")
    stored = np.fromfile(case.image, ">u2").reshape(JSRT_SIDE, JSRT_SIDE)
    image = (JSRT_WHITE - np.minimum(stored, JSRT_WHITE)).astype(np.uint16)
    labels = {annotation: dataset.read_label(files, image) for annotation, files in case.labels.items()}
    yield OpenCase(case.name, [image], labels, case.group, case.test)


PARTS = (
    Part(
        "radiographs of Montgomery",
        images=r"CXR_png/(?P<case>MCUCXR_\d{4}_[01])\.png",
        labels=r"ManualMask/(?:left|right)Mask/(?P<case>MCUCXR_\d{4}_[01])\.png",
        count=(138,),
        example="MontgomerySet/CXR_png/MCUCXR_0001_0.png",
        pieces=2,
    ),
    Part(
        "radiographs of Shenzhen",
        images=r"CXR_png/(?P<case>CHNCXR_\d{4}_[01])\.png",
        labels=r"masks?/(?P<case>CHNCXR_\d{4}_[01])_mask\.png",
        count=(662,),
        example="ChinaSet_AllFiles/CXR_png/CHNCXR_0001_0.png",
        some_unlabelled=True,
    ),
    Part(
        "radiographs of JSRT",
        images=r"(?P<case>JPC[LN]N\d{3})\.IMG",
        labels=r"masks/(?:left|right) lung/(?P<case>JPC[LN]N\d{3})\.gif",
        count=(247,),
        example="JSRT/JPCLN001.IMG",
        pieces=2,
    ),
)
LUNGS = Published(
    name="ChestXrayLungs",
    number=505,
    task="both lungs in chest radiographs, 2D",
    licence="Montgomery, Shenzhen: free with acknowledgement; JSRT: registration",
    reference="Jaeger et al., Quant Imaging Med Surg 4(6):475-477, 2014; Shiraishi et al., AJR 174(1):71-74, 2000; "
    "van Ginneken et al., Med Image Anal 10(1):19-40, 2006; Stirenko et al., arXiv 1803.01199",
    get="https://lhncbc.nlm.nih.gov/LHC-downloads/downloads.html; http://db.jsrt.or.jp/eng.php",
    channels=("X-ray",),
    labels={"background": 0, "lung": 1},
    read_label=lungs,
    cases=find,
    open=read,
)
CONVERTERS = (LUNGS.converter(),)
