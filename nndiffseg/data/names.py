"""Case names and file endings become file names: those that would leave their folder are refused on input."""

from __future__ import annotations

import re
from typing import Any

from nndiffseg.errors import UserError

#: longest part of a foreign name that a message repeats
SHOWN = 60


def is_plain_name(name: Any) -> bool:
    """Whether a name can be that of a file in the very folder where it is looked for: no path, not hidden, printable."""
    return (
        isinstance(name, str)
        and bool(name)
        and name.isprintable()
        and not name.startswith(".")
        and not re.search(r"[/\\]", name)
    )


def check_case_id(name: Any, where: str) -> None:
    """Checks the name of a case.

    Args:
        name: foreign, so anything at all.
        where: what holds it, the start of the message.

    Raises:
        UserError: it is no plain name of a file.
    """
    if not is_plain_name(name):
        raise UserError(
            f"{where} names a case {ascii(name)[:SHOWN]}, which cannot be part of a file's name; use letters, digits, dashes "
            "and underscores."
        )


def check_file_ending(ending: Any, where: str) -> None:
    """Checks the file ending of a dataset.

    Raises:
        UserError: it is not a dot and letters or digits, such as ``.nii.gz``.
    """
    if not isinstance(ending, str) or not re.fullmatch(r"(\.[A-Za-z0-9]+)+", ending):
        raise UserError(f"{where} has an invalid file_ending: {ascii(ending)[:SHOWN]}; it must be like .nii.gz.")
