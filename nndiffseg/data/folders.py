"""Where data lives: nnU-Net's three folders, found by flag, environment variable or default; datasets by id or name."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from nndiffseg.errors import UserError
from nndiffseg.ext_path import ext_path

DEFAULT_ROOT = Path("nndiffseg_data")
KINDS = ("raw", "preprocessed", "results")
EXT_TRAINER = "nnUNet_extTrainer"


@dataclass(frozen=True)
class Folders:
    """nnU-Net's three folders. They need not exist yet."""

    raw: Path
    preprocessed: Path
    results: Path

    def datasets(self, where: str = "raw") -> list[str]:
        """Names of the datasets (``Dataset004_Hippocampus``) in the folder ``where``: raw, preprocessed or results."""
        folder: Path = getattr(self, where)
        if not folder.is_dir():
            return []
        return sorted(p.name for p in folder.iterdir() if p.is_dir() and re.fullmatch(r"Dataset\d{3,}_.+", p.name))

    def dataset(self, name_or_id: str | int, where: str = "raw") -> str:
        """The full name of a dataset given as ``4``, ``"004"`` or ``"Dataset004_Hippocampus"``.

        Args:
            name_or_id: id or full name.
            where: the folder that must hold it: raw, preprocessed or results.

        Raises:
            UserError: no such dataset there (the message lists what exists), or an id with two names.
        """
        wanted = str(name_or_id).strip()
        present = self.datasets(where)
        matches = [d for d in present if d == wanted or (wanted.isdigit() and dataset_id(d) == int(wanted))]
        if not matches:
            found = f"it holds {', '.join(present)}" if present else "it holds no datasets"
            raise UserError(
                f"No such dataset: {wanted} in {getattr(self, where)} ({found}); name an existing one or set --{where}."
            )
        # nnU-Net resolves ids over all three folders and refuses an id with two names, so that is said here first.
        number = dataset_id(matches[0])
        names = sorted({d for kind in KINDS for d in self.datasets(kind) if dataset_id(d) == number})
        if len(names) > 1:
            raise UserError(f"The dataset id {number} has several names: {', '.join(names)}; give each its own id.")
        return matches[0]


def dataset_id(name: str) -> int:
    """The number in a dataset's name: ``Dataset004_Hippocampus`` -> 4."""
    match = re.match(r"Dataset(\d{3,})_", name)
    if match is None:
        raise UserError(f"{name} is not a dataset name; datasets are called like Dataset004_Hippocampus.")
    return int(match.group(1))


def configure_folders(
    raw: str | Path | None = None,
    preprocessed: str | Path | None = None,
    results: str | Path | None = None,
    *,
    quiet: bool = False,
) -> Folders:
    """Decides on the three folders and makes them, and nndiffseg's trainers, known to nnU-Net.

    A value given here wins over the environment variable ``nnUNet_raw`` (``_preprocessed``, ``_results``); without
    either, ``./nndiffseg_data/raw`` (...) is used, and one printed line says so. nnU-Net 2.8.1 reads its environment
    variables when it needs them (nnunetv2/paths.py), so setting ``os.environ`` reaches it and its worker processes.

    Args:
        raw, preprocessed, results: overrides, or None.
        quiet: do not print the line about default folders.
    """
    given = dict(zip(KINDS, (raw, preprocessed, results), strict=True))
    chosen: dict[str, Path] = {}
    defaults: list[str] = []
    for kind, value in given.items():
        value = value or os.environ.get(f"nnUNet_{kind}") or None
        if value is None:
            value = DEFAULT_ROOT / kind
            defaults.append(kind)
        chosen[kind] = Path(os.path.abspath(os.path.expanduser(value)))
        os.environ[f"nnUNet_{kind}"] = str(chosen[kind])
    if defaults and not quiet:
        names = "{" + ",".join(defaults) + "}" if len(defaults) > 1 else defaults[0]
        flags = " ".join(f"--{kind}" for kind in defaults)
        print(f"Using ./{DEFAULT_ROOT}/{names} (change it with {flags} or nnU-Net's environment variables).")
    _add_ext_trainer()
    return Folders(**chosen)


def _add_ext_trainer() -> None:
    present = [p for p in os.environ.get(EXT_TRAINER, "").split(os.pathsep) if p]
    if str(ext_path()) not in present:
        os.environ[EXT_TRAINER] = os.pathsep.join([*present, str(ext_path())])
