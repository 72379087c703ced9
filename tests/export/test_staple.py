"""STAPLE: SimpleITK's consensus, ties by the mean, and the flag of nndiffseg_predict."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nndiffseg import Predictor, predict_folder
from nndiffseg.calibration import Calibration
from nndiffseg.cli.predict import main
from nndiffseg.errors import UserError
from nndiffseg.export.staple import consensus_of, staple
from nndiffseg.uncertainty.statistics import CaseStatistics


def raters(accuracies=(0.95, 0.9, 0.9, 0.4, 0.4, 0.4), shape=(6, 10, 12), seed=0) -> tuple[np.ndarray, np.ndarray]:
    """A truth of three labels, and raters who each tell the next label instead of the true one at their own rate."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 3, shape).astype(np.uint8)
    wrong = np.stack([rng.random(shape) > a for a in accuracies])
    return truth, np.where(wrong, (truth + 1) % 3, truth).astype(np.uint8)


def test_the_consensus_is_simpleitks():
    _, labels = raters()
    expected = sitk.GetArrayFromImage(sitk.MultiLabelSTAPLE([sitk.GetImageFromArray(one) for one in labels]))
    assert expected.max() == 2, "no tie in this case"
    fused = staple(labels, np.full(labels.shape[1:], 7, np.uint8))
    assert np.array_equal(fused, expected) and fused.dtype == np.uint8


def test_good_raters_outvote_a_majority_of_bad_ones():
    truth, labels = raters()
    majority = np.stack([(labels == k).sum(0) for k in range(3)]).argmax(0)
    errors = (staple(labels, majority) != truth).mean(), (majority != truth).mean()
    assert errors[0] < 0.7 * errors[1]


def test_ties_go_to_the_mean():
    labels = np.zeros((2, 1, 6, 6), np.uint8)
    labels[0, 0, 2:4], labels[1, 0, 2:4] = 1, 2  # two raters who never agree on the foreground
    expected = sitk.GetArrayFromImage(sitk.MultiLabelSTAPLE([sitk.GetImageFromArray(one) for one in labels]))
    tied = expected == 3
    assert tied.any(), "SimpleITK leaves voxels undecided here"
    for label in (1, 2):
        fused = staple(labels, np.full((1, 6, 6), label, np.uint8))
        assert (fused[tied] == label).all() and (fused[~tied] == expected[~tied]).all()


def test_labels_up_to_the_types_end_do_not_overflow_into_the_tie():
    labels = np.zeros((2, 1, 6, 6), np.uint8)
    labels[0, 0, 2:4], labels[1, 0, 2:4] = 254, 255
    fused = staple(labels, np.full((1, 6, 6), 254, np.uint8))
    assert set(np.unique(fused)) <= {0, 254, 255} and (fused[0, 2:4] >= 254).all()


def test_background_beyond_the_structures_does_not_matter():
    _, labels = raters()
    labels = np.pad(labels, [(0, 0), (1, 1), (1, 1), (1, 1)])
    small = staple(labels, np.zeros(labels.shape[1:], np.uint8))
    padded = np.pad(labels, [(0, 0), (9, 2), (5, 0), (0, 30)])
    large = staple(padded, np.zeros(padded.shape[1:], np.uint8))
    assert np.array_equal(large[9:-2, 5:, :-30], small) and large.sum() == small.sum()


def test_one_rater_and_no_foreground():
    truth, labels = raters((0.9,))
    assert np.array_equal(staple(labels, truth), labels[0])
    empty = np.zeros((3, 4, 5, 6), np.uint16)
    assert not staple(empty, np.ones((4, 5, 6), np.uint16)).any() and staple(empty, empty[0]).dtype == np.uint16


def test_a_cases_ties_are_decided_by_its_mean_probability(three_labels):
    labels = np.zeros((2, 1, 6, 6), np.uint8)
    labels[0, 0, 2:4], labels[1, 0, 2:4] = 1, 2
    p = torch.zeros(3, 1, 6, 6)
    p[0], p[1, :, :, :3], p[2, :, :, 3:] = 0.1, 0.9, 0.9
    fused = consensus_of(CaseStatistics(p, {}, labels, (Calibration(),)), three_labels)
    assert (fused[0, 2:4, :3] == 1).all() and (fused[0, 2:4, 3:] == 2).all() and not fused[0, :2].any()


def read(file) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


def test_the_flag_changes_the_segmentation_and_nothing_else(model_folder, raw_images, tmp_path, capsys):
    for fuse in ("mean", "staple"):
        flags = [
            "-m",
            model_folder,
            "-i",
            raw_images,
            "-o",
            tmp_path / fuse,
            "-device",
            "cpu",
            "--disable_progress_bar",
            "--disable_tta",
            "--samples",
            3,
            "--save_samples",
            "--npz",
            "-num_parts",
            4,
            "--fuse",
            fuse,
            *(f"--{kind}={tmp_path / kind}" for kind in ("raw", "preprocessed", "results")),
        ]
        assert main([str(f) for f in flags]) == 0, capsys.readouterr().err
    mean, fused = tmp_path / "mean", tmp_path / "staple"
    samples = np.stack([read(fused / f"samples/case_000_s{n:02d}.nii.gz") for n in range(3)])
    # The image is on the model's grid already, so the samples in the files are those that were fused.
    expected = staple(samples, read(mean / "case_000.nii.gz"))
    assert np.array_equal(read(fused / "case_000.nii.gz"), expected)
    assert not np.array_equal(read(mean / "case_000.nii.gz"), expected)
    for name in ("uncertainty/case_000_total", "uncertainty/case_000_epistemic", "samples/case_000_s01"):
        assert np.array_equal(read(mean / f"{name}.nii.gz"), read(fused / f"{name}.nii.gz"))
    p, q = (np.load(folder / "case_000.npz")["probabilities"] for folder in (mean, fused))
    assert np.array_equal(p, q)
    a, b = (json.loads((folder / "uncertainty" / "case_000.json").read_text()) for folder in (mean, fused))
    assert (a["settings"].pop("fuse"), b["settings"].pop("fuse")) == ("mean", "staple") and a["settings"] == b["settings"]
    volume = b["structures"]["shell"]["segmentation_ml"]
    assert volume == pytest.approx((expected == 1).sum() / 1000)


def test_the_python_interface_fuses_as_the_command_does(model_folder, raw_images, tmp_path):
    files = [raw_images / f"case_000_{c:04d}.nii.gz" for c in range(2)]
    array = np.stack([read(file) for file in files])
    predictor = Predictor.from_folder(model_folder, device="cpu", samples=3, mirroring=False)
    a, b = (predictor.predict(array, (1, 1, 1), "case_000", fuse=fuse, return_samples=True) for fuse in ("mean", "staple"))
    assert np.array_equal(b.segmentation, staple(a.samples, a.segmentation))
    assert not np.array_equal(a.segmentation, b.segmentation)
    assert np.array_equal(a.probabilities, b.probabilities) and np.array_equal(a.total, b.total)
    assert b.volumes["shell"]["segmentation_ml"] == pytest.approx((b.segmentation == 1).sum() / 1000)
    predict_folder(predictor, raw_images, tmp_path, num_parts=4, progress=False, fuse="staple")
    assert np.array_equal(read(tmp_path / "case_000.nii.gz"), b.segmentation)
    settings = json.loads((tmp_path / "uncertainty" / "case_000.json").read_text())["settings"]
    assert settings["fuse"] == "staple"


def test_an_unknown_fusion_is_refused_before_anything_is_written(model_folder, raw_images, tmp_path):
    predictor = Predictor.from_folder(model_folder, device="cpu", samples=2)
    with pytest.raises(UserError, match="no fusion 'median'; choose one of mean, staple"):
        predict_folder(predictor, raw_images, tmp_path / "out", fuse="median")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="no fusion 'median'; choose one of mean, staple"):
        predictor.predict(np.zeros((2, 8, 8, 8)), fuse="median")
