"""Cases whose files are named one by one, and the files that one prediction becomes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from tiny_model import model_folder, model_folder_2d, raw_images, results  # noqa: F401

import nndiffseg
from nndiffseg import Predictor
from nndiffseg.cli.predict import main
from nndiffseg.errors import UserError
from nndiffseg.inference.prediction import Prediction


@pytest.fixture(scope="module")
def predictor(model_folder) -> Predictor:  # noqa: F811
    return Predictor.from_folder(model_folder, device="cpu", samples=2, mirroring=False)


@pytest.fixture(scope="module")
def moved(raw_images, tmp_path_factory) -> Path:  # noqa: F811
    """Two cases with an origin of their own, and under names without channel numbers."""
    folder = tmp_path_factory.mktemp("moved")
    for case in ("case_000", "case_001"):
        for channel in range(2):
            image = sitk.ReadImage(str(raw_images / f"{case}_{channel:04d}.nii.gz"))
            image.SetOrigin((7, -8, 9))
            sitk.WriteImage(image, str(folder / f"{case}_{channel:04d}.nii.gz"))
            shutil.copy(folder / f"{case}_{channel:04d}.nii.gz", folder / f"{case}{'ab'[channel]}.nii.gz")
    return folder


@pytest.fixture(scope="module")
def prediction(predictor, moved) -> Prediction:
    files = [moved / "case_000_0000.nii.gz", moved / "case_000_0001.nii.gz"]
    return predictor.predict(files, case_id="case_000", return_samples=True)


@pytest.fixture
def call(results, tmp_path, capsys):  # noqa: F811
    def run(*words):
        rest = ["--samples", "2", "--disable_tta", "-device", "cpu", "--disable_progress_bar", f"--results={results}"]
        code = main([*map(str, words), *rest, f"--raw={tmp_path}", f"--preprocessed={tmp_path}"])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_lists_of_files_are_predicted_as_their_folder_is(predictor, moved, prediction, tmp_path):
    lists = [[moved / f"case_00{n}_000{c}.nii.gz" for c in range(2)] for n in range(2)]
    first, second = nndiffseg.predict_files(predictor, lists)
    assert np.array_equal(first.segmentation, prediction.segmentation) and np.array_equal(first.total, prediction.total)
    assert nndiffseg.predict_files(predictor, lists, tmp_path / "out", progress=False) == ["case_000", "case_001"]
    for one, case in ((first, "case_000"), (second, "case_001")):
        written = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out" / f"{case}.nii.gz")))
        assert np.array_equal(written, one.segmentation)
    arguments = json.loads((tmp_path / "out" / "predict_from_raw_data_args.json").read_text())
    assert arguments["input_folder"] == str(moved) and (tmp_path / "out" / "report.html").is_file()


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ([], "no files to predict"),
        ([[]], "without files"),
        ([["case_000_0000.nii.gz"]], "has 1 files, but the model was trained with 2"),
        ([["case_000_0001.nii.gz", "case_000_0000.nii.gz"]], "needs case_000_0000.nii.gz where case_000_0001.nii.gz stands"),
        ([["nowhere_0000.nii.gz", "case_000_0001.nii.gz"]], "There is no file"),
        ([["case_000_0000.nii.gz", "case_000_0001.nii.gz"]] * 2, "both be called case_000"),
        ([["case_000_0000.nii.gz", "note.txt"]], "does not end in .nii.gz"),
    ],
)
def test_lists_that_are_no_cases_are_one_sentence(predictor, moved, files, sentence):
    (moved / "note.txt").write_text("a note")
    with pytest.raises(UserError, match=sentence):
        nndiffseg.predict_files(predictor, [[moved / name for name in case] for case in files])


def test_several_cases_for_predict_name_the_function_that_takes_them(predictor):
    with pytest.raises(UserError, match="predict_files"):
        predictor.predict([["a", "b"], ["c", "d"]])


def test_a_prediction_is_written_where_the_image_lies(prediction, moved, tmp_path):
    written = prediction.write(tmp_path / "new" / "liver.nii.gz", save_probabilities=True)
    kinds = ("aleatoric.nii.gz", "epistemic.nii.gz", "s00.nii.gz", "s01.nii.gz", "total.nii.gz", "uncertainty.json")
    assert [f.name for f in written] == ["liver.npz", *(f"liver_{kind}" for kind in kinds), "liver.nii.gz"]
    assert sorted(f.name for f in (tmp_path / "new").iterdir()) == sorted(f.name for f in written)
    image = sitk.ReadImage(str(moved / "case_000_0000.nii.gz"))
    for name, array in (
        ("liver", prediction.segmentation),
        ("liver_total", prediction.total),
        ("liver_s01", prediction.samples[1]),
    ):
        file = sitk.ReadImage(str(tmp_path / "new" / f"{name}.nii.gz"))
        assert file.GetOrigin() == image.GetOrigin() and file.GetSpacing() == image.GetSpacing()
        assert np.array_equal(sitk.GetArrayFromImage(file), array)
    assert sitk.ReadImage(str(tmp_path / "new" / "liver.nii.gz")).GetPixelID() == sitk.sitkUInt8
    record = json.loads((tmp_path / "new" / "liver_uncertainty.json").read_text())
    assert record["case"] == "case_000" and record["structures"] == prediction.volumes and record["settings"]["samples"] == 2
    assert np.array_equal(np.load(tmp_path / "new" / "liver.npz")["probabilities"], prediction.probabilities)


def test_the_prediction_of_an_array_is_written_with_its_spacing_or_like_an_image(predictor, moved, tmp_path):
    images = [sitk.ReadImage(str(moved / f"case_000_000{c}.nii.gz")) for c in range(2)]
    array = np.stack([sitk.GetArrayFromImage(image) for image in images])
    prediction = predictor.predict(array, (1.0, 1.5, 2.0))
    (*_, plain), (*_, like), (*_, nrrd) = (
        prediction.write(tmp_path / "plain.nii.gz"),
        prediction.write(tmp_path / "like.nii.gz", moved / "case_000_0000.nii.gz"),
        prediction.write(tmp_path / "like.nrrd", images[0]),
    )
    assert sitk.ReadImage(str(plain)).GetSpacing() == (2.0, 1.5, 1.0) and sitk.ReadImage(str(plain)).GetOrigin() == (0, 0, 0)
    for file in (like, nrrd):
        assert sitk.ReadImage(str(file)).GetOrigin() == (7, -8, 9)
        assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(file))), prediction.segmentation)
    assert predictor.predict(images).write(tmp_path / "sitk.nii.gz")[-1].is_file()
    assert sitk.ReadImage(str(tmp_path / "sitk.nii.gz")).GetOrigin() == (7, -8, 9)
    with pytest.raises(UserError, match="give the image itself"):
        prediction.write(tmp_path / "a.nii.gz", images[0][:, :, :-1])
    for name in ("liver.txt", ".nii.gz", "liver.png"):
        with pytest.raises(UserError, match=r"no name of a segmentation|does not fit"):
            prediction.write(tmp_path / name)
    assert not list(tmp_path.glob(".nndiffseg_*"))


def test_a_photograph_is_written_as_one(model_folder_2d, tmp_path):  # noqa: F811
    predictor = Predictor.from_folder(model_folder_2d, device="cpu", samples=2, mirroring=False)
    prediction = predictor.predict(np.random.default_rng(0).normal(size=(2, 24, 20)), (2.0, 3.0))
    for name in ("photo.png", "photo.tif"):
        *_, file = prediction.write(tmp_path / name)
        assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(file))), prediction.segmentation)
    *_, file = prediction.write(tmp_path / "photo.nii.gz")
    assert nibabel.load(file).shape == (20, 24) and sitk.ReadImage(str(file)).GetSpacing() == (3.0, 2.0)


def test_the_command_takes_the_files_of_a_case_and_a_file_for_the_result(call, moved, prediction, tmp_path):
    channels = moved / "case_000_0001.nii.gz", moved / "case_000_0000.nii.gz"  # put in order by their names
    code, said, error = call("-i", *channels, "-o", tmp_path / "liver.nii.gz", "--save_samples", "--npz")
    assert code == 0, error
    assert "1 case, 2 samples" in said and "liver.nii.gz" in said
    names = {f.name for f in tmp_path.iterdir()}
    assert {"liver.nii.gz", "liver_total.nii.gz", "liver_s01.nii.gz", "liver.npz", "liver_uncertainty.json"} <= names
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "liver.nii.gz"))), prediction.segmentation)


def test_each_i_is_a_case_and_names_need_no_channel_numbers(call, moved, tmp_path, monkeypatch):
    monkeypatch.setattr("nndiffseg.inference.folder._write_report", lambda *_: None)
    cases = [("-i", moved / f"{case}a.nii.gz", moved / f"{case}b.nii.gz") for case in ("case_000", "case_001")]
    code, _, error = call(*cases[0], *cases[1], "-o", tmp_path / "out")
    assert code == 0, error
    assert {f.name for f in (tmp_path / "out").glob("*.nii.gz")} == {"case_000a.nii.gz", "case_001a.nii.gz"}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("-i", "M", "M/case_000_0000.nii.gz", "-o", "T/out"), "takes one folder or files"),
        (("-i", "M", "M", "-o", "T/out"), "takes one folder or files"),
        (("-i", "M/none.nii.gz", "-o", "T/out"), "no folder or file"),
        (("-i", "M", "-o", "T/out.nii.gz"), "give a folder for the segmentations"),
        (("-i", "M/case_000_0000.nii.gz", "M/case_000b.nii.gz", "-o", "T/out"), "name all alike"),
        (("-i", "M/case_000_0000.nii.gz", "-o", "T/out"), "trained with 2 channels"),
        (("-i", "M/case_000a.nii.gz", "M/case_000b.nii.gz", "-o", "M/case_000b.nii.gz"), "is the image itself"),
        (("-i", "M/case_000a.nii.gz", "M/case_000b.nii.gz", "-o", "M"), "same folder"),
        (("-i", "M/case_000a.nii.gz", "M/case_000b.nii.gz", "-o", "T/a.nii.gz", "--flag_below", "0.5"), "needs a folder"),
        (("-i", "M/case_000a.nii.gz", "M/case_000b.nii.gz", "-o", "T/a.nii.gz", "--npz", "nifti"), "needs a folder"),
    ],
)
def test_mixtures_that_make_no_sense_are_one_sentence(call, moved, tmp_path, words, sentence):
    before = sorted(moved.iterdir())
    code, _, error = call(*(word.replace("M", str(moved), 1).replace("T/", f"{tmp_path}/", 1) for word in words))
    assert code == 2 and sentence in error and error.count("\n") == 1
    assert sorted(moved.iterdir()) == before and not list(tmp_path.iterdir())


def test_what_few_samples_mean_for_mirroring_is_said_where_it_matters(model_folder):  # noqa: F811
    def remark(folds, samples, mirroring=True):
        return Predictor.from_folder(model_folder, folds, device="cpu", samples=samples, mirroring=mirroring).remark()

    assert "with --samples 1 the image is not mirrored" in remark([0], 1) and "--samples 8 uses all" in remark([0], 1)
    assert "of each fold: with --samples 8 only 4 of 8" in remark([0, 1], 8) and "--samples 16 uses" in remark([0, 1], 8)
    assert remark([0], 8) is None and remark([0], 1, mirroring=False) is None and remark([0, 1], 16) is None
