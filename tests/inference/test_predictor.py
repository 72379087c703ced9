"""The Python interface: one image in, everything out, the same numbers whatever the way in."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from tiny_model import write_model

from nndiffseg import Predictor
from nndiffseg.calibration import Calibration
from nndiffseg.errors import UserError
from nndiffseg.inference.model_folder import load_model


@pytest.fixture(scope="module")
def predictor(model_folder) -> Predictor:
    return Predictor.from_folder(model_folder, folds=[0], device="cpu", samples=4, mirroring=False, precision="float32")


@pytest.fixture(scope="module")
def files(raw_images) -> list:
    return [raw_images / f"case_000_{c:04d}.nii.gz" for c in range(2)]


@pytest.fixture(scope="module")
def image(files) -> np.ndarray:
    return np.stack([sitk.GetArrayFromImage(sitk.ReadImage(str(f))) for f in files])


@pytest.fixture(scope="module")
def prediction(predictor, image):
    return predictor.predict(image, (1, 1, 1), "case_000", return_samples=True)


def test_a_prediction_holds_everything_on_the_images_grid(prediction, image):
    shape = image.shape[1:]
    assert prediction.segmentation.shape == prediction.total.shape == prediction.aleatoric.shape == shape
    assert prediction.probabilities.shape == (3, *shape) and prediction.samples.shape == (4, *shape)
    np.testing.assert_allclose(prediction.probabilities.sum(0), 1, atol=1e-5)
    assert np.array_equal(prediction.segmentation, prediction.probabilities.argmax(0))
    p = prediction.probabilities.astype(float)
    entropy = -(p * np.log(p)).sum(0) / np.log(3)
    np.testing.assert_allclose(prediction.total, entropy, atol=1e-4)
    assert prediction.epistemic is None and np.array_equal(prediction.total, prediction.aleatoric)
    volumes = [(prediction.samples == 1).sum((1, 2, 3)) / 1000]
    assert prediction.volumes["shell"]["mean_ml"] == pytest.approx(np.mean(volumes))
    assert prediction.volumes["shell"]["sd_ml"] == pytest.approx(np.std(volumes, ddof=1))
    assert 0 < prediction.expected_dice < 1


def test_array_simpleitk_image_and_files_give_the_same(predictor, prediction, files):
    images = [sitk.ReadImage(str(f)) for f in files]
    composed = sitk.Compose(images)
    for given in (files, [str(f) for f in files], images, composed):
        again = predictor.predict(given, case_id="case_000")
        assert np.array_equal(again.probabilities, prediction.probabilities)


def test_seed_and_case_name_decide_on_the_samples(predictor, prediction, image):
    again = predictor.predict(image, (1, 1, 1), "case_000", return_samples=True)
    other = predictor.predict(image, (1, 1, 1), "case_001", return_samples=True)
    assert np.array_equal(again.samples, prediction.samples) and np.array_equal(again.total, prediction.total)
    assert (other.samples != prediction.samples).any()


def test_the_deterministic_part_is_what_nnunet_predicts(predictor, raw_images, model_folder):
    """nnU-Net's own sliding window over the same network, several tiles."""
    rng = np.random.default_rng(0)
    data = torch.from_numpy(rng.normal(size=(2, 30, 36, 30)).astype(np.float32))
    stock = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    plans = predictor.plans
    stock.manual_initialization(
        predictor.model.folds[0].network, plans, predictor.configuration, None, predictor.dataset_json, "nnDiffSegTrainer", None
    )
    expected = stock.predict_sliding_window_return_logits(data).float().softmax(0)
    ours = predictor.predict_parts(data, "x").deterministic
    # nnU-Net sums in half precision, its tiles need not start at whole cells, and its Gaussian is truncated.
    assert (ours - expected).abs().mean() < 5e-3
    assert (ours.argmax(0) == expected.argmax(0)).float().mean() > 0.97


def test_folds_share_the_samples_and_disagree(model_folder, image):
    both = Predictor.from_folder(model_folder, device="cpu", samples=3, mirroring=False, precision="float32")
    assert [fold.name for fold in both.model.folds] == ["0", "1"]
    p = both.predict(image, case_id="case_000", return_samples=True)
    assert len(p.samples) == 3
    np.testing.assert_allclose(p.total, p.aleatoric + p.epistemic, atol=1e-5)
    assert p.epistemic.max() > 0 and p.total.max() <= 1
    # Sample 0 comes from fold 0 alone and is the same sample that fold 0 gives by itself.
    alone = Predictor.from_folder(model_folder, [0], device="cpu", samples=1, mirroring=False, precision="float32")
    assert np.array_equal(alone.predict(image, case_id="case_000", return_samples=True).samples[0], p.samples[0])
    few = Predictor.from_folder(model_folder, device="cpu", samples=1)
    assert few.number_of_samples == 2


def test_parts_that_are_fused_afterwards_equal_the_streamed_prediction(predictor, image):
    data = torch.from_numpy(image)
    parts = predictor.predict_parts(data, "x")
    for weight in (0.0, 0.5, 1.0):
        fused = parts.statistics(Calibration(weight, volume_scale=2.5))
        expected = weight * parts.deterministic + (1 - weight) * parts.sampled
        torch.testing.assert_close(fused.probabilities, expected, atol=1e-6, rtol=0)
        assert fused.calibrations == (Calibration(weight, volume_scale=2.5),) and fused.labels is parts.labels
    streamed = predictor.predict_preprocessed(data, "x")
    torch.testing.assert_close(streamed.probabilities, parts.statistics(Calibration()).probabilities, atol=1e-6, rtol=0)
    assert np.array_equal(streamed.labels, parts.labels)


def test_each_fold_is_fused_with_its_own_calibration(make_dataset, tmp_path, image):
    """With weights 1 and 0 the mean over folds is half the first fold's head and half the second one's samples."""
    folder = write_model(make_dataset, tmp_path, calibrations=[Calibration(1.0), Calibration(0.0)])
    data, options = torch.from_numpy(image), {"device": "cpu", "mirroring": False, "precision": "float32"}
    both = Predictor.from_folder(folder, samples=4, **options).predict_preprocessed(data, "x")
    first, second = (Predictor.from_folder(folder, [k], samples=4, **options) for k in (0, 1))
    head = first.predict_parts(data, "x").deterministic
    rest = both.probabilities - head / 2
    torch.testing.assert_close(rest.sum(0), torch.full(rest.shape[1:], 0.5), atol=1e-5, rtol=0)
    # The second fold draws samples 1 and 3 of the four, so its own mean of all four differs, but its head does much more.
    own = second.predict_parts(data, "x")
    assert (2 * rest - own.sampled).abs().mean() < 0.5 * (2 * rest - own.deterministic).abs().mean()
    assert [c.fusion_weight for c in both.calibrations] == [1.0, 0.0]


def test_the_coherent_share_of_the_samples_replaces_trained_ones(make_dataset, tmp_path, image):
    data, options = torch.from_numpy(image), {"device": "cpu", "samples": 4, "precision": "float32", "mirroring": False}
    lengths = (0.0, 0.0, 0.5, 0.5)

    def model(share: float, **values: float) -> Predictor:
        calibration = Calibration(length_weights=lengths if share else (), coherent_share=share, **values)
        folder = write_model(make_dataset, tmp_path / str(share), calibrations=[calibration, calibration])
        return Predictor.from_folder(folder, [0], **options)

    trained, mixture, coherent = model(0.0), model(0.5), model(1.0, fusion_weight=1.0)
    coherent.model.folds[0].network.sample = None  # the diffusion must not run
    a, b, c = (p.predict_preprocessed(data, "x") for p in (trained, mixture, coherent))
    assert np.array_equal(a.labels[::2], b.labels[::2]) and (a.labels[1::2] != b.labels[1::2]).any()
    head = trained.predict_parts(data, "x").deterministic
    torch.testing.assert_close(c.probabilities, head, atol=1e-6, rtol=0)
    # Every coherent sample is a function of its index and the calibrated map.
    for statistics, predictor, members in ((b, mixture, [1, 3]), (c, coherent, [0, 1, 2, 3])):
        again = np.zeros_like(statistics.labels)
        predictor.draw_coherent(statistics.probabilities, "x", members, statistics.calibrations[0], again)
        assert np.array_equal(again[members], statistics.labels[members])
    assert [p.tiles(data) for p in (trained, coherent)] == [trained.tiles(data)] * 2
    assert coherent.settings()["coherent_share"] == [1.0]


def test_who_asks_for_a_sampler_or_its_steps_gets_the_trained_one(make_dataset, tmp_path, image):
    calibration = Calibration(1.0, length_weights=(0.0, 0.0, 0.0, 1.0), coherent_share=1.0)
    folder = write_model(make_dataset, tmp_path, calibrations=[calibration, calibration])
    options = {"device": "cpu", "samples": 2, "precision": "float32"}
    plain = write_model(make_dataset, tmp_path / "plain", calibrations=[Calibration(1.0), Calibration(1.0)])
    for asked in ({"sampler": "ancestral"}, {"steps": 2}):
        predictor, trained = (Predictor.from_folder(f, [0], **options, **asked) for f in (folder, plain))
        assert predictor.settings()["coherent_share"] == [0.0]
        again, expected = (p.predict(image, case_id="x", return_samples=True) for p in (predictor, trained))
        assert np.array_equal(again.samples, expected.samples)


def test_volumes_are_stretched_by_each_folds_own_scale_and_nothing_else_changes(make_dataset, tmp_path, image):
    plain, stretched = (
        Predictor.from_folder(
            write_model(make_dataset, tmp_path / name, calibrations=[Calibration(volume_scale=s) for s in scales]),
            device="cpu",
            samples=6,
        ).predict(image, case_id="x", return_samples=True)
        for name, scales in (("plain", (1.0, 1.0)), ("stretched", (3.0, 0.5)))
    )
    assert np.array_equal(plain.samples, stretched.samples) and np.array_equal(plain.total, stretched.total)
    volumes = (plain.samples == 1).sum((1, 2, 3)) / 1000
    first, second = volumes[0::2], volumes[1::2]  # dealt out in turn
    wanted = np.concatenate([first.mean() + 3 * (first - first.mean()), second.mean() + 0.5 * (second - second.mean())])
    assert stretched.volumes["shell"]["mean_ml"] == plain.volumes["shell"]["mean_ml"] == pytest.approx(volumes.mean())
    for volume in (plain.volumes["shell"], stretched.volumes["shell"]):
        assert volume["sd_ml"] == pytest.approx(volumes.std(ddof=1))
    assert plain.volumes["shell"]["calibrated_sd_ml"] == pytest.approx(volumes.std(ddof=1))
    assert stretched.volumes["shell"]["calibrated_sd_ml"] == pytest.approx(wanted.std(ddof=1))


def test_a_network_at_hand_predicts_like_its_folder(predictor, model_folder, image, prediction):
    model = load_model(model_folder, [0])
    own = Predictor.from_network(
        model.method,
        model.folds[0].network,
        PlansManager(json.loads((model_folder / "plans.json").read_text())),
        "3d_fullres",
        model.dataset_json,
        "nnDiffSegTrainer",
        None,
        device="cpu",
        samples=4,
        precision="float32",
    )
    again = own.predict(image, case_id="case_000", return_samples=True)
    assert np.array_equal(again.samples, prediction.samples)
    assert own.settings()["folds"] == ["network"]


def test_2d_models_predict_volumes_and_photographs(model_folder_2d, image):
    predictor = Predictor.from_folder(model_folder_2d, device="cpu", samples=2, precision="float32")
    volume = predictor.predict(image, (1, 1, 1))
    assert volume.segmentation.shape == image.shape[1:]
    slice_ = predictor.predict(image[:, 10], (1, 1), return_samples=True)
    assert slice_.segmentation.shape == image.shape[2:] and slice_.probabilities.shape == (3, *image.shape[2:])
    assert slice_.samples.shape == (2, *image.shape[2:]) and slice_.total.shape == image.shape[2:]
    assert 0 < slice_.volumes["shell"]["mean_ml"] < 1  # as if 1 mm thick


def test_bfloat16_changes_little(model_folder, image, prediction):
    half = Predictor.from_folder(model_folder, [0], device="cpu", samples=4, mirroring=False, precision="bfloat16")
    p = half.predict(image, (1, 1, 1), "case_000")
    assert np.abs(p.probabilities - prediction.probabilities).mean() < 0.02


@pytest.mark.parametrize(
    ("array", "spacing", "message"),
    [
        (np.zeros((1, 8, 8, 8)), None, "2 channels"),
        (np.zeros((2, 8)), None, "two or three spatial axes"),
        (np.ones((2, 8, 8, 8)), (1, 1), "one positive number"),
        (np.ones((2, 8, 8, 8)), (1, 0, 1), "one positive number"),
        (np.full((2, 8, 8, 8), np.nan), None, "1024 NaN"),
        (np.zeros((2, 8, 8, 8)), None, "All voxels"),
    ],
)
def test_bad_images_are_told(predictor, array, spacing, message):
    with pytest.raises(UserError, match=message):
        predictor.predict(array, spacing)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "samples must be at least 1"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"step_size": 0}, "step size"),
        ({"step_size": 1.5}, "step size"),
        ({"sampler": "euler"}, "sampler 'euler'"),
    ],
)
def test_options_out_of_range_are_told(model_folder, options, message):
    with pytest.raises(UserError, match=message):
        Predictor.from_folder(model_folder, device="cpu", **options)


def test_a_script_without_main_guard_works(model_folder, files, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from nndiffseg import Predictor\n"
        f"p = Predictor.from_folder({str(model_folder)!r}, folds=[0], device='cpu', samples=2)\n"
        f"print(p.predict({[str(f) for f in files]!r}).segmentation.shape)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("(20, 24, 20)")
