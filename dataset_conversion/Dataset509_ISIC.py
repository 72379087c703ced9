"""ISIC 2016 and 2018: skin lesions in dermoscopy.

Gutman et al., arXiv 1605.01397 (2016, part 1); Codella et al., arXiv 1902.03368, and Tschandl et al., Sci Data 5:180161 (2018,
task 1). Lesions of one person cannot be told from the challenges' files. The 100 validation images of 2018 train here.

    nndiffseg_convert ISIC2016 FOLDER     with ISBI2016_ISIC_Part1_Training_Data, ..._GroundTruth, and the same of the test
    nndiffseg_convert ISIC2018 FOLDER     with ISIC2018_Task1-2_Training_Input, ISIC2018_Task1_Training_GroundTruth, ...
"""

from __future__ import annotations

from nndiffseg.dataset_conversion.labels import Above
from nndiffseg.dataset_conversion.published import Published
from nndiffseg.dataset_conversion.source import Part


def _part(what: str, images: str, labels: str, count: int, *, test: bool = False) -> Part:
    return Part(
        what,
        images=rf"{images}/(?P<case>ISIC_\d{{7}})\.jpg",
        labels=rf"{labels}/(?P<case>ISIC_\d{{7}})_segmentation\.png",
        count=(count,),
        example=f"{images}/ISIC_0000000.jpg",
        test=test,
    )


ISIC2016 = Published(
    name="ISIC2016",
    number=509,
    task="skin lesions in dermoscopy, 2D",
    licence="CC0",
    reference="Gutman et al., Skin Lesion Analysis toward Melanoma Detection (ISBI 2016), arXiv 1605.01397",
    get="https://challenge.isic-archive.com/data/#2016",
    channels=("R", "G", "B"),
    labels={"background": 0, "lesion": 1},
    read_label=Above(127),
    parts=(
        _part("training images", "ISBI2016_ISIC_Part1_Training_Data", "ISBI2016_ISIC_Part1_Training_GroundTruth", 900),
        _part("test images", "ISBI2016_ISIC_Part1_Test_Data", "ISBI2016_ISIC_Part1_Test_GroundTruth", 379, test=True),
    ),
)
ISIC2018 = Published(
    name="ISIC2018",
    number=510,
    task="skin lesions in dermoscopy, 2D",
    licence="CC BY-NC 4.0",
    reference="Codella et al., Skin Lesion Analysis Toward Melanoma Detection 2018, arXiv 1902.03368; "
    "Tschandl et al., The HAM10000 dataset, Sci Data 5:180161, 2018",
    get="https://challenge.isic-archive.com/data/#2018",
    channels=("R", "G", "B"),
    labels={"background": 0, "lesion": 1},
    read_label=Above(127),
    parts=(
        _part("training images", "ISIC2018_Task1-2_Training_Input", "ISIC2018_Task1_Training_GroundTruth", 2594),
        _part("validation images", "ISIC2018_Task1-2_Validation_Input", "ISIC2018_Task1_Validation_GroundTruth", 100),
        _part("test images", "ISIC2018_Task1-2_Test_Input", "ISIC2018_Task1_Test_GroundTruth", 1000, test=True),
    ),
)
CONVERTERS = (ISIC2016.converter(), ISIC2018.converter())
