"""Plans made without a dataset, and the run from measurements to table and figure."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from benchmarks import pair as timing
from benchmarks import scaling
from benchmarks.made_plans import LARGEST_PATCH, Point, made_plans
from benchmarks.pair import Pair, single
from benchmarks.scaling import BASE, SWEEPS, table

CPU = torch.device("cpu")
SMALL = {
    "image size, 2D": [Point(size=16, axes=2), Point(size=32, axes=2)],
    "samples": [Point(size=16, axes=2, samples=n) for n in (1, 2)],
}


def specification(point: Point, **more) -> dict:
    plans, dataset_json = made_plans(point, "S")
    return {
        "plans": plans,
        "configuration": "made",
        "dataset_json": dataset_json,
        "device": "cpu",
        "shape": [point.size] * point.axes,
        "samples": point.samples,
        **more,
    }


@pytest.mark.parametrize("side", timing.SIDES)
@pytest.mark.parametrize("task", ["prediction", "training"])
@pytest.mark.parametrize("point", [Point(size=32, axes=2, samples=2), Point(size=16, axes=3, samples=2, classes=7)])
def test_made_plans_build_and_run(point, task, side):
    found = single(specification(point, side=side, task=task, rounds=1))
    assert found["seconds"] > 0 and found["processor_seconds"] > 0 and found["peak_gb"] > found["working_gb"] >= 0


@pytest.mark.parametrize("planner", ["S", "M"])
@pytest.mark.parametrize("point", sorted({p for points in SWEEPS.values() for p in points}, key=str), ids=str)
def test_every_point_has_a_plan_that_fits_its_patch(point, planner):
    configuration = made_plans(point, planner)[0]["configurations"]["made"]
    arch, settings = configuration["architecture"]["arch_kwargs"], configuration["diffusion"]["settings"]
    edge = configuration["patch_size"][0]
    assert edge == min(point.size, LARGEST_PATCH[point.axes])
    assert edge % 2 ** (arch["n_stages"] - 1) == 0 and edge // 2 ** (arch["n_stages"] - 1) >= 4
    assert set(settings["latent_stride"]) == {4} and settings["latent_stage"] < arch["n_stages"]
    assert len(arch["n_blocks_per_stage"]) == len(arch["features_per_stage"]) == arch["n_stages"]


def test_number_of_classes_reaches_both_networks():
    plans, dataset_json = made_plans(Point(size=16, axes=2, classes=20), "S")
    pair = Pair(plans, "made", dataset_json, CPU)
    logits = pair.trainers["nnunet"].network.eval()(torch.zeros(1, 1, 16, 16))
    assert logits[0].shape[1] == 20 and pair.trainers["nndiffseg"].bare_network(torch.zeros(1, 1, 16, 16)).shape[1] == 20


def test_a_run_measures_each_thing_once_and_reports_what_failed(results_elsewhere, monkeypatch, capsys):
    asked: list[tuple] = []

    def pretend(spec, limit):
        asked.append((spec["task"], spec["side"], tuple(spec["shape"]), spec["samples"]))
        if spec["task"] == "training" and spec["shape"][0] == 32:
            return {"failed": f"more than {limit:.0f} s"}
        return {"processor_seconds": 0.5 * spec["samples"], "seconds": 9.0, "peak_gb": 1.0, "working_gb": 0.1}

    monkeypatch.setattr(timing, "in_own_process", pretend)
    monkeypatch.setattr(scaling, "QUICK", SMALL)
    monkeypatch.setattr(scaling, "RESULTS", results_elsewhere)
    assert scaling.main(["--quick", "--planner", "S", "--device", "cpu", "--limit", "7"]) == 0
    assert len(asked) == len(set(asked)) == 4 + 4 + 2  # both sizes, and nndiffseg's predictions of 1 and 2 samples
    result = json.loads((results_elsewhere / "scaling_quick.json").read_text())
    assert result["wall_seconds"]["image size, 2D"]["training nnunet"] == [9.0, None]
    assert any("more than 7 s" in line for line in result["table"])
    assert (results_elsewhere / "scaling_quick.png").stat().st_size > 10_000


def test_an_interrupted_run_goes_on(results_elsewhere, monkeypatch):
    calls: list[str] = []

    def interrupted(spec, limit):
        calls.append(spec["side"])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return {"processor_seconds": 1.0, "peak_gb": 1.0}

    monkeypatch.setattr(timing, "in_own_process", interrupted)
    monkeypatch.setattr(scaling, "QUICK", {"image size, 2D": SMALL["image size, 2D"]})
    monkeypatch.setattr(scaling, "RESULTS", results_elsewhere)
    flags = ["--quick", "--planner", "S", "--device", "cpu"]
    assert scaling.main(flags) == 130
    assert scaling.main(flags) == 0
    assert len(calls) == 3 + 6  # eight measurements, of which two were made before
    assert not list(results_elsewhere.glob(".*partial*"))


def test_nnunets_curves_do_not_depend_on_samples_and_training_not_on_tiles():
    many = replace(BASE, samples=64)
    assert scaling._relevant(many, "prediction", "nnunet") == scaling._relevant(BASE, "prediction", "nnunet")
    huge = scaling._relevant(Point(size=2048, axes=2), "training", "nndiffseg")
    assert huge == scaling._relevant(Point(size=512, axes=2), "training", "nndiffseg")


def test_a_failed_measurement_is_named_in_its_cell():
    value = {f"{task} {side}": {"seconds": 1.0, "peak_gb": 2.0} for task, side in scaling.CURVES}
    value["prediction nndiffseg"] = {"failed": "killed by signal 9"}
    row = ["samples", "16", "1.000", "2.00", "killed by signal 9", "", "1.000", "2.00", "1.000", "2.00"]
    assert table("samples", [BASE], [value], "seconds") == [row]


@pytest.mark.parametrize(
    ("flags", "message"),
    [(["--planner", "XL"], "Unknown planner XL"), (["--limit", "0"], "--limit"), (["--quik"], "did you mean --quick")],
)
def test_bad_input_is_told_in_one_sentence(flags, message, capsys):
    assert scaling.main(flags) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
