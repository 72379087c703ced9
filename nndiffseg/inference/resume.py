"""Going on with an interrupted prediction: only with the same model and settings, and only over cases of the same images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nndiffseg.data.cases import Case
from nndiffseg.data.files import read_json
from nndiffseg.data.listing import with_side_files
from nndiffseg.data.records import hash_file, hash_of
from nndiffseg.errors import UserError
from nndiffseg.export.writer import ExportJob

#: of a case's ``settings``: what may differ, since it changes results by no more than rounding, or only where files lie
FREE = ("device", "precision", "versions", "model")
#: in a case's JSON: what its image was
IMAGE = "image_sha256"


def image_key(case: Case) -> str:
    """Hash of a case's images, of the spacing that stands beside them, and of what the stage before predicted."""
    return hash_of([hash_file(file) for file in (*with_side_files(list(case.files), label=False), *case.previous)])


def left_to_predict(job: ExportJob, cases: Sequence[Case], samples: int, folds: int) -> list[Case]:
    """Cases that are not complete in the output folder, or whose images have changed, which is printed.

    Args:
        job: of this run.
        cases: all of its cases.
        samples, folds: numbers of this run.

    Raises:
        UserError: a complete case was predicted with another model or other settings.
    """
    left, changed = [], []
    for case in cases:
        if not all((job.output / file).is_file() for file in job.files(case.id, samples, folds)):
            left.append(case)
            continue
        file = job.output / "uncertainty" / f"{case.id}.json"
        content = read_json(file, "predict it again without --continue_prediction")
        _check_settings(content, job.settings, file)
        if content.get(IMAGE) != image_key(case):
            left.append(case)
            changed.append(case.id)
    if changed:
        print(f"Images that changed after their prediction, so that they are predicted again: {', '.join(changed)}.")
    return left


def _check_settings(content: Any, now: Mapping[str, Any], file: Path) -> None:
    before = content.get("settings") if isinstance(content, dict) else None
    before = before if isinstance(before, dict) else {}
    for name in sorted({*before, *now} - set(FREE)):
        if before.get(name) != now.get(name):
            what = (
                "another model or calibration" if name == "model_sha256" else f"{name} {before.get(name)}, not {now.get(name)}"
            )
            raise UserError(
                f"{file} says that the case was predicted with {what}; give the same ones, or predict all cases anew, without "
                "--continue_prediction or into another folder."
            )
