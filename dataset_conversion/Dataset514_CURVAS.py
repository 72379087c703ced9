"""CURVAS and CURVAS-PDACVI: abdominal CT with three annotations of three organs, or five of a pancreatic tumour.

Riera-Marín et al., arXiv 2505.08685 (CURVAS, MICCAI 2024) and arXiv 2604.27582 (CURVAS-PDACVI, 2025). Training cases train;
validation and test cases, where they are there, are test images with all annotations in ``labelsTs/CASE``. The first
annotation of PDACVI is PANORAMA's.

    nndiffseg_convert CURVAS FOLDER            with training_set, validation_set, testing_set
    nndiffseg_convert CURVAS-PDACVI FOLDER     with training_set
"""

from __future__ import annotations

from nndiffseg.dataset_conversion.published import Published
from nndiffseg.dataset_conversion.source import Part


def _part(what: str, where: str, case: str, count: int, raters: int, *, test: bool = False) -> Part:
    folder = rf"[^/]*{where}[^/]*/(?:.*/)?(?P<case>{case})/"
    return Part(
        what,
        images=rf"{folder}image\.nii\.gz",
        labels=rf"{folder}annotation_(?P<rater>[1-{raters}])\.nii\.gz",
        count=(count,),
        example=f"{where}ing_set/CASE/image.nii.gz",
        test=test,
    )


CURVAS = Published(
    name="CURVAS",
    number=514,
    task="pancreas, kidneys and liver in CT, three annotations, 3D",
    licence="non-commercial; see the record at Zenodo",
    reference="Riera-Marín et al., CURVAS challenge results, arXiv 2505.08685",
    get="https://curvas.grand-challenge.org",
    channels=("CT",),
    labels={"background": 0, "pancreas": 1, "kidney": 2, "liver": 3},
    ending=".nii.gz",
    raters=3,
    parts=(
        _part("training volumes", "train", r"UKCHLL\d{3}", 20, 3),
        _part("validation volumes", "valid", r"UKCHLL\d{3}", 5, 3, test=True),
        _part("test volumes", "test", r"UKCHLL\d{3}", 65, 3, test=True),
    ),
)
PDACVI = Published(
    name="CURVAS-PDACVI",
    number=515,
    task="pancreatic ductal adenocarcinoma in CT, five annotations, 3D",
    licence="non-commercial; see the record at Zenodo",
    reference="Riera-Marín et al., Assessing Pancreatic Ductal Adenocarcinoma Vascular Invasion, arXiv 2604.27582",
    get="https://zenodo.org/records/15401568",
    channels=("CT",),
    labels={"background": 0, "tumour": 1},
    ending=".nii.gz",
    raters=5,
    parts=(_part("training volumes", "train", r"[0-9A-Za-z_-]+", 40, 5),),
)
CONVERTERS = (CURVAS.converter(), PDACVI.converter())
