"""Preprocessing gives nnU-Net's own result, makes only what is missing and leaves the rest alone."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from batchgenerators.utilities.file_and_folder_operations import load_pickle
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nndiffseg.data.check import TrainingCase, read_dataset_json, training_cases
from nndiffseg.data.folders import configure_folders
from nndiffseg.data.preprocessing import (
    FINGERPRINT,
    SUFFIXES,
    Preprocessed,
    copy_ground_truth,
    extract_fingerprint,
    preprocess_configuration,
)
from nndiffseg.data.records import Records, check_settings
from nndiffseg.errors import UserError
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
    file = tmp_path / "gt_segmentations" / f"{cases[0].name}.nii.gz"
    assert file.read_bytes() == Path(cases[0].label).read_bytes()
    file.write_bytes(b"outdated")
    os.utime(file, (0, 0))
    copy_ground_truth(cases, tmp_path, content["file_ending"])
    assert file.read_bytes() == Path(cases[0].label).read_bytes()


# ---- nothing stale ----------------------------------------------------------------------------------------------------


@pytest.fixture
def copied(planned: Planned, tmp_path: Path) -> Planned:
    """The dataset copied, so that its files can change, with an empty preprocessed folder."""
    cases, content, plans, _ = planned
    raw = tmp_path / "raw"
    shutil.copytree(Path(cases[0].label).parents[1], raw)
    return training_cases(raw, content), content, plans, tmp_path / "out"


def preprocess(planned: Planned, folder: Path | None = None, plans: dict[str, Any] | None = None) -> Preprocessed:
    cases, content, own, base = planned
    (folder or base).mkdir(exist_ok=True)
    return preprocess_configuration(cases, content, plans or own, "3d_fullres", folder or base, progress=False)


def rewrite(file: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Other voxels under the old size and time of modification."""
    image, before = sitk.ReadImage(file), os.stat(file)
    new = sitk.GetImageFromArray(change(sitk.GetArrayFromImage(image)))
    new.CopyInformation(image)
    sitk.WriteImage(new, file, False)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_only_cases_with_a_corrected_label_or_image_are_made_anew(copied: Planned) -> None:  # row 08
    cases, _, _, folder = copied
    assert preprocess(copied) == Preprocessed(3)
    copy_ground_truth(cases, folder, ".nii.gz")
    assert preprocess(copied) == Preprocessed(0)
    times = {f.name: f.stat().st_mtime_ns for f in target(folder).iterdir()}
    rewrite(cases[1].label, lambda label: (label > 0).astype(np.uint8))
    assert preprocess(copied) == Preprocessed(1, ("case_001",))
    changed = {n for n, t in times.items() if (target(folder) / n).stat().st_mtime_ns != t}
    assert changed == {f"case_001{suffix}" for suffix in SUFFIXES}
    seg = nnUNetDatasetBlosc2(str(target(folder))).load_case("case_001")[1][:]
    assert set(np.unique(seg)) <= {-1, 0, 1}
    copy_ground_truth(cases, folder, ".nii.gz")
    truth = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "gt_segmentations" / "case_001.nii.gz")))
    assert truth.max() == 1
    rewrite(cases[2].images[1], lambda image: image + 1)
    assert preprocess(copied) == Preprocessed(1, ("case_002",))


def test_other_settings_make_all_cases_anew_and_training_refuses_the_old_ones(copied: Planned) -> None:  # F18
    _, _, plans, folder = copied
    preprocess(copied)
    check_settings(folder, plans, "3d_fullres", ["case_000"])
    other = copy.deepcopy(plans)
    other["configurations"]["3d_fullres"]["spacing"] = [3.0, 3.0, 3.0]
    with pytest.raises(UserError, match=r"case_000 as other plans preprocessed it.* again, without --no_pp"):
        check_settings(folder, other, "3d_fullres", ["case_000"])
    assert preprocess(copied, plans=other).changed == ("case_000", "case_001", "case_002")
    check_settings(folder, other, "3d_fullres", ["case_000"])
    assert preprocess(copied, plans=other) == Preprocessed(0)
    other["configurations"]["3d_fullres"]["patch_size"] = [8, 8, 8]
    assert preprocess(copied, plans=other) == Preprocessed(0), "the patch does not change the data"


def test_data_of_nnunet_itself_are_left_alone_unless_images_or_labels_are_newer(copied: Planned) -> None:
    cases, _, plans, folder = copied
    preprocess(copied)
    shutil.rmtree(folder / ".nndiffseg")
    assert len(preprocess(copied).changed) == 3, "nobody knows what they were made from"
    shutil.rmtree(folder / ".nndiffseg")
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
    assert preprocess(copied) == Preprocessed(0)
    shutil.rmtree(folder / ".nndiffseg")
    os.utime(cases[0].label, (2e9, 2e9))
    assert preprocess(copied) == Preprocessed(1, ("case_000",))


def test_a_case_that_left_the_dataset_leaves_the_preprocessed_data(copied: Planned) -> None:
    cases, content, plans, folder = copied
    preprocess(copied)
    assert preprocess((cases[:2], content, plans, folder)) == Preprocessed(0, (), ("case_002",))
    assert not list(target(folder).glob("case_002*"))
    assert preprocess(copied) == Preprocessed(1)


def test_a_fingerprint_follows_the_files(
    copied: Planned, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:  # row 08
    cases, content, _, folder = copied
    analysed = [((10, 20, 24), (1.0, 1.0, 1.0), [np.arange(5.0)] * 2, None, 1.0)] * 3  # nnU-Net's takes long
    monkeypatch.setattr("nndiffseg.data.preprocessing.map_cases", lambda *_, **__: analysed)
    extract_fingerprint(cases, content, folder, progress=False)
    before = (folder / FINGERPRINT).stat().st_mtime_ns
    extract_fingerprint(cases, content, folder, progress=False)
    assert (folder / FINGERPRINT).stat().st_mtime_ns == before and capsys.readouterr().out == ""
    rewrite(cases[0].images[0], lambda image: image + 100)
    extract_fingerprint(cases, content, folder, progress=False)
    assert "have changed, so the fingerprint is computed again" in capsys.readouterr().out
    assert (folder / FINGERPRINT).stat().st_mtime_ns != before


def test_an_own_extractor_runs_again_where_files_change_and_never_uses_nnunets(planned: Planned, copied: Planned) -> None:
    cases, content, _, folder = copied
    made = (planned[-1] / FINGERPRINT).read_text()
    folder.mkdir()
    (folder / FINGERPRINT).write_text(made)
    runs = []

    class Own(DatasetFingerprintExtractor):
        def __init__(self, name: str, processes: int):
            assert name == folder.name and processes == 1

        def run(self, overwrite_existing: bool = False) -> None:
            runs.append(list(self.dataset))
            (folder / FINGERPRINT).write_text(made if len(runs) < 3 else "{}")

    for _ in range(2):
        extract_fingerprint(cases, content, folder, progress=False, extractor=Own)
    assert runs == [[case.name for case in cases]], "the one that was there is not its own, and then it is"
    rewrite(cases[0].images[0], lambda image: image + 100)
    extract_fingerprint(cases, content, folder, progress=False, extractor=Own)
    assert len(runs) == 2
    with pytest.raises(UserError, match=r"Own made lacks spacings, .*leave out -fpe"):
        extract_fingerprint(cases, content, folder, progress=False, extractor=Own, clean=True)
    assert Records(folder).get("fingerprint") == "", "or the next planning would use what the class left"


def test_files_are_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"abc")
    records = Records(tmp_path)
    first = records.hash(file)
    records.save()
    monkeypatch.setattr("nndiffseg.data.records.hash_file", lambda _: "read again")
    assert Records(tmp_path).hash(file) == first
    file.write_bytes(b"abd")
    assert Records(tmp_path).hash(file) == "read again"


@pytest.mark.parametrize("content", ["", "[]", '{"content": 1}', "{"])
def test_a_damaged_record_counts_as_none(tmp_path: Path, content: str) -> None:
    records = Records(tmp_path)
    for file in (records.case_file("data", "x"), records.folder / "hashes.json", records.folder / "splits.json"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    assert Records(tmp_path).case("data", "x") is None and Records(tmp_path).get("splits") is None
    assert Records(tmp_path).hash(__file__)


def test_the_spacing_of_a_label_goes_into_the_ground_truth_and_out_of_it(tmp_path: Path) -> None:  # row 16
    label, side = tmp_path / "a.tif", tmp_path / "a.json"
    label.write_bytes(b"label")
    side.write_text('{"spacing": [1, 2, 3]}')
    case = TrainingCase("a", (), str(label))
    copies = tmp_path / "out" / "gt_segmentations"
    copy_ground_truth([case], tmp_path / "out", ".tif")
    assert (copies / "a.tif").read_bytes() == b"label" and (copies / "a.json").read_text() == side.read_text()
    side.write_text('{"spacing": [1, 2, 4]}')
    copy_ground_truth([case], tmp_path / "out", ".tif")
    assert (copies / "a.json").read_text() == side.read_text()
    side.unlink()
    copy_ground_truth([case], tmp_path / "out", ".tif")
    assert [f.name for f in copies.iterdir()] == ["a.tif"]
