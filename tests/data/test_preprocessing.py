"""Preprocessing gives nnU-Net's own result, makes only what is missing and leaves the rest alone."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batchgenerators.utilities.file_and_folder_operations import load_pickle
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nndiffseg.data.check import TrainingCase, read_dataset_json, training_cases
from nndiffseg.data.folders import configure_folders
from nndiffseg.data.preprocessing import (
    FINGERPRINT,
    copy_ground_truth,
    extract_fingerprint,
    preprocess_configuration,
)
from nndiffseg.planners import DiffSegPlannerS

pytestmark = pytest.mark.seconds

Planned = tuple[list[TrainingCase], dict[str, Any], dict[str, Any], Path]


@pytest.fixture(scope="module")
def planned(make_dataset: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Planned:
    """Cases, dataset.json, plans and the preprocessed folder of an anisotropic two-channel dataset."""
    root = tmp_path_factory.mktemp("preprocessing")
    folders = configure_folders(root / "raw", root / "preprocessed", root / "results")
    raw = make_dataset(folders.raw, cases=3, shape=(10, 20, 24), spacing=(2.5, 1.0, 1.2), channels=2)
    content = read_dataset_json(raw)
    cases = training_cases(raw, content)
    folder = folders.preprocessed / raw.name
    extract_fingerprint(cases, content, folder, progress=False)
    with contextlib.redirect_stdout(io.StringIO()):
        planner = DiffSegPlannerS(raw.name)
        planner.plan_experiment()
    assert planner.plans is not None
    return cases, content, planner.plans, folder


def run(planned: Planned, folder: Path, **options: Any) -> int:
    cases, content, plans, _ = planned
    return preprocess_configuration(cases, content, plans, "3d_fullres", folder, progress=False, **options).made


def target(folder: Path) -> Path:
    return folder / "nnUNetPlans_3d_fullres"


def test_fingerprint_equals_nnunets(planned: Planned) -> None:
    *_, folder = planned
    ours = json.loads((folder / FINGERPRINT).read_text())
    (folder / FINGERPRINT).unlink()
    with contextlib.redirect_stdout(io.StringIO()):
        extractor = DatasetFingerprintExtractor(folder.name, num_processes=1)
        extractor.show_progress_bar = False
        extractor.run()
    assert ours == json.loads((folder / FINGERPRINT).read_text())


def test_a_fingerprint_of_another_number_of_cases_is_made_anew(
    planned: Planned, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases, content, _, folder = planned
    (tmp_path / FINGERPRINT).write_bytes((folder / FINGERPRINT).read_bytes())
    extract_fingerprint(cases[:2], content, tmp_path, progress=False)
    assert "3 cases and the dataset has 2" in capsys.readouterr().out
    assert len(json.loads((tmp_path / FINGERPRINT).read_text())["spacings"]) == 2


def test_preprocessed_cases_equal_nnunets(planned: Planned, tmp_path: Path) -> None:
    cases, content, plans, _ = planned
    assert run(planned, tmp_path) == 3
    manager = PlansManager(plans)
    with contextlib.redirect_stdout(io.StringIO()):
        data, seg, properties = DefaultPreprocessor(verbose=False).run_case(
            list(cases[1].images), cases[1].label, manager, manager.get_configuration("3d_fullres"), content
        )
    ours_data, ours_seg, _, ours_properties = nnUNetDatasetBlosc2(str(target(tmp_path))).load_case(cases[1].name)
    np.testing.assert_array_equal(ours_data[:], data)
    np.testing.assert_array_equal(ours_seg[:], seg)
    assert ours_properties["spacing"] == properties["spacing"]
    assert sorted(nnUNetDatasetBlosc2.get_identifiers(str(target(tmp_path)))) == [c.name for c in cases]


def test_a_second_run_touches_nothing(planned: Planned, tmp_path: Path) -> None:
    run(planned, tmp_path)
    before = {f.name: f.stat().st_mtime_ns for f in target(tmp_path).iterdir()}
    assert run(planned, tmp_path) == 0
    assert {f.name: f.stat().st_mtime_ns for f in target(tmp_path).iterdir()} == before


@pytest.mark.parametrize("suffix", [".b2nd", "_seg.b2nd", ".pkl"])
def test_an_interrupted_case_is_completed(planned: Planned, tmp_path: Path, suffix: str) -> None:
    run(planned, tmp_path)
    name = planned[0][0].name
    (target(tmp_path) / f"{name}{suffix}").unlink()
    stray = tmp_path / f".{target(tmp_path).name}.partial"
    stray.mkdir()
    (stray / f"{name}.b2nd").write_bytes(b"left by a killed run")
    assert run(planned, tmp_path) == 1
    assert load_pickle(str(target(tmp_path) / f"{name}.pkl"))["spacing"]
    assert not stray.exists()


def test_clean_starts_anew(planned: Planned, tmp_path: Path) -> None:
    run(planned, tmp_path)
    stray = target(tmp_path) / "old_case.pkl"
    stray.write_bytes(b"")
    assert run(planned, tmp_path, clean=True) == 3
    assert not stray.exists()


def test_worker_processes_make_the_same_files(planned: Planned, tmp_path: Path) -> None:
    run(planned, tmp_path / "one")
    run(planned, tmp_path / "two", processes=2)
    for case in planned[0]:
        one, two = (nnUNetDatasetBlosc2(str(target(tmp_path / n))).load_case(case.name) for n in ("one", "two"))
        np.testing.assert_array_equal(one[0][:], two[0][:])
        np.testing.assert_array_equal(one[1][:], two[1][:])


def test_ground_truth_is_copied_and_refreshed(planned: Planned, tmp_path: Path) -> None:
    cases, content, *_ = planned
    copy_ground_truth(cases, tmp_path, content["file_ending"])
    copy = tmp_path / "gt_segmentations" / f"{cases[0].name}.nii.gz"
    assert copy.read_bytes() == Path(cases[0].label).read_bytes()
    copy.write_bytes(b"outdated")
    import os

    os.utime(copy, (0, 0))
    copy_ground_truth(cases, tmp_path, content["file_ending"])
    assert copy.read_bytes() == Path(cases[0].label).read_bytes()
