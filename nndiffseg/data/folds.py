"""Names of folds: nnU-Net's, and the members of an ensemble that were trained on all cases with different seeds.

A member lies *in* ``fold_all``: nnU-Net takes the number behind the last underscore of any folder ``fold_*`` beside it for a
fold's, so it would read ``fold_all_seed_1`` as a second fold 1 (``nnUNetPredictor.auto_detect_available_folds``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from nndiffseg.errors import UserError

#: of a member's name, before its seed
MEMBER = "all/seed_"
NAME = re.compile(rf"[0-9]+|all|{MEMBER}-?[0-9]+")


def check_fold(name: Any) -> str:
    """A fold's name, such as ``0``, ``all`` or ``all/seed_1``; its folder is ``fold_`` and that name.

    Raises:
        UserError: it is none.
    """
    if not NAME.fullmatch(str(name)):
        raise UserError(f"The fold must be 0 to 4 or all (or {MEMBER}1 and so on for members), not {str(name)!r}.")
    return str(name)


def member_of(fold: int | str, seed: int) -> int | str:
    """The fold that a training with this seed writes to: with another seed than 0, fold ``all`` gets one more member."""
    return f"{MEMBER}{seed}" if fold == "all" and seed else fold


def split_of(fold: int | str) -> int | str:
    """The fold of nnU-Net's that a model was trained on: ``all`` for a member."""
    return fold if member_seed(fold) is None else "all"


def member_seed(fold: int | str) -> int | None:
    """The seed of a member; None for nnU-Net's own folds."""
    return int(fold.removeprefix(MEMBER)) if isinstance(fold, str) and fold.startswith(MEMBER) else None


def holds_out(fold: str) -> bool:
    """Whether there are cases that the fold has not seen, so that it can be calibrated and evaluated."""
    return split_of(fold) != "all"


def check_unseen(folds: Iterable[str]) -> None:
    """Checks that all of these folds left cases out.

    Raises:
        UserError: one was trained on all cases.
    """
    if all_seen := next((fold for fold in folds if not holds_out(fold)), None):
        raise UserError(
            f"Fold {all_seen} was trained on all cases, so none is left to calibrate it on; train folds 0 to 4 and choose "
            "among them with -f."
        )


def kind_of(folds: Sequence[str]) -> str:
    """What to call one of these models: ``member`` where all were trained on all cases, in an ensemble; else ``fold``."""
    ensemble = any(member_seed(name) is not None for name in folds)
    return "member" if ensemble and not any(holds_out(name) for name in folds) else "fold"


def in_words(folds: Sequence[str]) -> str:
    """``folds 0, 1`` or ``members all, all/seed_1``."""
    return f"{kind_of(folds)}{'s' * (len(folds) != 1)} {', '.join(folds)}"


def fold_files(folder: Path, pattern: str) -> list[tuple[str, Path]]:
    """The files of all folds that match, each with its fold's name: folds in order, then ``all`` and its members.

    Args:
        folder: of the model.
        pattern: of the files' names.
    """
    found = []
    for file in [*folder.glob(f"fold_*/{pattern}"), *folder.glob(f"fold_{MEMBER}*/{pattern}")]:
        name = file.parent.relative_to(folder).as_posix().removeprefix("fold_")
        if NAME.fullmatch(name):
            found.append((name, file))
    return sorted(found, key=lambda item: (*_place(item[0]), item[1].name))


def _place(fold: str) -> tuple[int, int]:
    """Sorts numbers as numbers."""
    if holds_out(fold):
        return 0, int(fold)
    return (1, 0) if fold == "all" else (2, int(fold.removeprefix(MEMBER)))
