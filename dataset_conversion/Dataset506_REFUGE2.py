"""REFUGE2: optic disc and cup in fundus photographs, as regions: the disc contains the cup.

Orlando et al., Med Image Anal 59:101570, 2020; Fang et al., arXiv 2202.08994. The 1200 photographs of REFUGE (g, n:
training; V: validation; T: test) have masks: 0 cup, 128 rim of the disc, 255 background. Files are told by their names, so
the layouts of both challenges and the one with folders ``train``, ``val``, ``test`` are read. Training and validation train
here, as in REFUGE2; T are test images. Patients are not published.

    nndiffseg_convert REFUGE2 FOLDER
"""

from __future__ import annotations

from nndiffseg.dataset_conversion.labels import Values
from nndiffseg.dataset_conversion.published import Published
from nndiffseg.dataset_conversion.source import Part

MASK = r"(?:bmp|png)"


def _part(what: str, letters: str, example: str, *, test: bool = False) -> Part:
    return Part(
        what,
        images=rf"(?P<case>[{letters}]\d{{4}})\.jpg",
        labels=rf"(?P<case>[{letters}]\d{{4}})\.{MASK}",
        count=(400,),
        example=example,
        test=test,
    )


REFUGE2 = Published(
    name="REFUGE2",
    number=506,
    task="optic disc and cup (regions) in fundus photographs, 2D",
    licence="research only, registration",
    reference="Orlando et al., REFUGE Challenge, Med Image Anal 59:101570, 2020; "
    "Fang et al., REFUGE2 Challenge, arXiv 2202.08994",
    get="https://refuge.grand-challenge.org",
    channels=("R", "G", "B"),
    labels={"background": 0, "disc": (1, 2), "cup": (2,)},
    order=(1, 2),
    read_label=Values({255: 0, 128: 1, 0: 2}),
    parts=(
        _part("training images", "gn", "Training400/Glaucoma/g0001.jpg"),
        _part("validation images", "V", "REFUGE-Validation400/V0001.jpg"),
        _part("test images", "T", "Test400/T0001.jpg", test=True),
    ),
)
CONVERTERS = (REFUGE2.converter(),)
