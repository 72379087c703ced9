"""Reports of real folders: one file each, complete, and written whatever is missing."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from report_page import ParsedPage, pixels_of_colour

from nndiffseg.data.phantom import STRUCTURES
from nndiffseg.errors import UserError
from nndiffseg.report.report import frames_per_case, write_demo_report, write_prediction_report
from nndiffseg.uncertainty.evaluation import evaluate_predictions

CASES = ("phantom_008", "phantom_009", "phantom_010")


@pytest.fixture(autouse=True)
def frames(monkeypatch) -> dict[str, int]:
    """One frame per case, since drawing takes long; a test may ask for more."""
    wanted = {"per case": 1}
    monkeypatch.setattr("nndiffseg.report.report.frames_per_case", lambda cases: wanted["per case"])
    return wanted


def parsed(report: Path) -> ParsedPage:
    return ParsedPage(report.read_text(encoding="utf8"))


def edit_case_report(predictions: Path, case: str, **changes) -> None:
    file = predictions / "uncertainty" / f"{case}.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_report_is_one_file_that_loads_nothing_and_leaves_nothing_beside_it(predictions, image_files, frames):
    frames["per case"] = 3
    before = set(predictions.rglob("*"))
    report = write_prediction_report(predictions, image_files)
    assert report == predictions / "report.html"
    assert set(predictions.rglob("*")) - before == {report}
    page = parsed(report)
    assert page.open == []  # every tag is closed
    assert all(h and h.startswith("#") for h in page.attributes("a", "href"))
    assert not {"link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert [attrs for tag, attrs in page.tags if tag == "script"] == [{}]  # inline
    assert all((source or "").startswith("data:image/") for source in page.attributes("img", "src"))
    assert not re.search(r"https?://|url\(|@import", report.read_text(encoding="utf8"))
    assert len(page.pictures()) == len(CASES)
    assert "Epistemic" in page.text
    assert "The thin outlines are samples" in page.text


def test_each_case_has_frames_to_scroll_through_and_a_row_of_samples(predictions, image_files, frames):
    frames["per case"] = 5
    page = parsed(write_prediction_report(predictions, {CASES[0]: image_files[CASES[0]]}))
    assert page.attributes("input", "max") == ["5"]
    drawn = page.frames(CASES[0])
    assert len({frame.size for frame in drawn}) == 1  # scrolling moves nothing on the page
    assert len({frame.tobytes() for frame in drawn}) == 5
    assert page.samples() == [f"Sample {i} of {CASES[0]}" for i in (1, 2, 3, 4)]


def test_the_middle_frame_is_the_picture_of_a_report_without_scrolling(predictions, image_files, frames, monkeypatch):
    monkeypatch.setattr("nndiffseg.report.slices.grey_window", lambda image: (0.0, 1.0))  # else that of all frames
    one = {CASES[0]: image_files[CASES[0]]}
    (alone,) = parsed(write_prediction_report(predictions, one)).pictures()
    frames["per case"] = 3
    (middle,) = parsed(write_prediction_report(predictions, one)).pictures()
    assert middle.tobytes() == alone.tobytes()


def test_without_saved_samples_there_is_no_row_of_them(predictions, image_files):
    shutil.rmtree(predictions / "samples")
    page = parsed(write_prediction_report(predictions, {CASES[0]: image_files[CASES[0]]}))
    assert page.samples() == []
    assert "The first" not in page.words


def test_many_cases_have_fewer_frames():
    assert [frames_per_case(n) for n in (1, 10, 11, 20)] == [7, 7, 5, 5]


def test_an_old_report_stays_if_the_new_one_cannot_be_rendered(predictions, image_files, monkeypatch):
    report = predictions / "report.html"
    report.write_text("old")
    before = set(predictions.rglob("*"))
    monkeypatch.setattr("nndiffseg.report.report.render", lambda page: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_prediction_report(predictions, image_files)
    assert report.read_text() == "old"
    assert set(predictions.rglob("*")) == before


def test_least_certain_case_comes_first_and_links_lead_to_the_cases(predictions, image_files):
    for case, dice in zip(CASES, (0.9, 0.5, None), strict=True):
        edit_case_report(predictions, case, expected_dice=dice)
    page = parsed(write_prediction_report(predictions, image_files))
    order = [CASES[1], CASES[0], CASES[2]]
    assert [row[0] for row in page.rows[1:4]] == order
    assert page.attributes("a", "href") == ["#case-1", "#case-2", "#case-3"]
    assert [a for a in page.attributes("section", "id") if a] == ["case-1", "case-2", "case-3"]
    assert page.described() == [f"Slices of {case}" for case in order]


def test_with_one_fold_the_report_says_that_aleatoric_is_total_and_draws_it_once(predictions, image_files):
    several = parsed(write_prediction_report(predictions, image_files)).pictures()[0]
    for case in CASES:
        (predictions / "uncertainty" / f"{case}_epistemic.nii.gz").unlink()
    page = parsed(write_prediction_report(predictions, image_files))
    assert "One fold was used" in page.text
    assert page.pictures()[0].height < 0.6 * several.height  # two rows instead of four


def test_volumes_of_every_structure_are_in_the_case_table(predictions, image_files):
    calibrated = {"calibrated_sd_ml": 1.567, "calibrated_interval_90_ml": [20.25, 26.75]}
    structure = {"segmentation_ml": 12.34, "mean_ml": 23.45, "agreement": 0.777}
    edit_case_report(predictions, CASES[0], structures={"a": structure | calibrated})
    page = parsed(write_prediction_report(predictions, image_files))
    assert ["a", "12.3", "23.4", "1.57", "20.2 to 26.8", "0.777"] in page.rows


def test_one_sample_gives_dashes_and_no_crash(predictions, image_files):
    one = {"segmentation_ml": 1.0, "mean_ml": 1.0, "sd_ml": None, "interval_90_ml": None, "expected_dice": None, "samples": 1}
    for case in CASES:
        edit_case_report(predictions, case, expected_dice=None, structures={"core": one, "shell": one})
    page = parsed(write_prediction_report(predictions, image_files))
    assert page.rows.count(["shell", "1.00", "1.00", "–", "–", "–"]) == len(CASES)
    assert [row[:3] for row in page.rows[1:4]] == [[case, "–", "–"] for case in CASES]


def test_names_are_escaped(predictions, image_files):
    evil = 'x<img src=y onerror="z">&amp;$\\frac'
    for file in [*predictions.rglob(f"{CASES[0]}*")]:
        file.rename(file.with_name(file.name.replace(CASES[0], "a<b>&c")))
    dataset_json = json.loads((predictions / "dataset.json").read_text())
    dataset_json["labels"] = {"background": 0, evil: 1, "_<script>": 2}
    dataset_json["name"] = "<h6>"
    (predictions / "dataset.json").write_text(json.dumps(dataset_json))
    edit_case_report(predictions, "a<b>&c", structures={evil: {"mean_ml": 1.0}, "_<script>": {"mean_ml": 1.0}}, note="<u>")
    page = parsed(write_prediction_report(predictions, {"a<b>&c": image_files[CASES[0]]}))
    assert not {"b", "script", "h6", "u"} & {tag for tag, _ in page.tags}
    assert len(page.pictures()) == 1
    for shown in (evil, "a<b>&c", "<h6>: segmentations", "_<script>", "<u>"):
        assert shown in page.text


def test_more_cases_than_are_drawn_are_listed(predictions, image_files, monkeypatch):
    monkeypatch.setattr("nndiffseg.report.report.MAX_PICTURED_CASES", 2)
    for case, dice in zip(CASES, (0.9, 0.5, 0.7), strict=True):
        edit_case_report(predictions, case, expected_dice=dice)
    page = parsed(write_prediction_report(predictions, image_files))
    assert len(page.pictures()) == 2
    assert page.described() == [f"Slices of {CASES[1]}", f"Slices of {CASES[2]}"]
    assert [row[0] for row in page.rows[1:4]] == [CASES[1], CASES[2], CASES[0]]
    assert "pictures of the 2 least certain of 3 cases" in page.words


def test_more_samples_than_are_drawn_are_counted(predictions, image_files, monkeypatch):
    monkeypatch.setattr("nndiffseg.report.slices.MAX_SAMPLES", 3)
    assert "Outlines of 3 of 4 samples are drawn." in parsed(write_prediction_report(predictions, image_files)).words


def test_a_broken_file_costs_its_picture_not_the_report(predictions, image_files):
    (predictions / "uncertainty" / f"{CASES[1]}_total.nii.gz").unlink()
    (predictions / f"{CASES[0]}.nii.gz").write_bytes(b"nothing")
    page = parsed(write_prediction_report(predictions, image_files))
    assert set(page.described()) == {f"Slices of {CASES[1]}", f"Slices of {CASES[2]}"}
    assert page.text.count("No picture:") == 1
    assert f"No picture: {CASES[0]}.nii.gz cannot be read" in page.words
    assert str(predictions.parent) not in page.text


def test_a_folder_without_dataset_json_is_no_prediction(tmp_path):
    with pytest.raises(UserError, match=r"holds no dataset\.json"):
        write_prediction_report(tmp_path, {})
    assert not list(tmp_path.iterdir())


def test_settings_are_shown_without_folders(predictions, image_files):
    recorded = {
        "input_folder": "/home/someone/in",
        "model": "/home/someone/model",
        "trainer": "nnDiffSegTrainer",
        "samples": 16,
        "folds": ["0", "1"],
        "versions": {"nndiffseg": "9.9"},
    }
    (predictions / "predict_from_raw_data_args.json").write_text(json.dumps(recorded))
    page = parsed(write_prediction_report(predictions, image_files))
    assert "3 cases, 16 samples of each" in page.text
    assert page.rows[-4:] == [["trainer", "nnDiffSegTrainer"], ["folds", "0, 1"], ["samples", "16"], ["nndiffseg", "9.9"]]
    assert "someone" not in page.text


@pytest.fixture
def demo(oracle_predictions, phantom_dataset, tmp_path):
    """Writes the demo's report, after changes to the summary of the evaluation; returns the page and the summary."""
    dataset_json = json.loads((phantom_dataset / "dataset.json").read_text())
    images, references = phantom_dataset / "imagesTs", phantom_dataset / "labelsTs"

    def write(truth: Path | None, **changes) -> tuple[ParsedPage, dict]:
        evaluation = evaluate_predictions(oracle_predictions, references, dataset_json=dataset_json, truth=truth)
        evaluation["summary"] |= changes
        report = write_demo_report(tmp_path, oracle_predictions, images, references, evaluation, dataset_json)
        assert list(tmp_path.iterdir()) == [report]
        return parsed(report), evaluation["summary"]

    return write


def test_demo_report_shows_headlines_charts_and_the_truth(demo, phantom_dataset):
    page, summary = demo(phantom_dataset / "truth.json")
    assert page.open == []
    for value in (summary["dice_mean"], summary["error_auroc"], *(summary["volume_spread_ratio"][s] for s in STRUCTURES)):
        assert f"{value:.2f}" in page.text
    assert len(page.pictures()) == 3 + len(CASES)
    assert "true outline" in page.text.lower()
    assert "true sd" in page.text
    assert "3 cases, none of which the model saw in training" in page.text


def test_demo_report_on_own_data_has_coverage_instead_of_spread(demo):
    page, _ = demo(None, calibration=None)
    assert "Volume spread" not in page.text
    assert "Volumes: coverage" in page.text
    assert "true sd" not in page.text
    assert len(page.pictures()) == 1 + len(CASES)  # of the charts, the volumes alone


@pytest.mark.parametrize("file_ending", [".png", ".tif"])
def test_photographs_are_drawn_two_in_a_row(photograph, file_ending, frames):
    frames["per case"] = 7
    out, image = photograph(file_ending)
    page = parsed(write_prediction_report(out, {"case_000": [image]}))
    assert not {"input", "script"} & {tag for tag, _ in page.tags}  # nothing to scroll
    (picture,) = page.pictures()
    assert picture.width == 9 * 130  # two rows of two pictures, each 48:64
    assert 0.7 < picture.height / picture.width < 0.85


def test_real_case_is_drawn_from_a_prediction_of_real_data(hippocampus, tmp_path):
    case, out = "hippocampus_049", tmp_path / "out"
    out.mkdir()
    shutil.copy(hippocampus / "dataset.json", out)
    shutil.copy(hippocampus / "labelsTr" / f"{case}.nii.gz", out)
    page = parsed(write_prediction_report(out, {case: [hippocampus / "imagesTr" / f"{case}_0000.nii.gz"]}))
    assert pixels_of_colour(page.pictures()[0], "#56b4e9", 50) > 100
    assert pixels_of_colour(page.pictures()[0], "#e69f00", 50) > 100
