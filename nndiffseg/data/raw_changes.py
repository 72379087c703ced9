"""Whether preprocessed cases are still of the images and labels that lie in the raw folder."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from nndiffseg.data.check import read_dataset_json, training_cases
from nndiffseg.data.records import Records
from nndiffseg.errors import UserError


def check_raw_unchanged(preprocessed: Path, data_identifier: str, names: Iterable[str]) -> None:
    """Checks that no image or label was corrected after a case had been preprocessed.

    Files whose size and time of modification are those of the last planning are not read. Where the raw folder is absent,
    elsewhere than at the planning, or no longer a dataset, nothing is checked: a training does not need it.

    Args:
        preprocessed: the dataset's folder; the raw one, of the same name, lies in ``nnUNet_raw``.
        data_identifier: of the configuration.
        names: of the cases that a training uses.

    Raises:
        UserError: a file has changed.
    """
    raw = Path(os.environ.get("nnUNet_raw", ""), preprocessed.name)
    try:
        cases = {c.name: c for c in training_cases(raw, read_dataset_json(raw))}
    except (UserError, OSError):
        return
    records = Records(preprocessed)
    for name in names:
        case, key = cases.get(name), records.case(data_identifier, name)
        if case is None or key is None or not records.knows(case.images, case.label):
            continue
        if records.content(case.images, case.label, by_status_change=False) != key.content:
            raise UserError(
                f"Images or the label of {name} have changed in {raw} since they were preprocessed; run "
                f"nndiffseg_plan_and_preprocess for {raw.name} again."
            )
