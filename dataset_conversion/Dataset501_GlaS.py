"""GlaS: glands in histology of the colon, MICCAI 2015; patients are told by Grade.csv, where it is there.

Sirinukunwattana et al., Med Image Anal 35:489-502, 2017. The annotation numbers the glands; here all are one label.
Test parts A and B (60 and 20 images) are test images.

    nndiffseg_convert GlaS "Warwick QU Dataset (Released 2016_07_08)"
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from nndiffseg.dataset_conversion.published import Published
from nndiffseg.dataset_conversion.raw_dataset import read_csv
from nndiffseg.dataset_conversion.source import Part, list_files


def by_patient(source: Path, names: Sequence[str]) -> Mapping[str, str]:
    """Patients of Grade.csv; without that file, each image is taken for a patient of its own."""
    tables = [file for path, file in list_files(source).items() if path.endswith("/Grade.csv")]
    if not tables:
        return {}
    patients = {row["name"]: row["patient ID"] for row in read_csv(tables[0], ("name", "patient ID"))}
    return {name: f"patient_{patients[name]}" for name in names if name in patients}


GLAS = Published(
    name="GlaS",
    number=501,
    task="glands in H&E histology of the colon, 2D",
    licence="research only",
    reference="Sirinukunwattana et al., Gland segmentation in colon histology images, Med Image Anal 35:489-502, 2017",
    get="https://warwick.ac.uk/fac/cross_fac/tia/data/glascontest",
    channels=("R", "G", "B"),
    labels={"background": 0, "gland": 1},
    groups=by_patient,
    parts=(
        Part(
            "training images",
            images=r"(?P<case>train_\d+)\.bmp",
            labels=r"(?P<case>train_\d+)_anno\.bmp",
            count=(85,),
            example="train_1.bmp",
        ),
        Part(
            "test images",
            images=r"(?P<case>test[AB]_\d+)\.bmp",
            labels=r"(?P<case>test[AB]_\d+)_anno\.bmp",
            count=(80,),
            example="testA_1.bmp",
            test=True,
        ),
    ),
)
CONVERTERS = (GLAS.converter(),)
