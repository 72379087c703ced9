"""Hippocampus: MRI crops of the Medical Segmentation Decathlon, Task04, with folds that divide no subject.

Antonelli et al., Nat Commun 13:4128, 2022. ``nnUNetv2_convert_MSD_dataset`` writes the same images and labels with random
folds. Cases n (odd) and n + 1 look like the two sides of one person: intensity statistics agree within 5 % for 62 % of such
pairs and for about 5 % of others. So they are one group here.

    nndiffseg_convert Hippocampus Task04_Hippocampus
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from nndiffseg.dataset_conversion.published import Published
from nndiffseg.dataset_conversion.source import Part

FILE = r"(?P<case>hippocampus_\d{3})\.nii\.gz"


def by_subject(_: Path, names: Sequence[str]) -> Mapping[str, str]:
    """``hippocampus_003`` and ``hippocampus_004`` -> ``subject_002``."""
    return {name: f"subject_{(int(name[-3:]) + 1) // 2:03d}" for name in names}


HIPPOCAMPUS = Published(
    name="Hippocampus",
    number=4,
    task="anterior and posterior hippocampus in MRI, 3D",
    licence="CC BY-SA 4.0",
    reference="Antonelli et al., The Medical Segmentation Decathlon, Nat Commun 13:4128, 2022",
    get="http://medicaldecathlon.com, Task04_Hippocampus.tar",
    channels=("MRI",),
    labels={"background": 0, "anterior": 1, "posterior": 2},
    ending=".nii.gz",
    groups=by_subject,
    parts=(
        Part(
            "training images",
            images=f"imagesTr/{FILE}",
            labels=f"labelsTr/{FILE}",
            count=(260,),
            example="imagesTr/hippocampus_001.nii.gz",
        ),
        Part(
            "test images",
            images=f"imagesTs/{FILE}",
            labels=None,
            count=(130,),
            example="imagesTs/hippocampus_002.nii.gz",
            test=True,
        ),
    ),
)
CONVERTERS = (HIPPOCAMPUS.converter(),)
