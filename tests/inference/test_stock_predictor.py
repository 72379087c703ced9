"""A stock nnU-Net's predictor: progress changes nothing, folds share the samples, and what does not fit is one sentence."""

from __future__ import annotations

import pytest
import torch
from stock_world import StockWorld, make_stock_world

from nndiffseg.calibration import Calibration
from nndiffseg.errors import UserError
from nndiffseg.inference.stock_model import is_stock
from nndiffseg.inference.stock_predictor import StockPredictor

pytestmark = pytest.mark.seconds


@pytest.fixture(scope="module")
def world(make_dataset, tmp_path_factory) -> StockWorld:
    made = make_stock_world(make_dataset, tmp_path_factory.mktemp("stock"))
    for fold, temperature in enumerate((1.0, 3.0)):
        calibration = Calibration(temperature=(temperature,), length_weights=(0.5, 0.0, 0.0, 0.5), folds=(str(fold),))
        calibration.write(made.model / f"fold_{fold}")
    return made


@pytest.fixture
def image() -> torch.Tensor:
    return torch.randn(1, 22, 25, 21, generator=torch.Generator().manual_seed(0))


def test_progress_is_told_as_often_as_promised_and_changes_nothing(world, image):
    predictor = StockPredictor.from_folder(world.model, device="cpu", samples=4)
    calls = []

    def update() -> bool:  # as tqdm's does
        calls.append(1)
        return True

    told = predictor.predict_preprocessed(image, "x", on_tile=update)
    silent = predictor.predict_preprocessed(image, "x")
    assert len(calls) == predictor.tiles(image) > 2
    assert torch.equal(told.logits, silent.logits) and (told.labels == silent.labels).all()
    assert torch.equal(told.probabilities, silent.probabilities)


def test_each_fold_has_its_own_temperature_and_its_share_of_the_samples(world, image):
    both = StockPredictor.from_folder(world.model, device="cpu", samples=4).predict_preprocessed(image, "x")
    one, two = (
        StockPredictor.from_folder(world.model, [f], device="cpu", samples=2).predict_preprocessed(image, "x") for f in (0, 1)
    )
    torch.testing.assert_close(both.probabilities, (one.probabilities + two.probabilities) / 2)
    torch.testing.assert_close(one.probabilities, one.logits.float().softmax(0))
    torch.testing.assert_close(two.probabilities, (two.logits.float() / 3).softmax(0))
    assert both.labels.shape[0] == 4 and set(both.maps) == {"total", "aleatoric", "epistemic"}
    assert both.confidence == pytest.approx((one.confidence + two.confidence) / 2)
    assert [c.temperature for c in both.calibrations] == [(1.0,), (3.0,)]


def test_many_samples_have_the_maps_probabilities_as_frequencies(world, image):
    predictor = StockPredictor.from_folder(world.model, [1], device="cpu", samples=200)
    found = predictor.predict_preprocessed(image, "x")
    frequency = torch.stack([torch.from_numpy((found.labels == k).mean(0)) for k in range(3)])
    assert float((frequency - found.probabilities).abs().mean()) < 0.03


def test_a_pooled_calibration_comes_before_those_of_the_folds(world, tmp_path, image):
    assert is_stock(world.model)
    Calibration(temperature=(2.0,), length_weights=(1.0, 0.0, 0.0, 0.0), folds=("0", "1")).write(world.model)
    try:
        predictor = StockPredictor.from_folder(world.model, [0], device="cpu")
        assert predictor.model.folds[0].calibration.temperature == (2.0,)
    finally:
        (world.model / "calibration.json").unlink()


@pytest.mark.parametrize(("options", "message"), [({"samples": 0}, "number of samples"), ({"step_size": 2}, "step size")])
def test_numbers_out_of_range_are_one_sentence(world, options, message):
    with pytest.raises(UserError, match=message):
        StockPredictor.from_folder(world.model, device="cpu", **options)


def test_nnunets_accumulators_stay_off_the_gpu_where_that_is_asked_for(world):
    for asked in (True, False):
        predictor = StockPredictor.from_folder(world.model, device="cuda", perform_everything_on_device=asked)
        assert predictor.nnunet.perform_everything_on_device == asked
    assert not StockPredictor.from_folder(world.model, device="cpu").nnunet.perform_everything_on_device
