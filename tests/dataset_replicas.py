"""Small copies of the public datasets' layouts: a few cases of 16x16 with the publishers' folders and names."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from replica_files import SIDE, blocks, colours, ct, grey, picture, ring, square, volume


@dataclass(frozen=True)
class Replica:
    """How to make a source, and what comes of it.

    Attributes:
        make: writes it into a folder.
        training, test: numbers of cases that the conversion writes.
        image: path of a training image, for tests that take it away.
        label: path of one of its labels.
        extra: path of a file that is none of the dataset's.
        groups: number of groups in cases.csv, None where there is no such file.
    """

    make: Callable[[Path], None]
    training: int
    test: int
    image: str
    label: str
    extra: str
    groups: int | None = None


def hippocampus(folder: Path) -> None:
    for n in (1, 3, 4, 6, 7, 8, 11, 14, 15):
        volume(folder / f"imagesTr/hippocampus_{n:03d}.nii.gz", ct(n))
        volume(folder / f"labelsTr/hippocampus_{n:03d}.nii.gz", blocks((1, 2)))
        (folder / f"imagesTr/._hippocampus_{n:03d}.nii.gz").write_bytes(b"of macOS")
    volume(folder / "imagesTs/hippocampus_002.nii.gz", ct(2))
    (folder / "dataset.json").write_text("{}")


def glas(folder: Path) -> None:
    inner = folder / "Warwick QU Dataset (Released 2016_07_08)"
    rows = []
    for n, name in enumerate([*(f"train_{i}" for i in range(1, 8)), "testA_1", "testB_2"]):
        picture(inner / f"{name}.bmp", colours(n))
        picture(inner / f"{name}_anno.bmp", square(n + 1) + square(200, 12, 14))
        rows.append((name, f" {n // 2 + 1}", " benign", " adenoma"))
    with (inner / "Grade.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("name", "patient ID", " grade (GlaS)", " grade (S)"), *rows])


def knee(folder: Path) -> None:
    for n in range(1, 4):
        volume(folder / f"Data/Knee/Image/Case{n}.nii.gz", ct(n))
        volume(folder / f"Data/Knee/Label/Case{n}_label.nii.gz", blocks((1, 2)).astype(np.int8))
    picture(folder / "Data/GlaS/Image/Case1.bmp", colours(0))


def camus(folder: Path) -> None:
    for n in range(1, 7):
        place = folder / f"database_nifti/patient{n:04d}"
        for view in ("2CH_ED", "2CH_ES", "4CH_ED", "4CH_ES"):
            volume(place / f"patient{n:04d}_{view}.nii.gz", grey(n), (0.3, 0.2))
            volume(
                place / f"patient{n:04d}_{view}_gt.nii.gz", square(3, 2, 6) + square(1, 8, 12) + square(2, 13, 15), (0.3, 0.2)
            )
        volume(place / f"patient{n:04d}_2CH_half_sequence.nii.gz", ct(n))
    split = folder / "database_split/subgroup_testing.txt"
    split.parent.mkdir()
    split.write_text("patient0006\n")


def _outlines(file: Path, outlines: Sequence[Sequence[tuple[float, float]]]) -> None:
    regions = "".join(
        f'<Region Id="{i}" NegativeROA="0"><Vertices>'
        + "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in outline)
        + "</Vertices></Region>"
        for i, outline in enumerate(outlines)
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        f'<Annotations MicronsPerPixel="0.25"><Annotation Id="1"><Regions>{regions}</Regions></Annotation></Annotations>'
    )


def monuseg(folder: Path) -> None:
    square_, bar = [(2, 3), (6, 3), (6, 8), (2, 8)], [(9.4, 0), (9.6, 0), (9.6, 15), (9.4, 15)]
    training = folder / "MoNuSeg 2018 Training Data"
    for n, patient in enumerate(("18-5592", "18-5592", "21-5784", "A7-A13E", "G9-6336", "G9-6336", "HE-7128")):
        name = f"TCGA-{patient}-01Z-00-DX{n}"
        picture(training / f"Tissue Images/{name}.tif", colours(n))
        _outlines(training / f"Annotations/{name}.xml", [square_, bar])
    picture(folder / "MoNuSegTestData/TCGA-2Z-A9J9-01A-01-TS1.tif", colours(99))
    _outlines(folder / "MoNuSegTestData/TCGA-2Z-A9J9-01A-01-TS1.xml", [square_])


def lungs(folder: Path) -> None:
    for n in (1, 2):
        name = f"MCUCXR_{n:04d}_{n - 1}.png"
        picture(folder / "MontgomerySet/CXR_png" / name, grey(n))
        picture(folder / "MontgomerySet/ManualMask/leftMask" / name, square(255, 1, 5))
        picture(folder / "MontgomerySet/ManualMask/rightMask" / name, square(255, 8, 12))
    for n in (1, 2, 3):
        picture(folder / f"ChinaSet_AllFiles/CXR_png/CHNCXR_{n:04d}_0.png", colours(n))
        if n < 3:  # one has no mask, as 96 of the real ones
            picture(folder / f"mask/CHNCXR_{n:04d}_0_mask.png", square(255))


def refuge(folder: Path) -> None:
    mask = square(128, 3, 12, background=255)
    mask[5:8, 5:8] = 0
    for image, label in (
        ("Training400/Glaucoma/g0001.jpg", "Annotation-Training400/Disc_Cup_Masks/Glaucoma/g0001.bmp"),
        ("Training400/Non-Glaucoma/n0001.jpg", "Annotation-Training400/Disc_Cup_Masks/Non-Glaucoma/n0001.bmp"),
        ("REFUGE-Validation400/V0001.jpg", "REFUGE-Validation400-GT/Disc_Cup_Masks/V0001.bmp"),
        ("Test400/T0001.jpg", "REFUGE-Test-GT/Disc_Cup_Masks/G/T0001.bmp"),
    ):
        picture(folder / image, colours(len(image)))
        picture(folder / label, mask)


def tn3k(folder: Path) -> None:
    for part, numbers in (("trainval", (0, 1, 2)), ("test", (0,))):
        for n in numbers:
            picture(folder / f"{part}-image/{n:04d}.jpg", colours(n))
            picture(folder / f"{part}-mask/{n:04d}.jpg", square(255))
    for k in range(5):
        (folder / f"tn3k-trainval-fold{k}.json").write_text(json.dumps({"train": [0, 1], "val": [2]}))


def ddti(folder: Path) -> None:
    for n in (1, 2, 30):
        picture(folder / f"1_or_data/image/{n:04d}.PNG", grey(n))
        picture(folder / f"1_or_data/mask/{n:04d}.PNG", square(255))
        picture(folder / f"2_preprocessed_data/stage1/p_image/{n:04d}.PNG", grey(n))
        picture(folder / f"2_preprocessed_data/stage1/p_mask/{n:04d}.PNG", square(255))


def isic2016(folder: Path) -> None:
    for part, numbers in (("Training", (0, 7)), ("Test", (3,))):
        for n in numbers:
            picture(folder / f"ISBI2016_ISIC_Part1_{part}_Data/ISIC_{n:07d}.jpg", colours(n))
            picture(folder / f"ISBI2016_ISIC_Part1_{part}_GroundTruth/ISIC_{n:07d}_Segmentation.png", square(255))


def isic2018(folder: Path) -> None:
    for part, n in (("Training", 0), ("Training", 12), ("Validation", 1), ("Test", 2)):
        picture(folder / f"ISIC2018_Task1-2_{part}_Input/ISIC_{n:07d}.jpg", colours(n))
        picture(folder / f"ISIC2018_Task1_{part}_GroundTruth/ISIC_{n:07d}_segmentation.png", square(255))


def btcv(folder: Path) -> None:
    for n in (1, 2, 40):
        volume(folder / f"RawData/Training/img/img{n:04d}.nii.gz", ct(n))
        volume(folder / f"RawData/Training/label/label{n:04d}.nii.gz", blocks(range(1, 14)))
    volume(folder / "RawData/Testing/img/img0061.nii.gz", ct(61))


def riga(folder: Path) -> None:
    for place in ("BinRushed/BinRushed1-Corrected", "Magrabia/MagrabiFemale", "MESSIDOR"):
        for n in (1, 2):
            image = np.full((SIDE, SIDE, 3), 120, np.uint8)
            picture(folder / place / f"image{n}prime.tif", image)
            for rater in range(1, 7):
                name = f"{'I' if rater == 1 else 'i'}mage{n}-{rater}.tif"  # as some are called
                picture(folder / place / name, ring(ring(image, 2, 14 - rater % 2), 5, 10))
    picture(folder / "BinRushed/BinRushed1/image1-1.jpg", colours(0))


def curvas(folder: Path) -> None:
    for part, numbers in (("training_set", (1, 2, 5)), ("validation_set", (7,)), ("testing_set", (9,))):
        for n in numbers:
            place = folder / part / f"UKCHLL{n:03d}"
            volume(place / "image.nii.gz", ct(n))
            for rater in (1, 2, 3):
                volume(place / f"annotation_{rater}.nii.gz", blocks((1, 2, 3), shift=rater))


def pdacvi(folder: Path) -> None:
    for n in (1, 2):
        place = folder / "training_set" / f"PDAC_{n:02d}"
        volume(place / "image.nii.gz", ct(n))
        for rater in range(1, 6):
            volume(place / f"annotation_{rater}.nii.gz", blocks((1,), shift=rater % 3))


def qubiq(folder: Path) -> None:
    """Kidney, the first two tasks of brain tumours, and the pancreas with two scans of one patient."""
    for part, cases in (("training_data_v3_QC", ("case01", "case02")), ("validation_data_qubiq2021_QC", ("case21",))):
        for case in cases:
            place = folder / part / "kidney" / ("Training" if "train" in part else "Validation") / case
            volume(place / "image.nii.gz", grey(1).astype(np.float32))
            for rater in (1, 2, 3):
                volume(place / f"task01_seg{rater:02d}.nii.gz", square(1, 4 + rater).astype(np.float32))
    for case in ("case01", "case02"):
        place = folder / "training_data_v3_QC" / "brain-tumor" / "Training" / case
        volume(place / "image.nii.gz", ct(3))
        for task in (1, 2):
            for rater in (1, 2, 3):
                volume(place / f"task{task:02d}_seg{rater:02d}.nii.gz", square(1, 4 + rater, 9 + task))
    for case in ("case1-1", "case1-2", "case2-1", "case3-1"):
        place = folder / "training_data_v3_QC" / "pancreas" / case
        volume(place / "image.nii.gz", ct(5))
        for rater in (1, 2):
            volume(place / f"task01_seg{rater:02d}.nii.gz", blocks((1,), shift=rater))


def _volumes(make: Callable[[Path], None], training: int, test: int, case: str, labels: str, groups: int) -> Replica:
    """A dataset with a folder for each case."""
    return Replica(make, training, test, f"{case}/image.nii.gz", f"{case}/{labels}.nii.gz", f"{case}/mean.nii.gz", groups)


_BTCV, _QUBIQ = "RawData/Training", "training_data_v3_QC"
_GLAS = "Warwick QU Dataset (Released 2016_07_08)"
_MONUSEG = "MoNuSeg 2018 Training Data"
REPLICAS = {
    "Hippocampus": Replica(
        hippocampus,
        9,
        1,
        "imagesTr/hippocampus_003.nii.gz",
        "labelsTr/hippocampus_003.nii.gz",
        "imagesTr/hippocampus_003 (copy).nii.gz",
        7,
    ),
    "GlaS": Replica(glas, 7, 2, f"{_GLAS}/train_3.bmp", f"{_GLAS}/train_3_anno.bmp", f"{_GLAS}/train 3.bmp", 4),
    "LDSegKnee": Replica(
        knee, 3, 0, "Data/Knee/Image/Case2.nii.gz", "Data/Knee/Label/Case2_label.nii.gz", "Data/Knee/Image/notes.nii.gz"
    ),
    "CAMUS": Replica(
        camus,
        20,
        4,
        "database_nifti/patient0002/patient0002_4CH_ES.nii.gz",
        "database_nifti/patient0002/patient0002_4CH_ES_gt.nii.gz",
        "database_nifti/patient0002/patient0002_4CH_mid.nii.gz",
        5,
    ),
    "MoNuSeg": Replica(
        monuseg,
        7,
        1,
        f"{_MONUSEG}/Tissue Images/TCGA-21-5784-01Z-00-DX2.tif",
        f"{_MONUSEG}/Annotations/TCGA-21-5784-01Z-00-DX2.xml",
        f"{_MONUSEG}/Tissue Images/normalised.tif",
        5,
    ),
    "ChestXrayLungs": Replica(
        lungs,
        4,
        0,
        "MontgomerySet/CXR_png/MCUCXR_0001_0.png",
        "MontgomerySet/ManualMask/leftMask/MCUCXR_0001_0.png",
        "MontgomerySet/CXR_png/thumb.png",
    ),
    "REFUGE2": Replica(
        refuge,
        3,
        1,
        "Training400/Glaucoma/g0001.jpg",
        "Annotation-Training400/Disc_Cup_Masks/Glaucoma/g0001.bmp",
        "Training400/Glaucoma/g0001 (1).jpg",
    ),
    "TN3K": Replica(tn3k, 3, 1, "trainval-image/0001.jpg", "trainval-mask/0001.jpg", "trainval-image/1.jpg"),
    "DDTI": Replica(ddti, 3, 0, "1_or_data/image/0030.PNG", "1_or_data/mask/0030.PNG", "1_or_data/image/0030b.PNG"),
    "ISIC2016": Replica(
        isic2016,
        2,
        1,
        "ISBI2016_ISIC_Part1_Training_Data/ISIC_0000007.jpg",
        "ISBI2016_ISIC_Part1_Training_GroundTruth/ISIC_0000007_Segmentation.png",
        "ISBI2016_ISIC_Part1_Training_Data/ISIC_0000007_downsampled.jpg",
    ),
    "ISIC2018": Replica(
        isic2018,
        3,
        1,
        "ISIC2018_Task1-2_Training_Input/ISIC_0000012.jpg",
        "ISIC2018_Task1_Training_GroundTruth/ISIC_0000012_segmentation.png",
        "ISIC2018_Task1-2_Training_Input/cover.jpg",
    ),
    "BTCV": Replica(btcv, 3, 1, f"{_BTCV}/img/img0002.nii.gz", f"{_BTCV}/label/label0002.nii.gz", f"{_BTCV}/img/atlas.nii.gz"),
    "RIGA": Replica(riga, 36, 0, "MESSIDOR/image2prime.tif", "MESSIDOR/?mage2-*.tif", "MESSIDOR/image2-7.tif", 6),
    "CURVAS": _volumes(curvas, 9, 2, "training_set/UKCHLL002", "annotation_*", 3),
    "CURVAS-PDACVI": _volumes(pdacvi, 10, 0, "training_set/PDAC_02", "annotation_*", 2),
    "QUBIQ-kidney": _volumes(qubiq, 6, 1, f"{_QUBIQ}/kidney/Training/case01", "task01_*", 2),
    "QUBIQ-brain-tumor-2": _volumes(qubiq, 6, 0, f"{_QUBIQ}/brain-tumor/Training/case01", "task02_*", 2),
    "QUBIQ-pancreas": _volumes(qubiq, 8, 0, f"{_QUBIQ}/pancreas/case2-1", "task01_*", 3),
}
