"""Classes of the user's own that plans and dataset.json may name: put into nnU-Net's package, or into ``nnUNet_extTrainer``.

Whether there is such a class is read from the source text, so that a name in foreign plans makes nothing run: only what the
user has put into these folders can be found there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nndiffseg.data.folders import EXT_TRAINER
from nndiffseg.ext_path import ext_path

#: folders of nnU-Net's package where it looks for a class of a kind
READERS = "imageio"
NORMALIZATIONS = "preprocessing/normalization"


def own_folders() -> Iterator[Path]:
    """The folders that the user has named in ``nnUNet_extTrainer``."""
    for text in os.environ.get(EXT_TRAINER, "").split(os.pathsep):
        if text.strip() and Path(text) != ext_path() and Path(text).is_dir():
            yield Path(text)


def stands_in_nnunet(name: str, kind: str) -> bool:
    """Whether a file of nnU-Net's package defines this class, where nnU-Net looks for a reader or a normalisation."""
    spec = find_spec("nnunetv2")
    places = spec.submodule_search_locations if spec is not None else None
    return any(_defines(Path(place) / kind, name) for place in places or ())


def stands_in_own_folder(name: str) -> bool:
    """Whether a file in the user's folders defines this class."""
    return any(_defines(folder, name) for folder in own_folders())


def find_own_class(name: str) -> Any:
    """A class of the user's folders as nnU-Net looks for trainers there, or None. Every file of the folders is imported."""
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    for folder in own_folders():
        found = recursive_find_python_class(str(folder), name, None, cleanup_imports_from_base_folder=True)
        if found is not None:
            return found
    return None


def _defines(folder: Path, name: str) -> bool:
    pattern = re.compile(rf"^class\s+{re.escape(name)}\b", re.MULTILINE)
    return any(pattern.search(file.read_text(encoding="utf8", errors="replace")) for file in sorted(folder.rglob("*.py")))
