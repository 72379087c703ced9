"""The pure parts of the papers' experiments: sizes, noise, ensembles, variants, tables."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from benchmarks import (
    component_ablation,
    ensemble_size,
    noise_robustness,
    phantom_spread,
    sampling_steps,
    time_against_size,
)
from benchmarks.compare.scores import means
from benchmarks.compare.trainers import Entry, find_class
from nndiffseg.calibration import Calibration
from nndiffseg.errors import UserError

# ---- time against size --------------------------------------------------------------------------------------------


def test_the_exponent_of_a_quadratic_time_is_2():
    curve = {str(n): [3e-4 * n**2] * 3 for n in (64, 128, 256)}
    assert time_against_size.exponent(curve) == pytest.approx(2)
    assert time_against_size.exponent({"64": [1.0]}) is None
    assert time_against_size.expected_seconds(curve, 512, 2) == pytest.approx(3e-4 * 512**2)


def test_sizes_that_were_left_out_stay_empty_in_the_table():
    rows, header = time_against_size.table({"nnUNetTrainer": {"64": [1.0, 3.0, 2.0], "128": [8.0]}}, [64, 128, 256])
    assert rows == [["nnU-Net", "2.000", "8.000", "-", "2.00"]]
    assert len(header) == len(rows[0])


def test_whole_images_must_fit_the_strides(tiny_data):
    time_against_size.check_sizes(tiny_data, [64], True)
    time_against_size.check_sizes(tiny_data, [63], False)
    with pytest.raises(UserError, match="multiples of"):
        time_against_size.check_sizes(tiny_data, [63], True)


# ---- noise --------------------------------------------------------------------------------------------------------


def test_noise_has_the_variance_asked_for_in_units_of_each_channel():
    image = np.stack([np.linspace(0, s, 200 * 200).reshape(1, 200, 200) for s in (1, 50)]).astype(np.float32)
    added = noise_robustness.with_noise(0.25, 3)(image) - image
    assert added.std(axis=(1, 2, 3)) == pytest.approx(0.5 * image.std(axis=(1, 2, 3)), rel=0.02)
    assert np.array_equal(noise_robustness.with_noise(0.0, 3)(image), image)


def test_levels_scale_one_pattern_and_seeds_differ():
    image = np.random.default_rng(0).normal(size=(1, 1, 32, 32)).astype(np.float32)
    one, four, other = (noise_robustness.with_noise(v, s)(image) - image for v, s in ((1, 0), (4, 0), (1, 1)))
    np.testing.assert_allclose(four, 2 * one, atol=1e-5)
    assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.1


# ---- ensembles ----------------------------------------------------------------------------------------------------


def test_ensembles_of_a_size_are_disjoint_and_full():
    assert ensemble_size.blocks(16, 1) == [slice(i, i + 1) for i in range(16)]
    assert ensemble_size.blocks(7, 3) == [slice(0, 3), slice(3, 6)]
    assert ensemble_size.blocks(16, 16) == [slice(0, 16)]


class NoisyModel:
    """Its samples are the truth with a third of the voxels of the foreground missing, at random."""

    def __init__(self, truth: np.ndarray):
        self.truth = truth

    def predict_case(self, _model, _case, options, _change=None):
        from benchmarks.compare.library import CasePrediction

        keep = np.random.default_rng(options.seed).random(self.truth.shape) < 0.67
        labels = np.where(keep, self.truth, 0).astype(np.uint8)
        p = np.stack([labels == k for k in range(3)]).astype(np.float32)
        return CasePrediction(p, p, labels[None], 1.0)


def test_fusing_more_samples_corrects_independent_errors(tiny_data, monkeypatch):
    from benchmarks.compare import library
    from benchmarks.compare.data import references_of

    case = tiny_data.cases[0]
    model = NoisyModel(references_of(tiny_data, case)[0][0])
    monkeypatch.setattr(library, "predict_case", model.predict_case)
    row = ensemble_size.measure(tiny_data, model, case, [1, 3, 9], seed=0)
    assert row["mean"]["1"] == row["staple"]["1"] == pytest.approx(2 * 0.67 / 1.67, abs=0.03)
    for fusion in ("mean", "staple"):
        assert row[fusion]["1"] < row[fusion]["3"] < row[fusion]["9"]


# ---- ablation -----------------------------------------------------------------------------------------------------


ENTRIES = [entry for variants in component_ablation.VARIANTS.values() for entry in variants.values()]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e.name)
def test_every_variant_can_be_found_and_built(entry: Entry, tiny_data):
    data, trainer = entry.of(tiny_data), find_class(entry.trainer)
    manager = PlansManager(data.plans)
    network = trainer.build_network_architecture(manager, manager.get_configuration("2d"), 1, 3).eval()
    with torch.no_grad():
        assert network.encode(torch.zeros(1, 1, *network_patch(manager)))[0].shape[1] == 3


def network_patch(manager: PlansManager) -> list[int]:
    return manager.get_configuration("2d").patch_size


def test_variants_differ_from_the_whole_method_in_options_or_class(tiny_data):
    """An option that equals the default, or one that the method ignores in silence, would be no variant."""
    for variants in component_ablation.VARIANTS.values():
        options = [
            (e.trainer, find_class(e.trainer).method_class.options_of(e.of(tiny_data).plans["configurations"]["2d"]))
            for e in variants.values()
        ]
        assert all(a != b for i, a in enumerate(options) for b in options[:i])


def test_without_the_latent_the_generator_ignores_the_vector(tiny_data):
    manager = PlansManager(tiny_data.plans)
    images = torch.randn(2, 3, *network_patch(manager))
    for trainer, equal in ((component_ablation.CDALNoLatent, True), (component_ablation.nnDiffSegTrainerCDAL, False)):
        torch.manual_seed(0)
        network = trainer.build_network_architecture(manager, manager.get_configuration("2d"), 1, 3).eval()
        with torch.no_grad():
            outputs = [
                network(images[:, :1], images, torch.ones(2), v * torch.ones(2, network.vector_channels)) for v in (-2.0, 2.0)
            ]
        assert torch.allclose(*outputs) is equal


# ---- tables -------------------------------------------------------------------------------------------------------


def test_means_over_cases_ignore_what_is_absent_and_take_the_median_time():
    rows = [{"samples": 0.5, "seconds": 1.0}, {"samples": None, "seconds": 2.0}, {"samples": 0.7, "seconds": 30.0}]
    assert means(rows) == {"samples": pytest.approx(0.6), "seconds": 2.0}


def test_tables_of_steps_and_noise_have_a_row_per_method_and_level():
    row = {"samples": 0.8, "single": 0.7, "deterministic": 0.75, "between_samples": 0.9, "seconds": 1.5}
    curves = {"nnDiffSegTrainerLDSeg": {"1": row, "15": row}}
    for module in (sampling_steps, noise_robustness):
        rows, header = module.table(curves)
        assert [r[:3] for r in rows] == [["LDSeg", "1", "0.8000"], ["LDSeg", "15", "0.8000"]]
        assert all(len(r) == len(header) for r in rows)


# ---- spread on phantoms -------------------------------------------------------------------------------------------


class VolumePredictor:
    """Two phantoms whose volumes vary by 2 and 3 ml, calibrated half as much, around 1 ml above the truth."""

    def __init__(self):
        self.model = SimpleNamespace(folds=[SimpleNamespace(calibration=Calibration(volume_scale=0.5))])

    @classmethod
    def from_folder(cls, model, folds, **options):
        return cls()

    def predict(self, file, case_id):
        sd = {"front lobe": 2.0, "rear lobe": 3.0}
        return SimpleNamespace(volumes={s: {"sd_ml": v, "calibrated_sd_ml": v / 2, "mean_ml": 11.0} for s, v in sd.items()})


def test_the_spread_of_phantoms_is_measured_with_the_fitted_scale_and_as_drawn(monkeypatch, tmp_path):
    monkeypatch.setattr(phantom_spread, "Predictor", VolumePredictor)
    known = {"front lobe": {"sd_ml": 2.0, "mean_ml": 10.0}, "rear lobe": {"sd_ml": 1.5, "mean_ml": 13.0}}
    (tmp_path / "imagesTs").mkdir()
    for case in ("a", "b"):
        (tmp_path / "imagesTs" / f"{case}_0000.nii.gz").touch()
    (tmp_path / "truth.json").write_text(json.dumps({"cases": {"a": known, "b": known}}))
    fitted, without = phantom_spread.evaluate(tmp_path, tmp_path, "cpu")
    assert fitted["spread_ratio"] == {"front lobe": pytest.approx(0.5), "rear lobe": pytest.approx(1.0)}
    assert without["spread_ratio"] == {"front lobe": pytest.approx(1.0), "rear lobe": pytest.approx(2.0)}
    assert without["mean_volume_rms_error_ml"] == {"front lobe": pytest.approx(1.0), "rear lobe": pytest.approx(2.0)}
    assert (fitted["volume_scale"], without["volume_scale"]) == (0.5, 1.0)
