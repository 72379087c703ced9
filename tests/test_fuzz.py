"""Damaged and hostile files of every kind that enters: success or one sentence, within seconds, and nothing written.

What is changed are whole values at any place of JSON and of a checkpoint, single bytes, and lengths. The small run is part of
the default suite; `pytest -m slow tests/test_fuzz.py` tries 12,000 files (docs/reliability.md).
"""

from __future__ import annotations

import copy
import gzip
import json
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr, suppress
from functools import cache
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import HealthCheck, given, settings
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from stock_folder import DATASET, PLANS

from nndiffseg.calibration import Calibration
from nndiffseg.data.cases import Case, check_headers
from nndiffseg.data.check import read_dataset_json, read_label_definition, training_cases
from nndiffseg.data.checkpoint import load_any_checkpoint, load_checkpoint, mirror_axes
from nndiffseg.data.dataset_json import channel_names, structures_of
from nndiffseg.data.groups import read_groups
from nndiffseg.data.images import read_image
from nndiffseg.data.model_json import ModelNames, read_model_json
from nndiffseg.data.splits import read_splits
from nndiffseg.errors import UserError
from nndiffseg.inference.model_folder import read_calibration
from nndiffseg.methods.latent.method import LatentDiffusion
from nndiffseg.methods.protocol import MethodPlan, planned_network

SMALL, LARGE, SECONDS = 25, 1500, 10
CASES = [f"case_{i}" for i in range(5)]
LATENT = {
    "settings": {
        "latent_stage": 1,
        "latent_stride": [2, 2],
        "latent_channels": 2,
        "denoiser_channels": [8, 8],
        "denoiser_strides": [[2, 2]],
        "encoder_channels": [8],
        "decoder_channels": [8, 8],
    },
    "regions": True,
    "options": {"latent": {}},
}


# ---- what is changed --------------------------------------------------------------------------------------------------

WORDS = (
    "..",
    "../../EVIL",
    "",
    ".",
    "\0",
    "a\nb",
    "subprocess.Popen",
    "os.system",
    "__import__",
    "nan",
    "0",
    "9" * 400,
    "a" * 3000,
)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-2, 40), st.floats(), st.sampled_from(WORDS), st.text(max_size=8)
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3), max_leaves=6
)
#: places to change, each with what is done there and what is put there
CHANGES = st.lists(
    st.tuples(st.sampled_from(range(10**4)), st.sampled_from(["put", "remove", "rename", "repeat"]), VALUES),
    min_size=1,
    max_size=3,
)
BYTES = st.lists(st.tuples(st.sampled_from(range(10**4)), st.integers(0, 255)), min_size=1, max_size=6)
#: of a NIfTI header, those that are read most often: sizes, type, spacing and place of the voxels, axes
FIELDS = [*range(352), *3 * [*range(40, 56), *range(70, 124), *range(252, 328)]]
CUT = st.none() | st.sampled_from(range(10**4))


def places(content: Any) -> list[tuple[Any, Any]]:
    """Every container with each of its keys or indices."""
    found, waiting = [], [content]
    while waiting:
        part = waiting.pop()
        keys = list(part) if isinstance(part, dict) else list(range(len(part))) if isinstance(part, list) else []
        for key in keys:
            found.append((part, key))
            waiting.append(part[key])
    return found


def changed(content: Any, changes: list[tuple[int, str, Any]]) -> Any:
    content = copy.deepcopy(content)
    for place, action, value in changes:
        options = places(content)
        if not options:
            return value
        part, key = options[place % len(options)]
        if action == "put":
            part[key] = value
        elif action == "remove":
            del part[key]
        elif action == "rename" and isinstance(part, dict):
            part[str(value)] = part.pop(key)
        elif action == "repeat" and isinstance(part, list):
            part.append(part[key])
    return content


def with_bytes(content: bytes, changes: list[tuple[int, int]], cut: int | None, *, within: int | None = None) -> bytes:
    changed = bytearray(content)
    for place, value in changes:
        changed[place % (within or len(changed))] = value
    return bytes(changed if cut is None else changed[: cut % len(changed)])


# ---- what is tried ----------------------------------------------------------------------------------------------------


@cache
def nifti() -> bytes:
    image = sitk.GetImageFromArray(np.arange(60, dtype=np.float32).reshape(3, 4, 5))
    image.SetSpacing((0.5, 1.0, 2.0))
    with tempfile.TemporaryDirectory() as folder:
        sitk.WriteImage(image, f"{folder}/a.nii.gz")
        return gzip.decompress(Path(folder, "a.nii.gz").read_bytes())


@cache
def checkpoint() -> bytes:
    file = BytesIO()
    torch.save(checkpoint_content(), file)
    return file.getvalue()


def checkpoint_content() -> dict[str, Any]:
    return {
        "network_weights": {f"layer{i}.weight": torch.arange(8.0) for i in range(3)},
        "nndiffseg_version": "0.2.0",
        "trainer_name": "nnDiffSegTrainer",
        "init_args": {"configuration": "2d", "plans": copy.deepcopy(PLANS), "fold": 0},
        "options": {},
        "calibration": Calibration().to_json(),
        "inference_allowed_mirroring_axes": [0, 1],
        "current_epoch": 3,
    }


def header(folder: Path, changes: Any, cut: Any, packed: bool, reader: type) -> None:
    _image(folder, with_bytes(nifti(), changes, None, within=352), packed, reader)


def body(folder: Path, changes: Any, cut: Any, packed: bool, reader: type) -> None:
    _image(folder, with_bytes(gzip.compress(nifti()) if packed else nifti(), changes, cut), False, reader, ".nii.gz" * packed)


def _image(folder: Path, content: bytes, packed: bool, reader: type, ending: str = "") -> None:
    file = folder / f"case_0000{ending or ('.nii.gz' if packed else '.nii')}"
    file.write_bytes(gzip.compress(content, 1) if packed else content)
    check_headers([Case("case", (file,))])
    array, properties = read_image(reader(), file)
    assert np.isfinite(array).all() and np.isfinite(properties["spacing"]).all()


def dataset(folder: Path, content: bytes) -> None:
    (folder / "dataset.json").write_bytes(content)
    for read in (lambda: read_label_definition(folder / "dataset.json"), lambda: read_dataset_json(folder)):
        try:
            sound = read()
            structures_of(sound)
        except UserError:
            continue
    training_cases(folder, read_dataset_json(folder))
    channel_names(sound)


def plans(folder: Path, content: bytes) -> None:
    (folder / "plans.json").write_bytes(content)
    (folder / "dataset.json").write_text(json.dumps(DATASET))
    checked, dataset_json = read_model_json(folder)
    manager = PlansManager(checked)
    labels = manager.get_label_manager(dataset_json)
    for name in manager.available_configurations:
        configuration = manager.get_configuration(name)
        assert configuration.preprocessor_class and configuration.resampling_fn_data and manager.image_reader_writer_class
        with torch.device("meta"):
            section = configuration.configuration["architecture"]
            planned_network(section, 1, labels.num_segmentation_heads, initialise=False)
            if "diffusion" in configuration.configuration:
                method = LatentDiffusion(MethodPlan.of(configuration, 1, labels.num_segmentation_heads))
                try:
                    method.network()
                except (ValueError, TypeError, IndexError, ArithmeticError, RuntimeError):
                    return  # which load_model says in a sentence


def splits(folder: Path, content: bytes) -> None:
    (folder / "splits_final.json").write_bytes(content)
    read_splits(folder / "splits_final.json", CASES)


def groups(folder: Path, content: bytes) -> None:
    (folder / "cases.csv").write_bytes(content)
    read_groups(folder, CASES)


def calibration(folder: Path, content: bytes) -> None:
    (folder / "calibration.json").write_bytes(content)
    read_calibration(folder)


def weights(folder: Path, content: bytes) -> None:
    file = folder / "checkpoint_final.pth"
    file.write_bytes(content)
    with suppress(UserError):
        load_checkpoint(file)
    found = load_any_checkpoint(file)
    assert all(torch.isfinite(value).all() for value in found["network_weights"].values())
    mirror_axes(found, 2, file)
    ModelNames.of(found, PLANS, file)


def as_json(content: Any) -> st.SearchStrategy[bytes]:
    """JSON with other values, or with other bytes."""
    text = json.dumps(content).encode()
    values = st.builds(lambda c: json.dumps(changed(content, c)).encode("utf8", "surrogatepass"), CHANGES)
    return values | values | st.builds(with_bytes, st.just(text), BYTES, CUT)


def as_checkpoint() -> st.SearchStrategy[bytes]:
    def saved(changes: list[tuple[int, str, Any]]) -> bytes:
        file = BytesIO()
        torch.save(changed(checkpoint_content(), changes), file)
        return file.getvalue()

    return st.builds(saved, CHANGES) | st.builds(lambda b, c: with_bytes(checkpoint(), b, c), BYTES, CUT)


OWN = PLANS | {"configurations": {"2d": PLANS["configurations"]["2d"] | {"diffusion": LATENT}}}
TABLE = "case,group\n" + "".join(f"{case},{case[-1]}\n" for case in CASES)
FOLDS = [{"train": [c for c in CASES if c != case], "val": [case]} for case in CASES]
IMAGE = (BYTES, CUT, st.booleans(), st.sampled_from([SimpleITKIO, NibabelIO, NibabelIOWithReorient]))
KINDS: dict[str, tuple[Callable[..., None], tuple[st.SearchStrategy[Any], ...]]] = {
    "NIfTI headers": (
        header,
        (st.lists(st.tuples(st.sampled_from(FIELDS), st.integers(0, 255)), min_size=1, max_size=6), *IMAGE[1:]),
    ),
    "NIfTI bodies": (body, IMAGE),
    "dataset.json": (dataset, (as_json(DATASET),)),
    "plans.json": (plans, (as_json(OWN),)),
    "splits_final.json": (splits, (as_json(FOLDS),)),
    "cases.csv": (groups, (st.builds(with_bytes, st.just(TABLE.encode()), BYTES, CUT) | st.binary(max_size=60),)),
    "calibration.json": (calibration, (as_json(Calibration().to_json()),)),
    "checkpoints": (weights, (as_checkpoint(),)),
}


SOUND: dict[str, tuple[Any, ...]] = {
    "NIfTI headers": ([], None, False, SimpleITKIO),
    "NIfTI bodies": ([], None, True, NibabelIO),
    "plans.json": (json.dumps(OWN).encode(),),
    "splits_final.json": (json.dumps(FOLDS).encode(),),
    "cases.csv": (TABLE.encode(),),
    "calibration.json": (json.dumps(Calibration().to_json()).encode(),),
    "checkpoints": (checkpoint(),),
}


@pytest.mark.parametrize("kind", SOUND)
def test_what_is_sound_is_accepted(tmp_path: Path, kind: str) -> None:
    KINDS[kind][0](tmp_path, *SOUND[kind])


def fuzz(kind: str, folder: Path, number: int) -> dict[str, int]:
    """Tries so many files; returns how many were accepted and refused."""
    function, strategies = KINDS[kind]
    counts = {"accepted": 0, "refused": 0}
    deep = folder / "a" / "b" / "c"
    deep.mkdir(parents=True)
    if kind in SOUND:
        function(deep, *SOUND[kind])  # imports what it needs, which counts for no file

    @settings(
        max_examples=number, deadline=1000 * SECONDS, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(st.tuples(*strategies))
    def try_one(arguments: tuple[Any, ...]) -> None:
        for file in deep.iterdir():
            file.unlink()
        try:
            with redirect_stderr(StringIO()):
                function(deep, *arguments)
            counts["accepted"] += 1
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 1500
            counts["refused"] += 1
        outside = [f for f in folder.rglob("*") if f.is_file() and f.parent != deep]
        assert not outside and not list(deep.rglob("*EVIL*"))

    try_one()
    return counts


@pytest.mark.parametrize("kind", KINDS)
def test_some_damaged_files_of_every_kind_end_in_success_or_one_sentence(tmp_path: Path, kind: str) -> None:
    assert fuzz(kind, tmp_path, SMALL)["refused"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_damaged_files_of_every_kind_end_in_success_or_one_sentence(tmp_path: Path, kind: str) -> None:
    counts = fuzz(kind, tmp_path, LARGE)
    print(f"{kind}: {counts['accepted']} accepted, {counts['refused']} refused")
