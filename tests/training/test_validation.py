"""A validation uses no case twice: which calibration each case is exported with, and what the checkpoint gets."""

from __future__ import annotations

import errno
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nndiffseg.calibration import Calibration, fit, read_tables
from nndiffseg.data.checkpoint import load_checkpoint, save_atomically
from nndiffseg.nn.heads import Heads
from nndiffseg.training import scored_case, validation
from nndiffseg.training.average import WeightAverage
from nndiffseg.training.ranks import Ranks
from nndiffseg.uncertainty.statistics import CaseParts

SHAPE = (4, 6, 5)
#: cases whose head is right and whose samples are wrong, and the other way
HEAD_IS_RIGHT = {"a": True, "b": True, "c": True, "odd": False}


def truth() -> np.ndarray:
    labels = np.zeros((1, *SHAPE), np.int16)
    labels[:, 1:3, 2:5, 1:4] = 1
    return labels


def probabilities(labels: np.ndarray) -> torch.Tensor:
    onehot = torch.from_numpy(np.stack([labels[0] == 0, labels[0] == 1])).float()
    return 0.1 + 0.8 * onehot


class Predictor:
    """Knows the truth, in its head or in its samples."""

    def settings(self) -> dict:
        return {}

    def predict_parts(self, data: np.ndarray, case: str, previous: None) -> CaseParts:
        right, wrong = probabilities(truth()), probabilities(1 - truth())
        head, samples = (right, wrong) if HEAD_IS_RIGHT[case] else (wrong, right)
        labels = np.stack([truth()[0], truth()[0] * 0]).astype(np.uint8)
        return CaseParts(head, samples, labels, False)

    def statistics_of(self, parts: CaseParts, case: str, calibration: Calibration):
        return parts.statistics(calibration)


class Dataset:
    def __init__(self, folder: str, cases: list[str]):
        self.cases = cases

    def load_case(self, case: str):
        assert case in self.cases
        properties = {
            "spacing": [1.0, 1.0, 1.0],
            "shape_before_cropping": SHAPE,
            "shape_after_cropping_and_before_resampling": SHAPE,
            "case": case,
        }
        return np.zeros((1, *SHAPE)), truth(), None, properties


@pytest.fixture
def trainer(tmp_path):
    """What :class:`nndiffseg.training.validation.TrainedFold` asks for."""
    labels = SimpleNamespace(has_regions=False, num_segmentation_heads=2, ignore_label=None)
    save_atomically(
        {
            "network_weights": {"w": torch.ones(1)},
            "nndiffseg_version": "0",
            "trainer_name": "x",
            "init_args": {"configuration": "3d_fullres"},
            "options": {},
            "calibration": Calibration().to_json(),
        },
        tmp_path / "checkpoint_final.pth",
    )
    return SimpleNamespace(
        method=SimpleNamespace(plan=SimpleNamespace(heads=Heads(2)), chooses_sampler=False),
        average=WeightAverage(torch.nn.Linear(1, 1)),
        calibration=Calibration(),
        validated_checkpoint="checkpoint_final.pth",
        fold_name="3",
        is_cascaded=False,
        ranks=Ranks(),
        output_folder=str(tmp_path),
        plans_manager=SimpleNamespace(plans={}, transpose_forward=[0, 1, 2]),
        configuration_manager=SimpleNamespace(next_stage_names=None),
        configuration_name="3d_fullres",
        dataset_json={"labels": {"background": 0, "thing": 1}, "file_ending": ".nii.gz"},
        label_manager=labels,
        dataset_class=Dataset,
        preprocessed_dataset_folder="",
        preprocessed_dataset_folder_base=str(tmp_path),
        do_split=lambda: ([], sorted(HEAD_IS_RIGHT)),
        print_to_log_file=lambda *_, **__: None,
    )


@pytest.fixture
def exported(trainer, monkeypatch) -> dict:
    """Statistics of every exported case, after a validation."""
    found = {}

    def export(job, case, statistics, properties) -> None:
        assert properties["case"] == case
        found[case] = statistics

    monkeypatch.setattr(validation, "_predictor", lambda _: Predictor())
    monkeypatch.setattr(validation, "export_case", export)
    monkeypatch.setattr(validation, "_evaluate", lambda *_: None)
    validation.validate_fold(trainer)
    return found


def test_every_case_is_exported_with_what_the_others_fitted(trainer, exported, tmp_path):
    tables = read_tables(tmp_path / "validation" / "tables")
    assert [t.case for t in tables] == sorted(HEAD_IS_RIGHT) == sorted(exported)
    for case, statistics in exported.items():
        (used,) = statistics.calibrations
        assert used == fit([t for t in tables if t.case != case], folds=("3",))
    # The odd one would choose its samples, w = 0; the others choose the head for it.
    assert exported["odd"].calibrations[0].fusion_weight > 0.5
    assert (exported["odd"].probabilities.argmax(0).numpy() != truth()[0]).all()
    assert (exported["a"].probabilities.argmax(0).numpy() == truth()[0]).all()


def test_the_checkpoint_gets_the_fit_of_all_cases_and_nothing_else_changes(trainer, exported, tmp_path):
    expected = fit(read_tables(tmp_path / "validation" / "tables"), folds=("3",))
    checkpoint = load_checkpoint(tmp_path / "checkpoint_final.pth")
    assert Calibration.from_json(checkpoint["calibration"]) == trainer.calibration == expected
    assert json.loads((tmp_path / "calibration.json").read_text()) == expected.to_json()
    assert torch.equal(checkpoint["network_weights"]["w"], torch.ones(1)) and expected.groups == 4
    assert not (tmp_path / "validation" / ".parts").exists()


def test_an_earlier_validation_stays_until_the_next_one_is_complete(trainer, exported, tmp_path, monkeypatch):
    """A full disk, or a kill, leaves the earlier one whole."""
    earlier = {f: f.read_bytes() for f in (tmp_path / "validation").rglob("*") if f.is_file()}
    (tmp_path / ".validation").mkdir()
    (tmp_path / ".validation" / "of_a_killed_one").touch()

    def full(*_) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(validation, "_evaluate", full)
    with pytest.raises(OSError, match="full"):
        validation.validate_fold(trainer)
    assert {f: f.read_bytes() for f in (tmp_path / "validation").rglob("*") if f.is_file()} == earlier and earlier
    monkeypatch.setattr(validation, "_evaluate", lambda _, folder, tables: (folder / "new").touch())
    validation.validate_fold(trainer)
    assert (tmp_path / "validation" / "new").is_file()
    assert not [f for f in tmp_path.iterdir() if f.name.startswith(".val")]


@pytest.mark.parametrize("fold", ["all", "all/seed_1"])
def test_nothing_is_fitted_on_cases_that_the_training_has_seen(trainer, tmp_path, monkeypatch, fold):
    used, said = {}, []
    trainer.fold_name, trainer.print_to_log_file = fold, lambda *parts, **_: said.extend(parts)
    monkeypatch.setattr(validation, "_predictor", lambda _: Predictor())
    monkeypatch.setattr(validation, "export_case", lambda job, case, s, p: used.update({case: s.calibrations[0]}))
    monkeypatch.setattr(validation, "_evaluate", lambda *_: None)
    validation.validate_fold(trainer)
    assert used == dict.fromkeys(HEAD_IS_RIGHT, Calibration())
    assert Calibration.from_json(load_checkpoint(tmp_path / "checkpoint_final.pth")["calibration"]) == Calibration()
    assert json.loads((tmp_path / "calibration.json").read_text())["groups"] == 0
    assert validation.NOT_CALIBRATED in said


def test_cases_of_a_group_are_left_out_together(trainer, tmp_path, monkeypatch):
    (tmp_path / "cases.csv").write_text("case,group\na,x\nb,x\nc,y\nodd,z\n")
    used = {}
    monkeypatch.setattr(validation, "_predictor", lambda _: Predictor())
    monkeypatch.setattr(validation, "export_case", lambda job, case, s, p: used.update({case: s.calibrations[0]}))
    monkeypatch.setattr(validation, "_evaluate", lambda *_: None)
    validation.validate_fold(trainer)
    groups = {"a": "x", "b": "x", "c": "y", "odd": "z"}
    tables = read_tables(tmp_path / "validation" / "tables")
    for case, calibration in used.items():
        others = [t for t in tables if groups[t.case] != groups[case]]
        assert calibration == fit(others, groups, ("3",)) and calibration.groups == 2


def test_parts_survive_their_file_but_for_rounding(tmp_path):
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(3, *SHAPE, generator=generator).softmax(0)
    parts = CaseParts(p, p.flip(0), np.arange(2 * 120).reshape(2, *SHAPE).astype(np.uint8), True)
    scored_case.store_parts(parts, tmp_path / "case.npz")
    again = scored_case.restore_parts(tmp_path / "case.npz")
    for name in ("deterministic", "sampled"):
        assert (getattr(again, name) - getattr(parts, name)).abs().max() <= 1 / 131070 + 1e-7
    assert np.array_equal(again.labels, parts.labels) and again.regions is True
