"""CAMUS: the heart in two views of ultrasound at end-diastole and end-systole; the four images of a patient stay together.

Leclerc et al., IEEE TMI 38(9):2198-2210, 2019. The release as NIfTI (``database_nifti``). Patients that
``database_split/subgroup_testing.txt`` lists are test images, if the file is there; without it, all train. Sequences are
left out.

    nndiffseg_convert CAMUS CAMUS_public
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from nndiffseg.dataset_conversion.published import Published
from nndiffseg.dataset_conversion.source import Part, SourceCase, find_cases, list_files

VIEW = r"(?P<case>patient\d{4}_(?:2CH|4CH)_(?:ED|ES))"
PARTS = (
    Part(
        "images",
        images=rf"patient\d{{4}}/{VIEW}\.nii\.gz",
        labels=rf"patient\d{{4}}/{VIEW}_gt\.nii\.gz",
        count=(2000,),
        example="database_nifti/patient0001/patient0001_2CH_ED.nii.gz",
        unused=r"patient\d{4}_(?:2CH|4CH)_half_sequence(?:_gt)?\.nii\.gz",
    ),
)


def find(source: Path, _: bool) -> tuple[list[SourceCase], list[str]]:
    """All images, those of the official test patients as test images."""
    cases, remarks = find_cases("CAMUS", PARTS, source, 1)
    lists = [file for path, file in list_files(source).items() if path.endswith("/subgroup_testing.txt")]
    tested = set(lists[0].read_text(encoding="utf8", errors="replace").split()) if lists else set()
    return [replace(c, test=c.name.split("_")[0] in tested) for c in cases], remarks


def by_patient(_: Path, names: Sequence[str]) -> Mapping[str, str]:
    """``patient0001_2CH_ED`` -> ``patient0001``."""
    return {name: name.split("_")[0] for name in names}


CAMUS = Published(
    name="CAMUS",
    number=503,
    task="left ventricle, myocardium and left atrium in echocardiography, 2D",
    licence="CC BY-NC-SA 4.0",
    reference="Leclerc et al., Deep Learning for Segmentation Using an Open Large-Scale Dataset in 2D Echocardiography, "
    "IEEE TMI 38(9):2198-2210, 2019",
    get="https://www.creatis.insa-lyon.fr/Challenge/camus",
    channels=("ultrasound",),
    labels={"background": 0, "left ventricle": 1, "myocardium": 2, "left atrium": 3},
    ending=".nii.gz",
    groups=by_patient,
    cases=find,
)
CONVERTERS = (CAMUS.converter(),)
