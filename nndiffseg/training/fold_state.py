"""How far a fold has come, as its folder tells."""

from __future__ import annotations

from enum import Enum
from pathlib import Path

from nndiffseg.data.files import read_json
from nndiffseg.errors import UserError
from nndiffseg.training.fold_folder import newest_checkpoint

FINAL = "checkpoint_final.pth"
#: of a fold: what its validation writes last
VALIDATED = Path("validation", "uncertainty.json")


class FoldState(Enum):
    """What is to be done next; the value is how it is told."""

    MISSING = "to be trained"
    BEGUN = "begun, to be gone on with"
    TRAINED = "trained, to be validated"
    COMPLETE = "complete"


def fold_state(folder: Path, *, probabilities: bool = False) -> FoldState:
    """Where the training in ``fold_K`` stands.

    A validation counts if it ended after the final checkpoint was written: a training that goes on for more epochs leaves the
    validation of the earlier state behind.

    Args:
        folder: of the fold; it need not exist.
        probabilities: a validation that kept none is not complete.
    """
    try:
        newest = newest_checkpoint(folder)
    except UserError:  # the training that goes on says what is wrong with it
        return FoldState.BEGUN
    if newest is None:
        return FoldState.MISSING
    if newest.name != FINAL:
        return FoldState.BEGUN
    return FoldState.COMPLETE if _is_validated(folder, newest, probabilities) else FoldState.TRAINED


def _is_validated(folder: Path, final: Path, probabilities: bool) -> bool:
    file = folder / VALIDATED
    try:
        whole = isinstance(read_json(file), dict)
    except (OSError, UserError):
        return False
    kept = not probabilities or any(file.parent.glob("*.npz"))
    return whole and kept and file.stat().st_mtime_ns >= final.stat().st_mtime_ns
