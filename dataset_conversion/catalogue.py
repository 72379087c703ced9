"""All conversions by name: those of the files beside this one, and those that nnU-Net brings."""

from __future__ import annotations

import importlib
import pkgutil
import re
from dataclasses import dataclass

import nndiffseg.dataset_conversion as package
from nndiffseg.dataset_conversion.raw_dataset import Converter

#: nnU-Net's converters are modules of this package
NNUNET = "python -m nnunetv2.dataset_conversion"


@dataclass(frozen=True)
class Elsewhere:
    """A dataset that nnU-Net's own converters read; ``how`` is what to type, with SOURCE for the folder."""

    name: str
    task: str
    licence: str
    get: str
    how: str


def _edited(module: str, variable: str = "brats_data_dir") -> str:
    return f"write its folder into {variable} of nnunetv2/dataset_conversion/{module}.py, then {NNUNET}.{module}"


BY_NNUNET = (
    Elsewhere(
        "ACDC",
        "heart (2 ventricles, myocardium) in cine MRI",
        "research only, registration",
        "https://humanheart-project.creatis.insa-lyon.fr/database",
        f"{NNUNET}.Dataset027_ACDC -i SOURCE",
    ),
    Elsewhere(
        "AMOS22",
        "15 abdominal organs in CT, or in CT and MRI",
        "CC BY 4.0",
        "https://zenodo.org/records/7262581",
        f"{NNUNET}.Dataset218_Amos2022_task1 SOURCE (CT) or {NNUNET}.Dataset219_Amos2022_task2 SOURCE (CT and MRI)",
    ),
    Elsewhere(
        "BraTS18",
        "brain tumour in 4 MRI sequences",
        "registration",
        "https://www.med.upenn.edu/sbia/brats2018/data.html",
        _edited("Dataset042_BraTS18"),
    ),
    Elsewhere(
        "BraTS19",
        "brain tumour in 4 MRI sequences",
        "registration",
        "https://www.med.upenn.edu/cbica/brats2019/data.html",
        _edited("Dataset043_BraTS19"),
    ),
    Elsewhere(
        "BraTS21",
        "brain tumour in 4 MRI sequences",
        "registration",
        "https://www.synapse.org/brats2021",
        _edited("Dataset137_BraTS21"),
    ),
    Elsewhere(
        "BraTS24",
        "brain tumour after treatment in 4 MRI sequences",
        "registration",
        "https://www.synapse.org/brats2024",
        _edited("Dataset226_BraTS2024-BraTS-GLI", "extracted_BraTS2024_GLI_dir"),
    ),
    Elsewhere(
        "KiTS23",
        "kidney, tumour and cyst in CT",
        "CC BY-NC-SA 4.0",
        "https://github.com/neheller/kits23",
        f"{NNUNET}.Dataset220_KiTS2023 SOURCE",
    ),
    Elsewhere(
        "MSD",
        "ten tasks of the Medical Segmentation Decathlon (Task04: Hippocampus here, for its grouped folds)",
        "CC BY-SA 4.0",
        "http://medicaldecathlon.com",
        "nnUNetv2_convert_MSD_dataset -i SOURCE",
    ),
)


def converters() -> dict[str, Converter]:
    """The conversions of this package by name, sorted as a person would."""
    modules = sorted(m.name for m in pkgutil.iter_modules(package.__path__) if re.fullmatch(r"Dataset\d+_\w+", m.name))
    found = [c for m in modules for c in importlib.import_module(f"{package.__name__}.{m}").CONVERTERS]
    return {c.name: c for c in sorted(found, key=lambda c: c.name.casefold())}
