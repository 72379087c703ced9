"""QUBIQ 2020 and 2021: nine binary tasks in MRI and CT, each image annotated by two to seven experts.

Li et al., arXiv 2405.18435. Each task is a dataset of its own, since the tasks of one image overlap. Training cases train;
validation cases, where they are there, are test images with all annotations in ``labelsTs/CASE``. ``case1-1`` and
``case1-2`` of the pancreas are one patient.

    nndiffseg_convert QUBIQ-kidney FOLDER     with training_data_v3_QC/kidney/Training/case01/... or the like
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from nndiffseg.dataset_conversion.published import Published
from nndiffseg.dataset_conversion.source import Part

MRI, FOUR_SEQUENCES, CT = ("MRI",), ("T1", "T1c", "T2", "FLAIR"), ("CT",)


def by_patient(_: Path, names: Sequence[str]) -> Mapping[str, str]:
    """``case13-1`` -> ``case13``."""
    return {name: name.split("-")[0] for name in names}


def _part(what: str, where: str, organ: str, task: int, count: tuple[int, ...], *, test: bool = False) -> Part:
    folder = rf"(?:.*/)?[^/]*{where}[^/]*/(?:.*/)?{organ}/(?:.*/)?|(?:.*/)?{organ}/(?:.*/)?[^/]*{where}[^/]*/(?:.*/)?"
    return Part(
        what,
        images=rf"(?:{folder})(?P<case>case\d+(?:-\d+)?)/image\.nii\.gz",
        labels=rf"(?:{folder})(?P<case>case\d+(?:-\d+)?)/task{task:02d}_seg(?P<rater>\d\d)\.nii\.gz",
        count=count,
        example=f"{organ}/{what.split()[0].capitalize()}/case01/image.nii.gz",
        test=test,
        unused=rf"(?:{folder})case\d+(?:-\d+)?/task\d\d_seg\d\d\.nii\.gz",
    )


def _task(
    number: int,
    organ: str,
    title: str,
    channels: tuple[str, ...],
    raters: int,
    counts: tuple[tuple[int, ...], tuple[int, ...]],
    task: int = 1,
    of: int = 1,
) -> Published:
    name = f"QUBIQ-{organ}" + (f"-{task}" if of > 1 else "")
    structure = title if of == 1 else f"{title} (task {task})"
    return Published(
        name=name,
        number=number,
        task=f"{structure}, {raters} annotations",
        licence="non-commercial; see the challenge's terms",
        reference="Li et al., QUBIQ: Uncertainty Quantification for Biomedical Image Segmentation Challenge, arXiv 2405.18435",
        get="https://qubiq21.grand-challenge.org/participation",
        channels=channels,
        labels={"background": 0, organ.replace("-", " "): 1},
        ending=".nii.gz",
        raters=raters,
        groups=by_patient,
        parts=(
            _part("training cases", "train", organ, task, counts[0]),
            _part("validation cases", "valid", organ, task, counts[1], test=True),
        ),
    )


QUBIQ = (
    _task(520, "brain-growth", "growing brain in MRI of newborns, 2D", MRI, 7, ((34,), (5,))),
    *(
        _task(520 + t, "brain-tumor", "brain tumour in 4 MRI sequences, 2D", FOUR_SEQUENCES, 3, ((28,), (4,)), t, 3)
        for t in (1, 2, 3)
    ),
    _task(524, "kidney", "kidney in CT, 2D", CT, 3, ((20,), (4,))),
    *(_task(524 + t, "prostate", "prostate in MRI, 2D", MRI, 6, ((48,), (7,)), t, 2) for t in (1, 2)),
    _task(527, "pancreas", "pancreas in CT, 3D", CT, 2, ((40,), ())),
    _task(528, "pancreatic-lesion", "pancreatic lesion in CT, 3D", CT, 2, ((22,), ())),
)
CONVERTERS = tuple(task.converter() for task in QUBIQ)
