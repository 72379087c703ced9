"""Per-case tables that validation writes, small enough to keep, from which everything is fitted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nndiffseg.data.files import write_atomically
from nndiffseg.data.npz import NPZ_ERRORS, check_npz
from nndiffseg.errors import UserError

#: bytes of a table; real ones have a few hundred thousand
LARGEST = 10**9
FOLDER = "tables"


@dataclass(frozen=True)
class CaseTable:
    """What fits need of one validation case.

    Attributes:
        case: its name.
        dice: of each structure under each of :data:`~nndiffseg.calibration.fusion.WEIGHTS` ``(weights, K)``; NaN where
            reference and prediction are both empty.
        nll: mean negative log-likelihood of the reference per voxel under each weight, in nats ``(weights,)``.
        sampled_ml: volume of each structure in each sample, in ml ``(K, N)``.
        true_ml: volume of each structure in each annotation, in ml ``(K, M)``.
        curves: mean negative log-likelihood near the structures under each weight at each of
            :data:`~nndiffseg.calibration.temperature.LOG_TEMPERATURES`, in nats ``(weights, 1 or regions, temperatures)``.
        confidence: :func:`~nndiffseg.calibration.confidence.soft_dice` under each weight ``(weights, K)``.
        complete: every voxel of the case has a label; elsewhere all of this is of annotated voxels alone.
    """

    case: str
    dice: NDArray[np.floating]
    nll: NDArray[np.floating]
    sampled_ml: NDArray[np.floating]
    true_ml: NDArray[np.floating]
    curves: NDArray[np.floating]
    confidence: NDArray[np.floating]
    complete: bool = True


def write_table(table: CaseTable, folder: Path) -> None:
    """Writes ``CASE.npz``."""
    arrays = {f.name: getattr(table, f.name) for f in fields(table) if f.name != "case"}
    with write_atomically(folder / f"{table.case}.npz") as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def read_tables(folder: Path) -> list[CaseTable]:
    """All tables of a folder, sorted by case.

    Raises:
        UserError: one cannot be read, or there is none.
    """
    files = sorted(f for f in folder.glob("*.npz") if not f.name.startswith("."))
    if not files:
        raise UserError(f"{folder} holds no tables; validate the fold with nndiffseg_train --val.")
    return [_read(file) for file in files]


def _read(file: Path) -> CaseTable:
    names: Sequence[str] = [f.name for f in fields(CaseTable) if f.name not in ("case", "complete")]
    try:
        check_npz(file, LARGEST)
        with np.load(file, allow_pickle=False) as content:
            arrays = {name: np.asarray(content[name], dtype=np.float64) for name in names}
            complete = bool(content["complete"]) if "complete" in content else True  # of earlier versions
    except NPZ_ERRORS:
        raise UserError(f"The table {file} cannot be read; validate the fold again with nndiffseg_train --val.") from None
    return CaseTable(file.name.removesuffix(".npz"), **arrays, complete=complete)
