"""``nndiffseg_evaluate`` on small folders: numbers by hand, every layout, and mistakes in one sentence."""

from __future__ import annotations

import csv
import html.parser
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from prediction_files import disc, write_dataset_json, write_labels

from nndiffseg.cli.evaluate import FILES, main
from nndiffseg.report.page import environment
from nndiffseg.uncertainty import region_of_interest
from nndiffseg.uncertainty.case_labels import DILATION

pytestmark = pytest.mark.seconds

SHAPE = (12, 16, 16)
LABELS = {"background": 0, "core": 2, "shell": 1}  # not in the order of their numbers


def nested(radius: float, shift: tuple[int, int, int] = (0, 0, 0)) -> np.ndarray:
    """Label 1 around label 2."""
    return disc(SHAPE, radius, shift) + disc(SHAPE, radius / 2, shift)


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    """Predictions of three cases, as nnU-Net writes them, and one annotator's labels of two of them and of a fourth."""
    out, labels = tmp_path / "out", tmp_path / "labels"
    write_dataset_json(out, LABELS)
    for i, name in enumerate(("a", "b", "c")):
        write_labels(nested(4 + i), out / f"{name}.nii.gz", (2.0, 1.0, 1.0))
    for i, name in ((0, "a"), (1, "b"), (3, "d")):
        write_labels(nested(4 + i, (0, 0, 1)), labels / f"{name}.nii.gz", (2.0, 1.0, 1.0))
    return out, labels


@pytest.fixture
def evaluate(capsys):
    """Runs the command; returns exit code, stdout, stderr."""

    def call(*words: object) -> tuple[int, str, str]:
        code = main([*map(str, words), "--disable_progress_bar"])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def result_of(folder: Path) -> dict:
    return json.loads((folder / "evaluation.json").read_text())


def rows_of(folder: Path) -> dict[tuple[str, str], dict[str, str]]:
    with open(folder / "evaluation.csv", newline="") as file:
        return {(row["case"], row["structure"]): row for row in csv.DictReader(file)}


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


# ---- a folder of stock nnU-Net ------------------------------------------------------------------------------------------


def test_segmentations_alone_give_overlap_surfaces_and_volumes(evaluate, folders):
    out, labels = folders
    code, text, err = evaluate("-i", out, "-r", labels)
    assert (code, err) == (0, "")
    rows = rows_of(out)
    assert set(rows) == {(case, s) for case in "ab" for s in ("shell", "core")}
    a, b = nested(4), nested(4, (0, 0, 1))
    row = rows["a", "shell"]
    assert float(row["dice"]) == pytest.approx(dice(a == 1, b == 1), abs=1e-5)
    assert float(row["iou"]) == pytest.approx(((a == 1) & (b == 1)).sum() / ((a == 1) | (b == 1)).sum(), abs=1e-5)
    assert float(row["segmentation_ml"]) == pytest.approx((a == 1).sum() * 2 / 1000)
    assert float(row["segmentation_error_ml"]) == pytest.approx(((a == 1).sum() - (b == 1).sum()) * 2 / 1000)
    assert 0 < float(row["nsd"]) <= 1 and float(row["hd95_mm"]) == pytest.approx(1)
    for measure in ("ece", "nll", "energy_score", "ged_squared", "mean_ml", "covered", "consensus_dice"):
        assert row[measure] == ""
    assert "mean" in text and f"{result_of(out)['summary']['dice_mean']:.3f}" in text


def test_what_is_missing_is_said_once_with_the_flag_that_gives_it(evaluate, folders):
    out, labels = folders
    _, text, _ = evaluate("-i", out, "-r", labels)
    for part in ("--save_probabilities", "--save_samples", "no uncertainty maps", "no expected Dice", "one annotator"):
        assert text.count(part) == 1
    summary = result_of(out)["summary"]
    assert len(summary["left_out"]) == 5
    assert summary["error_auroc"] is summary["calibration"] is summary["expected_dice"] is None


def test_cases_without_a_partner_are_named(evaluate, folders):
    out, labels = folders
    _, text, _ = evaluate("-i", out, "-r", labels)
    assert "Segmentations without a reference, not evaluated: c." in text
    assert "References without a segmentation: d." in text
    assert result_of(out)["matching"] == {"without_reference": ["c"], "without_prediction": ["d"]}


def test_tolerance_and_output_folder(evaluate, folders, tmp_path):
    out, labels = folders
    evaluate("-i", out, "-r", labels, "-o", tmp_path / "deep" / "er", "--tolerance", 0)
    assert sorted(f.name for f in (tmp_path / "deep" / "er").iterdir()) == sorted(FILES)
    assert not [f for f in out.iterdir() if f.name.startswith("evaluation")]
    strict = result_of(tmp_path / "deep" / "er")["summary"]
    evaluate("-i", out, "-r", labels, "--tolerance", 5)
    assert strict["structures"]["shell"]["nsd"] < result_of(out)["summary"]["structures"]["shell"]["nsd"] == 1
    assert strict["tolerance_mm"] == 0


@pytest.mark.slow
def test_worker_processes_change_nothing(evaluate, folders, tmp_path):
    out, labels = folders
    evaluate("-i", out, "-r", labels)
    assert evaluate("-i", out, "-r", labels, "-o", tmp_path / "two", "-np", 2)[0] == 0
    assert result_of(tmp_path / "two") == result_of(out)
    assert (tmp_path / "two" / "evaluation.csv").read_text() == (out / "evaluation.csv").read_text()


# ---- everything that nndiffseg_predict writes -----------------------------------------------------------------------------


def test_a_whole_output_of_nndiffseg_predict(evaluate, phantom_dataset, oracle_predictions, tmp_path):
    code, text, err = evaluate("-i", oracle_predictions, "-r", phantom_dataset / "labelsTs", "-o", tmp_path)
    assert (code, err) == (0, "")
    result = result_of(tmp_path)
    summary, rows = result["summary"], rows_of(tmp_path)
    assert summary["left_out"] == [next(s for s in summary["left_out"] if "one annotator" in s)]
    for measure in ("dice", "nsd", "ece", "ace", "brier", "nll", "energy_score", "crps_ml", "mean_ml", "low_90_ml", "covered"):
        assert all(row[measure] for row in rows.values()), measure
    assert summary["error_auroc"] > 0.85 and summary["error_auprc"] > 2 * summary["error_rate"]
    assert summary["structures"]["front lobe"]["ece"] < 0.1
    assert set(summary["expected_dice"]) == {"aurc", "augrc", "mean_risk", "spearman", "cases"}
    assert all(f"\n{name}" in text for name in ("error AUROC", "AUGRC of the expected Dice", "rank correlation"))


def test_probabilities_of_a_stock_nnunet_stand_in_for_the_map(evaluate, folders):
    out, labels = folders
    for name, radius in (("a", 4), ("b", 5)):
        hard = nested(radius)
        p = np.stack([np.where(hard == c, 0.8, 0.1) for c in range(3)]).astype(np.float32)
        np.savez(out / f"{name}.npz", probabilities=p)
    assert evaluate("-i", out, "-r", labels)[0] == 0
    result = result_of(out)
    assert result["cases"]["a"]["uncertainty"] == "entropy of the probabilities"
    assert result["summary"]["error_auroc"] == pytest.approx(0.5)  # the same uncertainty everywhere
    row, hard, true = result["cases"]["a"]["structures"]["core"], nested(4), nested(4, (0, 0, 1))
    region = region_of_interest((hard > 0) | (true > 0), DILATION)
    p, y = np.where(hard == 2, 0.8, 0.1)[region], (true == 2)[region]
    assert row["brier"] == pytest.approx(((p - y) ** 2).mean(), rel=1e-5)
    assert row["nll"] == pytest.approx(-np.log(np.where(y, p, 1 - p)).mean(), rel=1e-5)


# ---- several annotators ---------------------------------------------------------------------------------------------------


@pytest.fixture
def annotated(tmp_path) -> tuple[Path, list[Path]]:
    """PNG images with samples and three annotators in a folder each, and the same in one folder, ``raters``."""
    out, shape = tmp_path / "out", (24, 24)
    write_dataset_json(out, {"background": 0, "cell": 1}, ".png")
    raters = [tmp_path / f"rater{i}" for i in range(3)]
    for case in ("x", "y"):
        write_labels(disc(shape, 6), out / f"{case}.png")
        for n, radius in enumerate((5, 6, 7, 8)):
            write_labels(disc(shape, radius), out / "samples" / f"{case}_s{n:02d}.png")
        for i, folder in enumerate(raters):
            label = disc(shape, 5 + i)
            write_labels(label, folder / f"{case}.png")
            write_labels(label, tmp_path / "raters" / case / f"rater{i}.png")
    return out, raters


def test_several_annotators_in_2d(evaluate, annotated):
    out, raters = annotated
    code, text, err = evaluate("-i", out, "-r", *raters)
    assert (code, err) == (0, "")
    assert ", pixels" in text and ", ml" not in text and result_of(out)["summary"]["unit"] == "pixels"
    row = rows_of(out)["x", "cell"]
    masks = [disc((24, 24), r).astype(bool) for r in (5, 6, 7, 8)]

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        return 1 - (a & b).sum() / (a | b).sum()

    def mean_distance(first: list, second: list) -> float:
        return float(np.mean([distance(a, b) for a in first for b in second]))

    annotators = masks[:3]
    cross, own, others = mean_distance(masks, annotators), mean_distance(masks, masks), mean_distance(annotators, annotators)
    assert float(row["annotators"]) == 3
    assert float(row["ged_squared"]) == pytest.approx(2 * cross - own - others, abs=1e-5)
    assert [float(row[f"ged_{k}"]) for k in ("cross", "within_samples", "within_annotators")] == pytest.approx(
        [cross, own, others], abs=1e-5
    )
    assert float(row["energy_score"]) == pytest.approx(cross - own * 16 / 12 / 2, abs=1e-5)
    assert float(row["best_dice"]) == 1
    assert float(row["dice"]) == pytest.approx(np.mean([dice(masks[1], m) for m in annotators]), abs=1e-5)
    assert float(row["consensus_dice"]) == 1  # two of three have the disc of radius 6
    assert float(row["reference_ml"]) == pytest.approx(np.mean([m.sum() for m in annotators]) / 1000, abs=1e-6)  # 1 mm thick
    case = result_of(out)["cases"]["x"]
    assert case["matched_iou"] is not None and 0 < case["ncc"] <= 1
    assert "GED²" in text and "one annotator" not in text and "NCC of uncertainty and annotators" in text


def test_one_folder_with_a_folder_per_case_is_the_same(evaluate, annotated, tmp_path):
    out, raters = annotated
    evaluate("-i", out, "-r", *raters)
    first = result_of(out)
    assert evaluate("-i", out, "-r", tmp_path / "raters")[0] == 0
    assert result_of(out) == first


def test_probability_and_frequency_are_cut_at_the_same_values(evaluate, annotated):
    out, raters = annotated
    frequency = np.mean([disc((24, 24), r) for r in (5, 6, 7)], axis=0)
    for case in ("x", "y"):
        np.savez(out / f"{case}.npz", probabilities=np.stack([1 - frequency, frequency])[:, None].astype(np.float32))
    evaluate("-i", out, "-r", *raters)
    row = rows_of(out)["x", "cell"]
    assert float(row["thresholded_dice"]) == 1
    assert float(row["brier"]) == pytest.approx(0, abs=1e-9) and float(row["ece"]) == pytest.approx(0, abs=1e-6)


# ---- regions and the ignore label -----------------------------------------------------------------------------------------


def test_regions_are_unions_of_labels_with_a_probability_each(evaluate, tmp_path):
    out, labels = tmp_path / "out", tmp_path / "labels"
    write_dataset_json(out, {"background": 0, "core": [2], "whole": [1, 2]}, regions_class_order=[2, 1])
    predicted, true = nested(5), nested(5, (0, 1, 0))
    write_labels(predicted, out / "a.nii.gz")
    write_labels(true, labels / "a.nii.gz")
    p = np.stack([np.where(predicted == 2, 0.9, 0.1), np.where(predicted > 0, 0.7, 0.2)]).astype(np.float32)
    np.savez(out / "a.npz", probabilities=p)
    assert evaluate("-i", out, "-r", labels)[0] == 0
    rows = rows_of(out)
    assert float(rows["a", "whole"]["dice"]) == pytest.approx(dice(predicted > 0, true > 0), abs=1e-5)
    assert float(rows["a", "core"]["dice"]) == pytest.approx(dice(predicted == 2, true == 2), abs=1e-5)
    summary = result_of(out)["summary"]
    n = summary["calibration"]["voxels"]
    brier = {"core": (p[0] - (true == 2)) ** 2, "whole": (p[1] - (true > 0)) ** 2}
    outside = p[0].size - n  # background in both, far away
    for (structure, values), far in zip(brier.items(), (0.1, 0.2), strict=True):
        expected = (values.sum() - outside * far**2) / n
        assert float(rows["a", structure]["brier"]) == pytest.approx(expected, rel=1e-4)


def test_ignored_voxels_count_for_nothing(evaluate, tmp_path):
    out, labels = tmp_path / "out", tmp_path / "labels"
    write_dataset_json(out, {"background": 0, "shell": 1, "core": 2, "ignore": 3})
    predicted, true = nested(5), nested(5)
    predicted[:, :8] = 2  # wrong in one half,
    true[:, :8] = 3  # which the annotator left open
    write_labels(predicted, out / "a.nii.gz")
    write_labels(true, labels / "a.nii.gz")
    p = np.stack([predicted == c for c in range(3)]).astype(np.float32)
    np.savez(out / "a.npz", probabilities=p)
    assert evaluate("-i", out, "-r", labels)[0] == 0
    for row in rows_of(out).values():
        assert float(row["dice"]) == float(row["nsd"]) == 1
        assert float(row["segmentation_error_ml"]) == float(row["ece"]) == float(row["brier"]) == 0
        assert row["covered"] == ""


# ---- files ----------------------------------------------------------------------------------------------------------------


class Links(html.parser.HTMLParser):
    """Collects what a page would load, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.loaded += [value for name, value in attrs if name in ("src", "href") and not value.startswith("data:")]

    def handle_data(self, data):
        self.text += data


def test_the_page_loads_nothing_and_escapes_names(evaluate, tmp_path):
    out, labels = tmp_path / "out", tmp_path / "labels"
    write_dataset_json(out, {"background": 0, "<script>": 1})
    for folder in (out, labels):
        write_labels(disc(SHAPE, 4), folder / "a&b.nii.gz")
    np.savez(out / "a&b.npz", probabilities=np.stack([1.0 - disc(SHAPE, 4), disc(SHAPE, 4)]))
    assert evaluate("-i", out, "-r", labels)[0] == 0
    page = (out / "evaluation.html").read_text()
    parser = Links()
    parser.feed(page)
    assert parser.loaded == [] and "<script>" not in page
    assert "<script>" in parser.text and "a&b" in parser.text and "data:image/png" in page
    assert environment().get_template("style.html.j2").render() in page  # as all reports look, on phones and in the dark too


def test_nothing_is_left_half_written(evaluate, folders, monkeypatch):
    out, labels = folders
    evaluate("-i", out, "-r", labels)
    before = {name: (out / name).read_bytes() for name in FILES}
    write_labels(nested(3), labels / "a.nii.gz", (2.0, 1.0, 1.0))
    monkeypatch.setattr("nndiffseg.report.evaluation_report.evaluation_page", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evaluate("-i", out, "-r", labels)
    monkeypatch.setattr("nndiffseg.report.evaluation_report.evaluation_page", lambda _: "\ud800")  # cannot be encoded
    with pytest.raises(UnicodeEncodeError):
        evaluate("-i", out, "-r", labels)
    assert {name: (out / name).read_bytes() for name in FILES} == before
    assert not [f for f in out.iterdir() if f.name.startswith(".")]


# ---- mistakes -------------------------------------------------------------------------------------------------------------


def refused(result: tuple[int, str, str]) -> str:
    code, _, err = result
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1
    return err


def test_no_match_is_one_sentence(evaluate, folders, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "No segmentation in" in refused(evaluate("-i", folders[0], "-r", tmp_path / "empty"))
    assert not (folders[0] / "evaluation.json").exists()


def test_different_shapes_name_the_case(evaluate, folders):
    out, labels = folders
    write_labels(np.zeros((3, 4, 5), np.uint8), labels / "b.nii.gz")
    message = refused(evaluate("-i", out, "-r", labels))
    assert "segmentation of b" in message and "12x16x16" in message and "3x4x5" in message


@pytest.mark.parametrize("what", ["sample", "map"])
def test_samples_and_maps_of_another_shape_name_the_case(evaluate, folders, what):
    out, labels = folders
    place = {"sample": "samples/a_s00.nii.gz", "map": "uncertainty/a_total.nii.gz"}[what]
    write_labels(np.zeros((3, 4, 5), np.uint8), out / place)
    assert "segmentation of a" in refused(evaluate("-i", out, "-r", labels))


def test_probabilities_of_another_model_name_the_case(evaluate, folders):
    out, labels = folders
    np.savez(out / "a.npz", probabilities=np.zeros((2, *SHAPE), np.float32))
    assert "probabilities of a have the shape 2x12x16x16 instead of 3x12x16x16" in refused(evaluate("-i", out, "-r", labels))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 damaged", b"text"])
def test_damaged_probabilities_are_one_sentence(evaluate, folders, content):
    out, labels = folders
    (out / "a.npz").write_bytes(content)
    assert "a.npz" in refused(evaluate("-i", out, "-r", labels))


@pytest.mark.parametrize("content", ["{", "[]", '{"structures": 3}', '{"expected_dice": "high"}'])
def test_a_damaged_case_json_is_one_sentence(evaluate, folders, content):
    out, labels = folders
    (out / "uncertainty").mkdir()
    (out / "uncertainty" / "a.json").write_text(content)
    assert "a.json" in refused(evaluate("-i", out, "-r", labels))


def test_a_label_that_dataset_json_does_not_name_is_one_sentence(evaluate, folders):
    out, labels = folders
    write_labels(nested(4) * 3, labels / "a.nii.gz", (2.0, 1.0, 1.0))
    message = refused(evaluate("-i", out, "-r", labels))
    assert "a.nii.gz holds the label" in message and "-djfile" in message


def test_the_predictions_are_not_their_own_reference(evaluate, folders):
    assert "cannot be the reference too" in refused(evaluate("-i", folders[0], "-r", folders[0]))
    assert "given twice" in refused(evaluate("-i", folders[0], "-r", folders[1], folders[1]))


def test_missing_and_foreign_files_are_told_before_anything_is_read(evaluate, folders, tmp_path):
    out, labels = folders
    assert "no folder" in refused(evaluate("-i", tmp_path / "nowhere", "-r", labels))
    assert "no folder" in refused(evaluate("-i", out, "-r", labels, tmp_path / "nowhere"))
    assert "-pfile" in refused(evaluate("-i", out, "-r", labels, "-pfile", tmp_path / "nowhere.json"))
    assert "--tolerance" in refused(evaluate("-i", out, "-r", labels, "--tolerance", "nan"))
    assert "-np" in refused(evaluate("-i", out, "-r", labels, "-np", -1))
    assert "is a file" in refused(evaluate("-i", out, "-r", labels, "-o", out / "dataset.json"))
    (out / "plans.json").write_text('{"image_reader_writer": "os.system", "configurations": {}}')
    assert "os.system" in refused(evaluate("-i", out, "-r", labels))
    (out / "plans.json").unlink()
    (out / "dataset.json").write_text('{"labels": {"background": 0, "a": 2}, "file_ending": ".nii.gz"}')
    assert "without gaps" in refused(evaluate("-i", out, "-r", labels))
    (out / "dataset.json").unlink()
    assert "-djfile" in refused(evaluate("-i", out, "-r", labels))


def test_another_spacing_is_warned_about(evaluate, folders):
    out, labels = folders
    write_labels(nested(4), labels / "a.nii.gz", (3.0, 1.0, 1.0))
    code, text, _ = evaluate("-i", out, "-r", labels)
    assert code == 0 and "Warning: compared voxel by voxel, although a and its reference" in text and "spacing" in text


def test_the_real_command_in_its_own_process(folders):
    out, labels = folders
    command = [sys.executable, "-m", "nndiffseg.cli.evaluate", "-i", str(out), "-r", str(labels)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ, check=False)
    assert finished.returncode == 0, finished.stderr
    assert "Evaluating" in finished.stderr and "2 cases, mean Dice" in finished.stdout
    assert all((out / name).is_file() for name in FILES)
