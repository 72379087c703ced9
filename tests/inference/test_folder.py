"""A folder in, a folder out: the contract's files, the same numbers in any order, whole cases after a kill."""

from __future__ import annotations

import gzip
import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder2
from skimage import io

from nndiffseg import Predictor, predict_folder
from nndiffseg.errors import UserError
from nndiffseg.export.writer import staging_folder
from nndiffseg.inference import folder as folder_module

CASES = [f"case_{i:03d}" for i in range(4)]


@pytest.fixture(scope="module")
def predictor(model_folder) -> Predictor:
    return Predictor.from_folder(model_folder, device="cpu", samples=3, seed=5)


@pytest.fixture(scope="module")
def reference(predictor, raw_images, tmp_path_factory) -> Path:
    """All cases in one run."""
    out = tmp_path_factory.mktemp("out")
    assert predict_folder(predictor, raw_images, out, save_samples=True, save_probabilities=True, progress=False) == CASES
    return out


@pytest.fixture
def images(raw_images, tmp_path) -> Path:
    """A copy of the input folder to damage."""
    return Path(shutil.copytree(raw_images, tmp_path / "in"))


def arrays(folder: Path) -> dict[str, np.ndarray]:
    """Every array that a run wrote, by file name."""
    found = {
        str(f.relative_to(folder)): sitk.GetArrayFromImage(sitk.ReadImage(str(f))) for f in sorted(folder.rglob("*.nii.gz"))
    }
    return found | {f.name: np.load(f)["probabilities"] for f in sorted(folder.glob("*.npz"))}


def assert_same(a: Path, b: Path) -> None:
    x, y = arrays(a), arrays(b)
    assert x.keys() <= y.keys() and x
    for name in x:
        assert np.array_equal(x[name], y[name]), name
    for file in (a / "uncertainty").glob("*.json"):
        other = json.loads((b / "uncertainty" / file.name).read_text())
        assert json.loads(file.read_text()) == other


def test_every_file_of_the_contract_is_there_and_nothing_else(reference):
    wanted = {"dataset.json", "plans.json", "predict_from_raw_data_args.json", "report.html"}
    for case in CASES:
        wanted |= {f"{case}.nii.gz", f"{case}.npz", f"{case}.pkl", f"uncertainty/{case}.json"}
        wanted |= {f"uncertainty/{case}_{kind}.nii.gz" for kind in ("total", "aleatoric", "epistemic")}
        wanted |= {f"samples/{case}_s{n:02d}.nii.gz" for n in range(3)}
    assert {str(f.relative_to(reference)) for f in reference.rglob("*") if f.is_file()} == wanted


def test_values_lie_in_their_ranges_and_fit_together(reference):
    total, aleatoric, epistemic = (
        sitk.GetArrayFromImage(sitk.ReadImage(str(reference / "uncertainty" / f"case_002_{kind}.nii.gz")))
        for kind in ("total", "aleatoric", "epistemic")
    )
    assert total.dtype == np.float32 and total.min() >= 0 and total.max() <= 1
    np.testing.assert_allclose(total, aleatoric + epistemic, atol=1e-5)
    content = json.loads((reference / "uncertainty" / "case_002.json").read_text())
    segmentation = sitk.GetArrayFromImage(sitk.ReadImage(str(reference / "case_002.nii.gz")))
    samples = [
        sitk.GetArrayFromImage(sitk.ReadImage(str(reference / "samples" / f"case_002_s{n:02d}.nii.gz"))) for n in range(3)
    ]
    shell = content["structures"]["shell"]
    assert shell["segmentation_ml"] == pytest.approx((segmentation == 1).sum() / 1000)
    assert shell["mean_ml"] == pytest.approx(np.mean([(s == 1).sum() for s in samples]) / 1000)
    assert content["settings"]["seed"] == 5 and content["settings"]["folds"] == ["0", "1"]
    assert [c["fusion_weight"] for c in content["calibration"]] == [0.5, 0.5] and content["samples"] == 3


def test_nnunets_evaluation_runs_on_the_output(reference, raw_images, tmp_path):
    compute_metrics_on_folder2(
        str(raw_images.parent / "labelsTr"),
        str(reference),
        str(reference / "dataset.json"),
        str(reference / "plans.json"),
        str(tmp_path / "summary.json"),
        num_processes=1,
    )
    assert len(json.loads((tmp_path / "summary.json").read_text())["metric_per_case"]) == 4


def test_parts_and_order_do_not_matter(predictor, raw_images, reference, tmp_path, capsys):
    out, said = tmp_path / "out", []
    options = {"save_samples": True, "save_probabilities": True, "progress": False, "num_parts": 3}
    done = []
    for part in (2, 0, 1):
        done.append(predict_folder(predictor, raw_images, out, part_id=part, **options))
        said.append(capsys.readouterr().out)
    assert done == [["case_002"], ["case_000", "case_003"], ["case_001"]]
    assert_same(out, reference)
    left = "of 4 cases are left to other parts:"
    assert f"3 {left} case_000, case_001, case_003.\n" in said[0] and f"1 {left} case_001.\n" in said[1] and left not in said[2]


@pytest.mark.slow
def test_worker_processes_do_not_matter(predictor, raw_images, reference, tmp_path):
    predict_folder(
        predictor,
        raw_images,
        tmp_path / "out",
        save_samples=True,
        save_probabilities=True,
        progress=False,
        preprocessing_processes=2,
        export_processes=2,
    )
    assert_same(tmp_path / "out", reference)


def test_another_seed_gives_other_samples(model_folder, raw_images, reference, tmp_path):
    other = Predictor.from_folder(model_folder, device="cpu", samples=3, seed=6)
    predict_folder(other, raw_images, tmp_path, save_samples=True, progress=False, num_parts=4)
    x, y = arrays(tmp_path), arrays(reference)
    assert all((x[f"samples/case_000_s{n:02d}.nii.gz"] != y[f"samples/case_000_s{n:02d}.nii.gz"]).any() for n in range(3))


def test_a_killed_run_goes_on_to_the_same_result(model_folder, raw_images, reference, tmp_path):
    out, script = tmp_path / "out", tmp_path / "script.py"
    script.write_text(
        "from nndiffseg import Predictor, predict_folder\n"
        f"p = Predictor.from_folder({str(model_folder)!r}, device='cpu', samples=3, seed=5)\n"
        f"predict_folder(p, {str(raw_images)!r}, {str(out)!r}, save_samples=True, save_probabilities=True)\n"
    )
    process = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not (out / "case_000.nii.gz").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    assert (out / "case_000.nii.gz").exists() and not (out / "report.html").exists()
    predictor = Predictor.from_folder(model_folder, device="cpu", samples=3, seed=5)
    done = predict_folder(
        predictor, raw_images, out, save_samples=True, save_probabilities=True, progress=False, continue_prediction=True
    )
    assert "case_000" not in done and "case_003" in done
    assert_same(out, reference)
    assert not [f for f in out.iterdir() if f.name.startswith(".")]


def test_what_a_killed_run_left_of_a_complete_case_is_removed(predictor, raw_images, reference, tmp_path):
    """Killed between the last file of a case and the end of its staging."""
    out = Path(shutil.copytree(reference, tmp_path / "out"))
    staging_folder(out, "case_000").mkdir(parents=True)
    flags = {"save_samples": True, "save_probabilities": True, "continue_prediction": True}
    assert predict_folder(predictor, raw_images, out, progress=False, **flags) == []
    assert not [f for f in out.iterdir() if f.name.startswith(".")]


def test_a_case_with_a_missing_file_is_done_again(predictor, raw_images, reference, tmp_path):
    out = Path(shutil.copytree(reference, tmp_path / "out"))
    (out / "samples" / "case_001_s02.nii.gz").unlink()
    options = {"save_samples": True, "save_probabilities": True, "progress": False, "continue_prediction": True}
    assert predict_folder(predictor, raw_images, out, **options) == ["case_001"]
    assert_same(out, reference)
    assert predict_folder(predictor, raw_images, out, **options) == []


# ---- nothing stale ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: setattr(p, "options", replace(p.options, seed=6)), "seed 5, not 6"),
        (lambda p: setattr(p, "options", replace(p.options, step_size=0.9)), "step_size 0.5, not 0.9"),
        (lambda p: p.model.folds[0].network.denoiser.head.bias.data.add_(1), "another model or calibration"),
    ],
    ids=["seed", "step size", "weights"],
)
def test_another_model_or_seed_does_not_go_on(model_folder, raw_images, reference, tmp_path, change, words):
    out = Path(shutil.copytree(reference, tmp_path / "out"))
    other = Predictor.from_folder(model_folder, device="cpu", samples=3, seed=5)
    change(other)
    with pytest.raises(UserError, match=words) as error:
        predict_folder(other, raw_images, out, progress=False, continue_prediction=True)
    assert "--continue_prediction" in str(error.value)
    assert_same(out, reference)


def test_another_number_of_samples_does_not_go_on(model_folder, raw_images, reference, tmp_path):
    out = Path(shutil.copytree(reference, tmp_path / "out"))
    other = Predictor.from_folder(model_folder, device="cpu", samples=2, seed=5)
    with pytest.raises(UserError, match="samples 3, not 2"):
        predict_folder(other, raw_images, out, save_samples=True, progress=False, continue_prediction=True)


def test_a_case_whose_image_changed_is_predicted_again(predictor, images, reference, tmp_path, capsys):
    out = Path(shutil.copytree(reference, tmp_path / "out"))
    shutil.copy(images / "case_000_0000.nii.gz", images / "case_001_0000.nii.gz")
    assert predict_folder(predictor, images, out, progress=False, continue_prediction=True) == ["case_001"]
    assert "Images that changed after their prediction, so that they are predicted again: case_001." in capsys.readouterr().out


# ---- files that users bring -------------------------------------------------------------------------------------------


def test_a_4d_image_is_predicted_as_its_channels_are_beside_sound_cases(predictor, images, reference, tmp_path, capsys):
    """Row 02, and row 13: what is left out is named."""
    channels = [sitk.ReadImage(str(images / f"case_000_{c:04d}.nii.gz")) for c in range(2)]
    sitk.WriteImage(sitk.JoinSeries(channels), str(images / "case_000_0000.nii.gz"))
    (images / "case_000_0001.nii.gz").unlink()
    three = sitk.JoinSeries([*channels, channels[0]])
    sitk.WriteImage(three, str(images / "case_002_0000.nii.gz"))
    for file in (images / "case_002_0001.nii.gz", *images.glob("case_003*")):
        file.unlink()
    (images / "d_0000.nii").touch()
    with pytest.raises(UserError, match=r"1 of 3 cases could not be predicted.*case case_002 has 3 channels"):
        predict_folder(predictor, images, tmp_path / "out", progress=False)
    found, wanted = arrays(tmp_path / "out"), arrays(reference)
    assert {"case_000.nii.gz", "case_001.nii.gz", "uncertainty/case_000_total.nii.gz"} <= found.keys()
    assert all(np.array_equal(array, wanted[name]) for name, array in found.items())
    assert f"Left out of {images}: d_0000.nii." in capsys.readouterr().out


def test_colour_photographs(model_folder_2d, tmp_path):
    """PNG in, PNG out; the maps are 2D NIfTI with unit spacing."""
    model = Path(shutil.copytree(model_folder_2d, tmp_path / model_folder_2d.name))
    for name, changes in (
        ("plans.json", {"image_reader_writer": "NaturalImage2DIO"}),
        ("dataset.json", {"file_ending": ".png", "channel_names": {"0": "R", "1": "G"}}),
    ):
        content = json.loads((model / name).read_text())
        (model / name).write_text(json.dumps(content | changes))
    images, out = tmp_path / "in", tmp_path / "out"
    images.mkdir()
    for channel in range(2):
        array = np.random.default_rng(channel).integers(1, 255, (40, 52)).astype(np.uint8)
        io.imsave(images / f"photo_{channel:04d}.png", array, check_contrast=False)
    predictor = Predictor.from_folder(model, device="cpu", samples=2)
    predict_folder(predictor, images, out, save_samples=True, progress=False)
    assert io.imread(out / "photo.png").shape == io.imread(out / "samples" / "photo_s01.png").shape == (40, 52)
    total = sitk.ReadImage(str(out / "uncertainty" / "photo_total.nii.gz"))
    assert total.GetDimension() == 2 and total.GetSize() == (52, 40) and total.GetSpacing() == (1, 1)
    content = json.loads((out / "uncertainty" / "photo.json").read_text())
    assert "1000 pixels" in content["note"] and content["structures"]["shell"]["mean_ml"] <= 40 * 52 / 1000
    assert content["unit"] == "pixels" and "shell, pixels (90 %)" in (out / "report.html").read_text()
    # A colour file holds several channels: two of three here are one too many for a model of two.
    (images / "photo_0001.png").unlink()
    io.imsave(images / "photo_0000.png", np.ones((40, 52, 3), np.uint8), check_contrast=False)
    with pytest.raises(UserError, match="photo has 3 channels, but the model was trained with 2"):
        predict_folder(predictor, images, tmp_path / "out2", progress=False)


def refuses(predictor, images, tmp_path, message) -> None:
    with pytest.raises(UserError, match=message):
        predict_folder(predictor, images, tmp_path / "out", progress=False)


def test_no_folder_and_no_images(predictor, tmp_path):
    refuses(predictor, tmp_path / "nowhere", tmp_path, "no folder .*nowhere")
    (tmp_path / "empty").mkdir()
    refuses(predictor, tmp_path / "empty", tmp_path, r"holds no images; .* CASE_0000\.nii\.gz")
    assert not (tmp_path / "out").exists()


def test_missing_and_additional_channels_are_found_before_any_prediction(predictor, images, tmp_path):
    (images / "case_003_0001.nii.gz").rename(images / "case_003_0002.nii.gz")
    refuses(predictor, images, tmp_path, "case_003 has no file case_003_0001")
    shutil.copy(images / "case_003_0002.nii.gz", images / "case_003_0001.nii.gz")
    refuses(predictor, images, tmp_path, "case_003 has 3 channels, but the model was trained with 2")
    assert not (tmp_path / "out").exists()


def test_unreadable_headers_are_found_before_any_prediction(predictor, images, tmp_path):
    (images / "case_002_0001.nii.gz").write_bytes(b"not an image")
    refuses(predictor, images, tmp_path, r"case_002_0001.nii.gz cannot be read")
    sitk.WriteImage(sitk.Image(5, 6, 7, sitk.sitkFloat32), str(images / "case_002_0001.nii.gz"))
    refuses(predictor, images, tmp_path, r"case_002_0001.nii.gz has \(5, 6, 7\) voxels")
    assert not (tmp_path / "out").exists()


def test_a_bad_case_is_left_out_and_named_the_others_are_complete(predictor, images, reference, tmp_path):
    truncated = images / "case_001_0000.nii.gz"
    content = gzip.decompress(truncated.read_bytes())
    truncated.write_bytes(gzip.compress(content[: len(content) // 2]))
    image = sitk.ReadImage(str(images / "case_002_0001.nii.gz"))
    array = sitk.GetArrayFromImage(image)
    array[3, 4, 5] = np.nan
    broken = sitk.GetImageFromArray(array)
    broken.CopyInformation(image)
    sitk.WriteImage(broken, str(images / "case_002_0001.nii.gz"))
    with pytest.raises(UserError) as error:
        predict_folder(predictor, images, tmp_path / "out", progress=False)
    message = str(error.value)
    assert "2 of 4 cases" in message and "case_001_0000" in message and "1 NaN or infinite voxels" in message
    written = {f.name for f in (tmp_path / "out").glob("*.nii.gz")}
    assert written == {"case_000.nii.gz", "case_003.nii.gz"}
    assert_same(tmp_path / "out", reference)
    assert not list((tmp_path / "out" / "uncertainty").glob("case_001*"))


def test_parts_and_folders_are_checked(predictor, images, tmp_path):
    with pytest.raises(UserError, match="-part_id must lie between 0 and 1"):
        predict_folder(predictor, images, tmp_path / "out", num_parts=2, part_id=2)
    with pytest.raises(UserError, match="same folder"):
        predict_folder(predictor, images, images)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        predict_folder(predictor, images, tmp_path / "file")


def test_a_full_gpu_ends_the_run_with_one_sentence(predictor, raw_images, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise torch.cuda.OutOfMemoryError("full")

    monkeypatch.setattr(type(predictor), "predict_preprocessed", full)
    refuses(predictor, raw_images, tmp_path, "too little memory for case_000")


@pytest.mark.parametrize("error", [RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ..."), None])
def test_a_case_that_does_not_fit_into_memory_or_is_not_finite_is_named_and_the_later_ones_are_predicted(
    predictor, raw_images, tmp_path, monkeypatch, reference, error
):
    predict = type(predictor).predict_preprocessed

    def sometimes(self, data, case_id, **options):
        if case_id != "case_001":
            return predict(self, data, case_id, **options)
        if error is not None:
            raise error
        statistics = predict(self, data, case_id, **options)
        statistics.maps["total"][0] = float("nan")
        return statistics

    monkeypatch.setattr(type(predictor), "predict_preprocessed", sometimes)
    message = "answer to case_001 is not finite" if error is None else "too little memory for case_001; .*fewer --samples"
    refuses(predictor, raw_images, tmp_path, f"1 of 4 cases could not be predicted.*{message}")
    written = {f.name for f in (tmp_path / "out").glob("*.nii.gz")}
    assert written == {"case_000.nii.gz", "case_002.nii.gz", "case_003.nii.gz"}


@pytest.mark.slow
@pytest.mark.parametrize("where", ["read_stages", "export_case"])
def test_a_case_whose_reading_or_export_needs_too_much_memory_is_named_and_the_others_are_predicted(
    predictor, raw_images, tmp_path, monkeypatch, reference, where
):
    work = getattr(folder_module, where)

    def sometimes(*arguments):
        if "case_001" in (arguments[1], getattr(arguments[0], "id", None)):
            raise MemoryError("Unable to allocate 300 GiB")
        return work(*arguments)

    monkeypatch.setattr(folder_module, where, sometimes)
    refuses(predictor, raw_images, tmp_path, "1 of 4 cases could not be predicted.*too little memory for case_001; .*-npp 1")
    written = {f.name for f in (tmp_path / "out").glob("*.nii.gz")}
    assert written == {"case_000.nii.gz", "case_002.nii.gz", "case_003.nii.gz"}
    assert_same(tmp_path / "out", reference)
