"""Sides of a comparison with known predictions: their metrics, and that no case sees its own fit."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.compare import evaluation, predictions, table
from benchmarks.compare.data import RATERS, Data, references_of
from benchmarks.compare.evaluation import Comparison, Side, Source
from benchmarks.compare.library import CasePrediction, Options
from benchmarks.compare.scores import dice_scores
from benchmarks.compare.trainers import STOCK, Entry
from nndiffseg.calibration import Calibration
from nndiffseg.calibration.temperature import tempered
from nndiffseg.nn.heads import Heads
from nndiffseg.uncertainty.case_labels import near_structures


def truth(data: Data, case: str) -> np.ndarray:
    return references_of(data, case)[0][0]


def prediction_of(labels: np.ndarray, count: int = 3) -> CasePrediction:
    """A prediction that is certain of one label map ``(*image)``."""
    p = np.stack([labels == k for k in range(3)]).astype(np.float32)
    return CasePrediction(p, p.copy(), np.stack([labels] * count).astype(np.uint8), 1.0)


@pytest.fixture
def compared(tiny_data, monkeypatch):
    """``compared({name: case -> prediction}, ...)``: metrics of sides with these predictions, and the comparison."""

    def made(makers, sides=None, data=tiny_data):
        known = {Entry(f"m:{name}"): make for name, make in makers.items()}
        monkeypatch.setattr(predictions, "load", lambda data, entry, options, case: known[entry](case))
        sides = sides or [Side(name, name, (Source(data, Entry(f"m:{name}")),)) for name in makers]
        comparison = Comparison(sides, Options(3))
        comparison.fit()
        cases = {case: comparison.evaluate(case) for case in data.cases}
        return table.summary(table.metrics(list(data.structures), list(cases.values()))), comparison

    return made


def test_a_perfect_prediction_gets_perfect_metrics(tiny_data, compared):
    found, _ = compared({"a": lambda c: prediction_of(truth(tiny_data, c))})
    for name in ("Dice, mean", "NSD, mean", "Dice: mean of samples", "Dice: one sample", "Dice, shell", "NSD, core"):
        assert found[name] == {"a": 1.0}, name
    for name in ("GED^2", "energy score, 1 - IoU", "ECE, mean", "Brier, mean"):
        assert found[name] == {"a": 0.0}, name
    assert found["volume inside the 90 % interval, calibrated"] == {"a": 1.0}


def test_a_prediction_that_misses_one_structure_loses_that_structure_alone(tiny_data, compared):
    def shell_only(case: str) -> CasePrediction:
        labels = truth(tiny_data, case)
        return prediction_of(np.where(labels == 2, 0, labels))

    found, _ = compared({"a": shell_only})
    assert (found["Dice, shell"]["a"], found["Dice, core"]["a"], found["Dice, mean"]["a"]) == (1.0, 0.0, 0.5)
    assert found["GED^2"]["a"] == pytest.approx(2 * 0.5)  # d = mean over structures of 1 - IoU, nothing varies
    assert found["ECE, shell"]["a"] == 0 and found["ECE, core"]["a"] > 0.1


def test_the_fusion_weight_goes_to_the_better_part(tiny_data, compared):
    def halves(case: str) -> CasePrediction:
        good, bad = prediction_of(truth(tiny_data, case)), prediction_of(np.zeros_like(truth(tiny_data, case)))
        return CasePrediction(bad.deterministic, good.sampled, good.labels, 1.0)

    found, comparison = compared({"a": halves})
    assert all(c.fusion_weight < 0.5 for c in comparison.calibrations["a"].values())
    assert found["Dice, mean"]["a"] == 1 and found["Dice: deterministic part"]["a"] == 0


def noisy(data: Data, case: str, odds: float) -> CasePrediction:
    """Wrong in a fifth of the voxels, and with the odds too sure of everything."""
    rng = np.random.default_rng(len(case) + sum(map(ord, case)))
    labels = truth(data, case)
    labels = np.where(rng.random(labels.shape) < 0.2, rng.integers(0, 3, labels.shape), labels)
    p = (np.stack([labels == k for k in range(3)]) * (odds - 1) + 1).astype(np.float32)
    p /= p.sum(0)
    return CasePrediction(p, p, np.stack([labels] * 3).astype(np.uint8), 1.0)


def test_every_side_gets_the_same_fits_and_a_temperature_repairs_overconfidence(tiny_data, compared):
    """Two sides that differ in nothing but their sharpness are equal once each has its temperature."""
    found, comparison = compared({"sharp": lambda c: noisy(tiny_data, c, 1e4), "soft": lambda c: noisy(tiny_data, c, 50)})
    plain, scaled = found["NLL, mean"], found["NLL, fitted temperature"]
    assert plain["sharp"] > 1.2 * plain["soft"]
    assert scaled["sharp"] == pytest.approx(scaled["soft"], rel=1e-3) and scaled["sharp"] < plain["soft"]
    assert found["ECE, fitted temperature"]["sharp"] < 0.7 * found["ECE, mean"]["sharp"]
    temperatures = {name: [t for c in of.values() for t in c.temperature] for name, of in comparison.calibrations.items()}
    assert set(temperatures) == {"sharp", "soft"}
    assert min(temperatures["sharp"]) > 2 * max(temperatures["soft"])
    assert set(comparison.fits()["sharp"]) == {"fusion_weight", "volume_scale", "temperature"}


def test_volumes_are_stretched_by_the_fitted_scale_and_shown_as_drawn_too(tiny_data, compared):
    def varied(case: str) -> CasePrediction:
        labels = truth(tiny_data, case)
        samples = np.stack([np.where(np.arange(labels.shape[-1]) < 20 + i, labels, 0) for i in range(3)])
        return prediction_of(labels)._replace(labels=samples)

    _, comparison = compared({"a": varied})
    case, widths = tiny_data.cases[0], []
    for scale in (1.0, 2.0):
        comparison.calibrations["a"][case] = Calibration(volume_scale=scale)
        widths.append(comparison.evaluate(case).sides["a"].agreement)
    assert widths[1].width == pytest.approx(2 * widths[0].width) and widths[0].width > 0
    assert widths[1].coverage_as_drawn == widths[0].coverage_as_drawn


def test_a_difference_is_the_base_minus_the_other(tiny_data, compared):
    makers = {"good": lambda c: prediction_of(truth(tiny_data, c)), "none": lambda c: prediction_of(0 * truth(tiny_data, c))}
    _, comparison = compared(makers)
    cases = [comparison.evaluate(case) for case in tiny_data.cases]
    found = table.differences(table.metrics(["shell", "core"], cases, "good"))
    assert found["Dice, mean"] == {"none": [1.0, 1.0, 1.0]}
    assert found["GED^2"]["none"][0] < 0


def test_no_case_sees_a_number_that_its_own_group_helped_to_fit(tiny_data, compared, monkeypatch):
    """Whatever the labels of one group are, its own fits stay; those of the others move."""
    first, second, third = tiny_data.cases
    monkeypatch.setattr(evaluation, "read_groups", lambda folder: {first: "g", second: "g", third: "h"})

    def uneven(case: str) -> CasePrediction:
        """A fused prediction of two different parts, with samples of different volumes."""
        a, b = noisy(tiny_data, case, 1e3), noisy(tiny_data, case, 5)
        labels = np.stack([np.where(np.arange(a.labels[0].shape[-1]) < 20 + i, a.labels[0], 0) for i in range(3)])
        return CasePrediction(a.deterministic, b.sampled, labels, 1.0)

    _, before = compared({"a": uneven})
    original = evaluation.references_of

    def shrunken(data, case, raters=True):
        references, spacing = original(data, case, raters)
        return (
            (np.where(np.arange(references.shape[-1]) < 22, references, 0), spacing) if case == first else (references, spacing)
        )

    monkeypatch.setattr(evaluation, "references_of", shrunken)
    _, after = compared({"a": uneven})
    for case, same in ((first, True), (second, True), (third, False)):
        first_fit, second_fit = before.calibrations["a"][case], after.calibrations["a"][case]
        assert (first_fit.temperature == second_fit.temperature) is same, case
        assert (first_fit == second_fit) or not same, case


def test_the_head_alone_is_the_deterministic_part_with_independent_samples(tiny_data, compared):
    def model(case: str) -> CasePrediction:
        good = noisy(tiny_data, case, 9)
        return CasePrediction(good.deterministic, np.roll(good.deterministic, 9, -1), good.labels, 1.0)

    source = (Source(tiny_data, Entry("m:a")),)
    sides = [Side("head", "head", source, head_alone=True), Side("whole", "whole", source)]
    found, comparison = compared({"a": model}, sides)
    assert found["Dice, mean"]["head"] == found["Dice: deterministic part"]["whole"]
    p = model(tiny_data.cases[0]).deterministic
    drawn = comparison.prediction(sides[0], tiny_data.cases[0]).labels
    assert drawn.shape == (3, *p.shape[1:])
    many = Comparison(sides, Options(400)).prediction(sides[0], tiny_data.cases[0]).labels
    np.testing.assert_allclose([(many == k).mean(0) for k in range(3)], p, atol=0.12)


def test_a_coherent_side_has_the_same_map_and_samples_of_its_calibrated_marginals(tiny_data, compared):
    """Its samples are those of the fitted temperature; the map as it comes is untouched by drawing them."""
    makers = {"a": lambda c: noisy(tiny_data, c, 50)}
    source = (Source(tiny_data, Entry("m:a")),)
    sides = [Side("head", "head", source, head_alone=True), Side("coherent", "coherent", source, coherent=True)]
    found, comparison = compared(makers, sides)
    for name in ("Dice, mean", "NSD, mean", "NLL, mean", "Brier, core", "ECE, shell", "AUROC of uncertainty for errors"):
        assert found[name]["coherent"] == found[name]["head"], name
    case = tiny_data.cases[0]
    calibration = comparison.calibrations["coherent"][case]
    assert sum(calibration.length_weights) == pytest.approx(1) and calibration.temperature != (1.0,)
    comparison.options = Options(400)
    p = makers["a"](case).deterministic
    drawn = comparison.prediction(sides[1], case).labels
    scaled = tempered(torch.from_numpy(p.copy()), calibration.temperature, Heads(3)).numpy()
    expected = np.where(near_structures([p.argmax(0)]), scaled, p)
    np.testing.assert_allclose([(drawn == k).mean(0) for k in range(3)], expected, atol=0.12)
    assert np.abs(expected - p).max() > 0.05  # so the temperature is seen


def test_isotonic_regression_is_fitted_without_the_case(tiny_data, compared):
    """Another label of one case changes the maps of all others, never its own."""
    first, *others = tiny_data.cases
    _, before = compared({"a": lambda c: noisy(tiny_data, c, 50)})
    p = torch.rand(3, 500, generator=torch.Generator().manual_seed(0))
    p /= p.sum(0)
    maps = {case: before.isotonic["a"][case](p) for case in tiny_data.cases}
    _, after = compared({"a": lambda c: noisy(tiny_data, c, 50 if c != first else 3)})
    assert torch.equal(after.isotonic["a"][first](p), maps[first])
    assert all(not torch.equal(after.isotonic["a"][case](p), maps[case]) for case in others)


def test_members_of_an_ensemble_are_its_samples_and_their_mean_its_probability(tiny_data, compared):
    makers = {"a": lambda c: noisy(tiny_data, c, 9), "b": lambda c: prediction_of(truth(tiny_data, c))}
    sides = [Side("both", "both", tuple(Source(tiny_data, Entry(f"m:{n}")) for n in makers))]
    _, comparison = compared(makers, sides)
    case = tiny_data.cases[0]
    found, members = comparison.prediction(sides[0], case), [make(case) for make in makers.values()]
    np.testing.assert_allclose(found.deterministic, (members[0].deterministic + members[1].deterministic) / 2)
    assert np.array_equal(found.labels[1], members[1].labels[0]) and len(found.labels) == 2


def test_all_annotations_of_a_case_are_used_where_there_are_several(tiny_data, compared, tmp_path):
    from skimage import io

    case = tiny_data.cases[0]
    folder = tmp_path / RATERS / case
    folder.mkdir(parents=True)
    grid = np.indices((32, 40)) - np.array([16, 20])[:, None, None]
    raters = []
    for shift in (0, 3):
        radius = np.hypot(grid[0], grid[1] - shift)
        raters.append((1 * (radius <= 10) + (radius <= 4)).astype(np.uint8))
        io.imsave(folder / f"rater{shift}.png", raters[-1], check_contrast=False)
    data = replace(tiny_data, raw=tmp_path, cases=[case])
    assert np.array_equal(references_of(data, case)[0][:, 0], raters)
    assert len(references_of(data, case, raters=False)[0]) == 1
    found, _ = compared({"a": lambda c: prediction_of(raters[0][None])}, data=data)
    masks = [[np.isin(r, k) for r in raters] for k in (1, 2)]
    iou = np.mean([(a & b).sum() / (a | b).sum() for a, b in masks])
    for name in ("GED^2: E d(sample, truth)", "GED^2: E d(truth, truth)", "GED^2"):  # of two annotations, one is hit
        assert found[name]["a"] == pytest.approx((1 - iou) / 2, abs=1e-5)


def test_quick_scores_agree_with_the_comparison(tiny_data, compared):
    case = tiny_data.cases[0]
    shifted = prediction_of(np.roll(truth(tiny_data, case), 2, axis=-1))
    data = replace(tiny_data, cases=[case])
    found, _ = compared({"a": lambda c: shifted}, data=data)
    scores = dice_scores(data, case, shifted)
    assert 0 < scores["single"] < 1 and scores["between_samples"] == 1
    for key, name in (("deterministic", "deterministic part"), ("samples", "mean of samples"), ("single", "one sample")):
        assert scores[key] == pytest.approx(found[f"Dice: {name}"]["a"], abs=1e-5)


def test_predictions_survive_the_cache(tiny_data, tmp_path):
    stock = noisy(tiny_data, tiny_data.cases[0], 1e6)
    file = tiny_data.fold_folder(STOCK) / evaluation.predictions.FINAL
    file.parent.mkdir(parents=True)
    file.touch()
    options, entry = Options(3), Entry(STOCK)
    folder = predictions.folder_of(tiny_data, entry, options)
    folder.mkdir(parents=True)
    predictions.save(stock._replace(sampled=stock.deterministic), folder / "x.npz")
    found = predictions.load(tiny_data, entry, options, "x")
    assert found.sampled is found.deterministic  # nothing is kept or compared twice
    np.testing.assert_array_equal(found.deterministic, stock.deterministic)  # tails too
    others = (Options(4), Options(3, 1), Options(3, steps=2), Options(3, mirroring=False), Options(3, sampler="ddim"))
    assert len({predictions.folder_of(tiny_data, entry, o) for o in (options, *others)}) == 6
    os.utime(file, (1e9, 1e9))  # another training
    assert predictions.folder_of(tiny_data, entry, options) != folder
