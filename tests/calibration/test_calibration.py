"""A calibration survives its JSON, and nothing else passes for one."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from nndiffseg.calibration import Calibration
from nndiffseg.calibration.expected_dice import DiceMap
from nndiffseg.errors import UserError
from nndiffseg.nn.heads import Heads


def test_it_round_trips_through_its_file(tmp_path):
    calibration = Calibration(
        fusion_weight=0.3,
        temperature=(1.5, 2.0),
        length_weights=(0.25, 0.0, 0.75, 0.0),
        coherent_share=0.5,
        volume_scale=1.7,
        volume_quantiles=(2.1, None),
        dice=DiceMap(0.1, 0.9, 0.2),
        groups=12,
        folds=("0", "all"),
    )
    calibration.write(tmp_path)
    content = json.loads((tmp_path / "calibration.json").read_text())
    assert content == {
        "fusion_weight": 0.3,
        "temperature": [1.5, 2.0],
        "length_weights": [0.25, 0.0, 0.75, 0.0],
        "coherent_share": 0.5,
        "volume_scale": 1.7,
        "volume_quantiles": [2.1, None],
        "dice": {"intercept": 0.1, "slope": 0.9, "margin": 0.2},
        "groups": 12,
        "folds": ["0", "all"],
    }
    assert Calibration.from_json(content) == calibration


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fusion_weight": 1.5}, "invalid fusion_weight"),
        ({"fusion_weight": float("nan")}, "invalid fusion_weight"),
        ({"fusion_weight": "0.5"}, "invalid fusion_weight"),
        ({"volume_scale": 0}, "invalid volume_scale"),
        ({"volume_scale": float("inf")}, "invalid volume_scale"),
        ({"groups": -1}, "invalid groups"),
        ({"folds": "0"}, "invalid folds"),
        ({"temperature": [0.0]}, "invalid temperature"),
        ({"dice": {"slope": 1.0}}, "invalid dice"),
        ({"volume_quantiles": [float("inf")]}, "invalid volume_quantiles"),
        ({"detail_scale": 1.0}, "have no detail_scale"),
    ],
)
def test_what_is_out_of_range_is_refused_in_one_sentence(change, message):
    with pytest.raises(UserError, match=message) as error:
        Calibration.from_json(Calibration().to_json() | change)
    assert "\n" not in str(error.value) and "nndiffseg_calibrate" in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": (1.0, 2.0)},
        {"length_weights": (1.0,)},
        {"length_weights": (0.5, 0.0, 0.0, 0.0)},
        {"length_weights": ()},
        {"coherent_share": 0.3},
        {"volume_quantiles": (1.0, 2.0, 3.0)},
    ],
)
def test_a_calibration_of_another_model_is_refused(change):
    good = Calibration(length_weights=(0.5, 0.0, 0.0, 0.5), volume_quantiles=(1.0, None))
    good.check(Heads(3), 2, "X", coherent=True)
    Calibration(temperature=(1.0, 2.0)).check(Heads(2, True), 2, "X")
    with pytest.raises(UserError, match="calibrate it anew with nndiffseg_calibrate"):
        replace(good, **change).check(Heads(3), 2, "X", coherent=True)


def test_something_else_is_refused():
    with pytest.raises(UserError, match="list instead of names and values"):
        Calibration.from_json([1])


def test_it_cannot_be_changed():
    with pytest.raises(AttributeError):
        Calibration().fusion_weight = 1.0  # type: ignore[misc]
