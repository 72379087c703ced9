"""What preprocessed data were made from, so that data that no longer match are made anew and all others are left alone.

The hidden folder ``.nndiffseg`` in a dataset's preprocessed folder holds

- ``hashes.json``: the hash of every file that was read, valid while its size and times stay as they were;
- ``fingerprint.json``, ``splits.json``: the keys of what stands beside it;
- ``DATA_IDENTIFIER/CASE.json``: the :class:`CaseKey` of a preprocessed case, written after the case itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nndiffseg.data.files import read_json, write_json
from nndiffseg.data.listing import with_side_files
from nndiffseg.data.names import is_plain_name
from nndiffseg.errors import UserError

FOLDER = ".nndiffseg"
#: counts up whenever the same files and settings would give other preprocessed data
FORMAT = 1
#: what the preprocessed data of a configuration depends on
PREPROCESSING_KEYS = (
    "preprocessor_name",
    "spacing",
    "normalization_schemes",
    "use_mask_for_norm",
    "resampling_fn_data",
    "resampling_fn_seg",
    "resampling_fn_data_kwargs",
    "resampling_fn_seg_kwargs",
)
PREPROCESSING_KEYS_OF_PLANS = ("transpose_forward", "image_reader_writer")
INTENSITIES = "foreground_intensity_properties_per_channel"
#: the only one of nnU-Net's schemes that uses the intensities of the whole dataset
BY_INTENSITIES = "CTNormalization"


@dataclass(frozen=True)
class CaseKey:
    """Hashes of all that a preprocessed case depends on.

    Attributes:
        content: of its images, its label and their side files.
        settings: of :func:`settings_key`.
        labels: of the dataset's labels and of the versions, which decide what the case's properties hold.
    """

    content: str
    settings: str
    labels: str


class Records:
    """The records of one dataset."""

    def __init__(self, preprocessed: Path):
        """``preprocessed``: the dataset's preprocessed folder; nothing is written before there is something to write."""
        self.folder = preprocessed / FOLDER
        self._hashes = {k: v for k, v in self._read(self.folder / "hashes.json").items() if isinstance(v, list) and len(v) == 4}
        self._new = False

    def hash(self, file: str | os.PathLike[str], *, by_status_change: bool = True) -> str:
        """SHA-256 of a file; read only where its size or time of modification is another than before.

        Args:
            file: exists.
            by_status_change: read it also where its status has changed (ctime), as by a copy that keeps the other times.
        """
        path = os.path.abspath(file)
        status = os.stat(path)
        stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        known, compared = self._hashes.get(path), 3 if by_status_change else 2
        if known is None or known[:compared] != stamp[:compared]:
            known = [*stamp, hash_file(path)]
            self._hashes[path], self._new = known, True
        return str(known[3])

    def content(self, images: Iterable[str], label: str, *, by_status_change: bool = True) -> str:
        """Hash of the images, the label and the side files of a case; their names do not matter."""
        of_images, of_label = (
            [self.hash(file, by_status_change=by_status_change) for file in with_side_files(files, label=is_label)]
            for files, is_label in (([Path(f) for f in images], False), ([Path(label)], True))
        )
        return hash_of([*of_images, "", *of_label])

    def knows(self, images: Iterable[str], label: str) -> bool:
        """Whether the files of a case were hashed before, where they lie now."""
        return all(os.path.abspath(file) in self._hashes for file in (*images, label))

    def save(self) -> None:
        """Keeps the hashes for the next run."""
        if self._new:
            write_json({k: v for k, v in sorted(self._hashes.items()) if os.path.exists(k)}, self.folder / "hashes.json")
            self._new = False

    def get(self, name: str) -> str | None:
        """The key of what ``name`` stands for, such as ``fingerprint``."""
        return self._read(self.folder / f"{name}.json").get("key")

    def put(self, name: str, key: str) -> None:
        write_json({"key": key}, self.folder / f"{name}.json")

    def case(self, data_identifier: str, name: str) -> CaseKey | None:
        """The key of a preprocessed case, or None where there is none that can be read."""
        return _case_key(self._read(self.case_file(data_identifier, name)))

    def case_file(self, data_identifier: str, name: str) -> Path:
        """Where the key of a preprocessed case stands."""
        return self.folder / data_identifier / f"{name}.json"

    def cases(self, data_identifier: str) -> list[str]:
        """Names of the cases that were preprocessed here."""
        folder = self.folder / data_identifier
        names = (f.stem for f in folder.glob("*.json")) if folder.is_dir() else ()
        return sorted(n for n in names if is_plain_name(n))

    def forget(self, data_identifier: str) -> None:
        shutil.rmtree(self.folder / data_identifier, ignore_errors=True)

    @staticmethod
    def _read(file: Path) -> dict[str, Any]:
        try:
            content = read_json(file) if file.is_file() else {}
        except (UserError, OSError):
            return {}
        return content if isinstance(content, dict) else {}


def _case_key(content: Mapping[str, Any]) -> CaseKey | None:
    values = [content.get(name) for name in ("content", "settings", "labels")]
    return CaseKey(*values) if all(isinstance(v, str) for v in values) else None  # type: ignore[arg-type]


def write_case_key(key: CaseKey, file: Path) -> None:
    """Writes the key of a case whose files are in place."""
    write_json(asdict(key), file)


def hash_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's content."""
    state = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(1 << 20):
            state.update(chunk)
    return state.hexdigest()


def hash_of(value: Any) -> str:
    """Hash of something JSON-ready."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def settings_key(plans: dict[str, Any], configuration: str) -> str:
    """Hash of all settings that decide what the preprocessed images of a configuration are."""
    planned = PlansManager(plans).get_configuration(configuration).configuration
    return hash_of(preprocessing_settings(plans, planned))


def preprocessing_settings(plans: Mapping[str, Any], configuration: Mapping[str, Any]) -> list[Any]:
    """What decides how a configuration is preprocessed, with all that it inherits."""
    settings = [configuration.get(k) for k in PREPROCESSING_KEYS] + [plans.get(k) for k in PREPROCESSING_KEYS_OF_PLANS]
    if BY_INTENSITIES in (configuration.get("normalization_schemes") or ()):
        settings.append(plans.get(INTENSITIES))
    return settings


def labels_key(dataset_json: Mapping[str, Any]) -> str:
    """Hash of the labels and of the versions."""
    return hash_of([dataset_json["labels"], dataset_json.get("regions_class_order"), version("nnunetv2"), FORMAT])


def check_settings(preprocessed: Path, plans: dict[str, Any], configuration: str, cases: Sequence[str]) -> None:
    """Checks that preprocessed cases were made with the settings of these plans, as far as it is recorded.

    Raises:
        UserError: one was made with others, for example before a planning with ``--no_pp``.
    """
    records, wanted = Records(preprocessed), settings_key(plans, configuration)
    identifier = PlansManager(plans).get_configuration(configuration).data_identifier
    for name in cases:
        key = records.case(identifier, name)
        if key is not None and key.settings != wanted:
            raise UserError(
                f"{preprocessed / identifier} holds {name} as other plans preprocessed it, with another spacing for example; "
                f"run nndiffseg_plan_and_preprocess for {preprocessed.name} again, without --no_pp."
            )
