"""Classes of experiment planning by name, as nnU-Net finds them, and the user's own."""

from __future__ import annotations

from pathlib import Path

import nnunetv2
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

from nndiffseg.data.own_classes import find_own_class
from nndiffseg.data.plan_names import is_identifier

_PACKAGE = "nnunetv2.experiment_planning"


def find_class(name: str) -> type | None:
    """A class in ``nnunetv2.experiment_planning``, where nnU-Net 2.8.1 looks, or in a folder that ``nnUNet_extTrainer`` names.

    Nothing is imported for what cannot be the name of a class. nnU-Net imports every file of these folders while it looks.

    Args:
        name: of a planner or of an extractor of the fingerprint; foreign, so anything at all.

    Returns:
        The class, or None where there is none of this name.
    """
    if not is_identifier(name):
        return None
    folder = str(Path(nnunetv2.__path__[0]) / "experiment_planning")
    found = recursive_find_python_class(folder, name, _PACKAGE)
    found = find_own_class(name) if found is None else found
    return found if isinstance(found, type) else None
