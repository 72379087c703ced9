"""Files of what validations observed of their cases, a megabyte or two each, so that folds can be calibrated together."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nndiffseg.calibration.tables import LARGEST
from nndiffseg.calibration.voxels import CaseVoxels, LabelKind
from nndiffseg.data.files import write_atomically
from nndiffseg.data.npz import NPZ_ERRORS, check_npz
from nndiffseg.errors import UserError

FOLDER = "voxels"


def write_voxels(case: CaseVoxels, folder: Path) -> None:
    """Writes ``CASE.npz``."""
    arrays: dict[str, Any] = {f.name: np.asarray(getattr(case, f.name)) for f in fields(case) if f.name != "case"}
    with write_atomically(folder / f"{case.case}.npz") as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)


def read_voxels(folder: Path, cases: list[str], kind: LabelKind) -> list[CaseVoxels] | None:
    """Those of some cases; None where one has no file, as in folds that an earlier version validated.

    Raises:
        UserError: a file cannot be read, or is not of such labels.
    """
    files = [folder / f"{case}.npz" for case in cases]
    return [_read(f, kind) for f in files] if all(f.is_file() for f in files) else None


def _read(file: Path, kind: LabelKind) -> CaseVoxels:
    try:
        check_npz(file, LARGEST)
        with np.load(file, allow_pickle=False) as content:
            a = {f.name: content[f.name] for f in fields(CaseVoxels) if f.name not in ("case", "complete")}
            complete = bool(content["complete"]) if "complete" in content else True  # of earlier versions
        tensors = {k: torch.from_numpy(np.atleast_1d(v)) for k, v in a.items()}
        case = CaseVoxels(
            case=file.name.removesuffix(".npz"),
            voxel_ml=float(a["voxel_ml"]),
            shape=tuple(int(n) for n in a["shape"]),
            spacing=tuple(float(s) for s in a["spacing"]),
            where=a["where"].astype(np.int64),
            every=int(a["every"]),
            dice=a["dice"].astype(np.float64),
            complete=complete,
            **{k: tensors[k] for k in ("logits", "labels", "members", "near", "reach", "certain", "certain_true", "true")},
            **{k: tensors[k] for k in ("sampled", "drawn")},
        )
        _check(case, kind)
    except NPZ_ERRORS:
        raise UserError(f"The table {file} cannot be read; validate the fold again with nndiffseg_train --val.") from None
    return case


def _check(case: CaseVoxels, kind: LabelKind) -> None:
    """Raises ValueError where sizes or values are not of such labels."""
    n, structures, annotations = len(case.where), len(kind.structures), len(case.labels)
    sizes = {
        "logits": (kind.heads.number, n),
        "labels": (annotations, n),
        "members": (structures, annotations, n),
        "near": (n,),
        "reach": (n,),
        "certain": (structures,),
        "certain_true": (structures, annotations),
        "true": (structures, annotations),
        "sampled": (kind.heads.number, n),
        "drawn": (len(case.drawn), n),
    }
    if any(tuple(getattr(case, name).shape) != size for name, size in sizes.items()) or case.dice.shape != (structures,):
        raise ValueError("sizes do not fit together")
    if len(case.shape) != len(case.spacing) or case.every < 1 or not len(case.drawn):
        raise ValueError("sizes do not fit together")
    if not n:  # nothing but background beyond doubt
        return
    if case.where.min() < 0 or case.where.max() >= np.prod(case.shape):
        raise ValueError("voxels lie outside the image")
    largest = max(max(g, default=0) for g in (*kind.head_labels, *kind.structures))
    if min(int(case.drawn.min()), int(case.labels.min())) < 0 or max(int(case.drawn.max()), int(case.labels.max())) > largest:
        raise ValueError("unknown labels")
