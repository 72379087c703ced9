"""``nndiffseg_demo``: refuses foreign folders, touches nothing outside its own, and reaches the promised figures."""

from __future__ import annotations

import json
import os
import sys

import pytest
from stock_folder import DATASET

from nndiffseg.cli.demo import MARKER, main

FLAGS = ["-device", "cpu"]
NNUNET = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """An empty working folder and no nnU-Net variables, as after a fresh installation."""
    for name in NNUNET:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_demo(folder, *flags: str) -> dict:
    assert main(["--output", str(folder), *FLAGS, *flags]) == 0
    return json.loads((folder / "summary.json").read_text())


def check_report(folder) -> None:
    report = (folder / "report.html").read_text()
    assert "data:image/png;base64," in report
    assert "http://" not in report and "https://" not in report


def test_a_folder_with_foreign_files_is_refused_and_left_alone(bare, capsys):
    mine = bare / "thesis"
    mine.mkdir()
    (mine / "chapter.txt").write_text("years of work")
    assert main(["--output", str(mine), *FLAGS]) == 2
    assert "holds files that are not the demo's" in capsys.readouterr().err
    assert [p.name for p in mine.iterdir()] == ["chapter.txt"]


def test_an_output_that_is_a_file_is_refused(bare, capsys):
    (bare / "out").write_text("a file")
    assert main(["--output", str(bare / "out"), *FLAGS]) == 2
    assert "is a file" in capsys.readouterr().err
    assert (bare / "out").read_text() == "a file"


@pytest.mark.parametrize("flag", ["--minutes", "--samples", "--cases", "--test_cases"])
def test_numbers_that_make_no_sense_are_refused_before_anything_is_written(bare, capsys, flag):
    assert main([flag, "0", *FLAGS]) == 2
    assert f"{flag} must be positive" in capsys.readouterr().err
    assert list(bare.iterdir()) == []


def test_a_dataset_folder_without_dataset_json_is_refused_and_an_old_demo_kept(bare, capsys):
    old = bare / "nndiffseg_demo"
    old.mkdir()
    for name in (MARKER, "report.html"):
        (old / name).touch()
    assert main(["--dataset", str(bare / "nowhere"), *FLAGS]) == 2
    assert "holds no dataset.json" in capsys.readouterr().err
    assert (old / "report.html").is_file()


@pytest.mark.slow
def test_a_tiny_demo_writes_everything_into_one_folder_and_a_rerun_starts_clean(bare):
    out = bare / "nndiffseg_demo"
    tiny = ("--minutes", "0.1", "--cases", "8", "--test_cases", "2", "--samples", "4")
    summary = run_demo(out, *tiny)
    assert {"generate", "plan", "train", "predict", "evaluate", "report", "total"} <= set(summary["seconds"])
    assert 0 <= summary["dice_mean"] <= 1
    assert set(summary["volume_spread_ratio"]) == {"front lobe", "rear lobe", "mean"}
    assert summary["cases"] == 2
    check_report(out)
    assert [p.name for p in bare.iterdir()] == ["nndiffseg_demo"]
    assert not any(str(out) in os.environ.get(name, "") for name in NNUNET)

    leftover = out / "predictions" / "of_the_first_run.nii.gz"
    leftover.touch()
    run_demo(out, *tiny)
    assert not leftover.exists()


@pytest.mark.slow
def test_a_demo_on_a_users_dataset_leaves_it_alone_and_knows_no_true_spread(bare, phantom_dataset):
    own = bare / "raw" / phantom_dataset.name
    own.parent.mkdir()
    own.symlink_to(phantom_dataset, target_is_directory=True)
    before = sorted(p.relative_to(phantom_dataset) for p in phantom_dataset.rglob("*"))
    (phantom_dataset / "truth.json").rename(bare / "truth.json")
    try:
        summary = run_demo(bare / "out", "--dataset", str(own), "--minutes", "0.1", "--samples", "2")
    finally:
        (bare / "truth.json").rename(phantom_dataset / "truth.json")
    assert summary["volume_spread_ratio"] is None
    assert summary["cases"] == len(json.loads((phantom_dataset / "splits_final.json").read_text())[0]["val"])
    assert sorted(p.relative_to(phantom_dataset) for p in phantom_dataset.rglob("*")) == before
    check_report(bare / "out")


@pytest.mark.slow
def test_the_whole_demo_reaches_the_promised_figures(bare):
    summary = run_demo(bare / "nndiffseg_demo")
    assert summary["dice_mean"] >= 0.90
    assert summary["error_auroc"] >= 0.85
    for structure in ("front lobe", "rear lobe"):
        assert 0.7 <= summary["volume_spread_ratio"][structure] <= 1.3
    check_report(bare / "nndiffseg_demo")


def test_foreign_files_in_an_old_demo_and_behind_its_links_stay(bare, capsys, monkeypatch):
    """What is emptied is what the demo wrote: a link in its place is removed, and not what it leads to."""
    mine, old = bare / "thesis", bare / "nndiffseg_demo"
    for folder in (mine, old / "results"):
        folder.mkdir(parents=True)
    for file in (mine / "chapter.txt", old / "notes.txt", old / MARKER, old / "results" / "model"):
        file.write_text("years of work")
    (old / "raw").symlink_to(mine, target_is_directory=True)
    monkeypatch.setattr("nndiffseg.data.phantom.write_phantom_dataset", lambda *_, **__: sys.exit(7))
    assert main(FLAGS) == 7
    assert sorted(f.name for f in old.iterdir()) == [MARKER, "notes.txt"]
    assert (mine / "chapter.txt").read_text() == "years of work"


@pytest.mark.slow
@pytest.mark.parametrize(
    "content", [{"file_ending": "/../../EVIL"}, {"dataset": {"../../EVIL": {"images": ["a"], "label": "b"}}}]
)
def test_a_foreign_dataset_leads_nowhere(bare, capfd, content):
    own = bare / "a" / "raw" / "Dataset903_Foreign"
    own.mkdir(parents=True)
    (own / "dataset.json").write_text(json.dumps(DATASET | content))
    assert main(["--dataset", str(own), "--output", str(bare / "a" / "out"), *FLAGS]) == 2
    error = capfd.readouterr().err
    assert ("file_ending" in error or "cannot be part of a file's name" in error) and error.count("error: ") == 1
    assert not list(bare.rglob("*EVIL*"))
