"""The comparison from nothing to table on a tiny dataset, its reuse of what is done, and its clocks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import rivals, speed, versus_nnunet
from benchmarks.methods_training import FINAL
from benchmarks.rivals import Rivals, in_own_process, peak_memory, rounds
from benchmarks.versus_table import Figure, Interval, rows
from nndiffseg.data.checkpoint import load_checkpoint

CPU = torch.device("cpu")


@pytest.fixture
def no_worker_processes(monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")


@pytest.fixture
def tiny_plans(tiny_folders) -> tuple[dict, dict]:
    base = tiny_folders["preprocessed"] / "Dataset901_Tiny"
    return json.loads((base / "nnDiffSegPlansS.json").read_text()), json.loads((base / "dataset.json").read_text())


def folds(results: Path) -> dict[str, Path]:
    """Fold folder of every training by ``seed_S/TRAINER``."""
    return {f"{p.parts[-5]}/{p.parts[-3].split('__')[0]}": p.parent for p in results.rglob(FINAL)}


def test_the_whole_comparison_runs_and_is_reused(
    tiny_flags, tiny_folders, results_elsewhere, no_worker_processes, tmp_path, capsys
):
    flags = [
        *tiny_flags,
        "--iterations",
        "2",
        "--ensemble",
        "2",
        "--samples",
        "3",
        "--more_steps",
        "3",
        "--no_speed",
        "--name",
        "tiny",
        "--device",
        "cpu",
    ]
    assert versus_nnunet.main([*flags, "--only", "nnunet"]) == 0
    trained = folds(tmp_path / "results")
    assert sorted(trained) == ["seed_0/nnUNetTrainer", "seed_1/nnUNetTrainer"]
    times = {name: (f / FINAL).stat().st_mtime_ns for name, f in trained.items()}
    assert versus_nnunet.main(flags) == 0
    trained = folds(tmp_path / "results")
    assert sorted(trained) == ["seed_0/nnDiffSegTrainer", "seed_0/nnUNetTrainer", "seed_1/nnUNetTrainer"]
    assert all((trained[name] / FINAL).stat().st_mtime_ns == t for name, t in times.items())
    assert load_checkpoint(trained["seed_0/nnDiffSegTrainer"] / FINAL)["iteration"] == 2

    result = json.loads((results_elsewhere / "tiny.json").read_text())
    figures = result["figures"]
    for name in ("Dice, shell", "NSD, mean", "NLL, core", "Brier, mean", "ECE, mean", "AUROC of uncertainty for errors"):
        assert set(figures[name]["values"]) == {"nnunet", "nndiffseg", "ensemble"}, name
        value, low, high = figures[name]["nndiffseg_minus"]["nnunet"]
        assert low <= value <= high and np.isfinite(value), name
    assert "nndiffseg" in figures["Dice: mean of samples, 3 steps"]["values"]
    assert set(result["cases"]) == {"case_000", "case_001", "case_002"}
    assert str(tmp_path) not in result["command"]
    # A second run predicts nothing anew and ends with the same table.
    capsys.readouterr()
    assert versus_nnunet.main(flags) == 0
    assert " s (" not in capsys.readouterr().out
    assert json.loads((results_elsewhere / "tiny.json").read_text())["figures"] == figures
    # Alone it has the same figures.
    alone = [*flags[: flags.index("--ensemble") + 1], "0", *flags[flags.index("--ensemble") + 2 :]]
    assert versus_nnunet.main(alone) == 0
    for name, figure in json.loads((results_elsewhere / "tiny.json").read_text())["figures"].items():
        assert figure["values"] == {"nndiffseg": figures[name]["values"]["nndiffseg"]} and not figure["nndiffseg_minus"]


def test_cases_of_several_folds_make_one_table(tiny_flags, results_elsewhere, no_worker_processes, tmp_path):
    flags = [
        *tiny_flags,
        "--iterations",
        "2",
        "--ensemble",
        "1",
        "--samples",
        "2",
        "--more_steps",
        "--no_speed",
        "--device",
        "cpu",
        "--same_precision",
    ]
    for fold in ("0", "1"):
        assert versus_nnunet.main([*flags, "--fold", fold, "--name", f"fold_{fold}"]) == 0
    assert versus_nnunet.main([*flags, "--fold", "0", "1", "--name", "both"]) == 0
    first, second, both = (json.loads((results_elsewhere / f"{n}.json").read_text()) for n in ("fold_0", "fold_1", "both"))
    assert both["cases"] == {**first["cases"], **second["cases"]} and len(both["cases"]) == 6
    assert both["fold"] == [0, 1] and both["dataset"] == first["dataset"] and both["same_precision"]
    # Trainings in another precision are not mistaken for these.
    assert {p.name for p in (tmp_path / "results" / "versus_nnunet").iterdir()} == {"2_iterations_same_precision"}
    name = "Dice, mean"
    expected = np.mean([r["figures"][name]["values"]["nnunet"][0] for r in (first, second)])  # three cases each
    assert both["figures"][name]["values"]["nnunet"][0] == pytest.approx(expected, abs=1e-6)


def test_dice_of_the_table_is_nnunets_own(tiny_flags, tiny_folders, results_elsewhere, no_worker_processes, tmp_path):
    """nnU-Net's predictor and evaluation give the same Dice for the same checkpoint."""
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder
    from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    flags = [
        *tiny_flags,
        "--iterations",
        "8",
        "--ensemble",
        "1",
        "--samples",
        "2",
        "--more_steps",
        "--no_speed",
        "--name",
        "tiny",
        "--device",
        "cpu",
    ]
    assert versus_nnunet.main(flags) == 0
    fold = folds(tmp_path / "results")["seed_0/nnUNetTrainer"]
    predictor = nnUNetPredictor(device=CPU, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(fold.parent), (0,))
    raw, out = tiny_folders["raw"] / "Dataset901_Tiny", tmp_path / "out"
    cases = ["case_000", "case_001", "case_002"]
    out.mkdir()
    for case in cases:
        predictor.predict_from_files_sequential([[str(raw / "imagesTr" / f"{case}_0000.png")]], [str(out / case)])
    (tmp_path / "labels").mkdir()
    for case in cases:
        shutil.copy(raw / "labelsTr" / f"{case}.png", tmp_path / "labels")
    stock = compute_metrics_on_folder(
        str(tmp_path / "labels"), str(out), None, NaturalImage2DIO(), ".png", [1, 2], num_processes=1
    )
    figures = json.loads((results_elsewhere / "tiny.json").read_text())["figures"]
    ours = [figures[f"Dice, {name}"]["values"]["nnunet"][0] for name in ("shell", "core")]
    np.testing.assert_allclose(ours, [stock["mean"][k]["Dice"] for k in (1, 2)], atol=1e-6)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--iterations, or --speed_only"),
        (["--iterations", "0"], "must be positive, not 0"),
        (["--iterations", "2", "--ensemble", "-1"], "must not be negative, not -1"),
        (["--iterations", "2", "--ensemble", "0"], "add --no_speed"),
        (["--iterations", "2", "--only", "nnU-Net"], "Unknown side nnU-Net (did you mean nnunet?)"),
        (["--iterations", "2", "--fold", "5"], "no fold 5"),
        (["--iterations", "2", "--fold", "0", "0"], "a fold twice"),
        (["--iterations", "2", "--more_steps", "0"], "--more_steps"),
        (["--speed_only", "--planner", "XL"], "Unknown planner XL"),
        (["--speed_onyl"], "did you mean --speed_only"),
    ],
)
def test_bad_input_is_told_in_one_sentence(tiny_flags, flags, message, capsys):
    assert versus_nnunet.main([*tiny_flags, *flags]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1


def test_a_split_of_the_raw_dataset_is_used(make_dataset, tmp_path):
    """nnU-Net's own random split might divide what belongs together."""
    make_dataset(tmp_path / "raw", cases=4, shape=(32, 40), file_ending=".png", splits=True)
    flags = [f"--{kind}={tmp_path / kind}" for kind in ("raw", "preprocessed", "results")]
    args = versus_nnunet._parser().parse_args(["--dataset", "901", "--configuration", "2d", "--planner", "S", *flags])
    versus_nnunet.prepare(versus_nnunet.folders_from(args), "Dataset901_Tiny", args)
    base = tmp_path / "preprocessed" / "Dataset901_Tiny"
    assert (base / "splits_final.json").read_text() == (tmp_path / "raw/Dataset901_Tiny/splits_final.json").read_text()
    assert (base / "nnDiffSegPlansS.json").is_file() and any((base / "nnUNetPlans_2d").iterdir())


# ---- speed ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def quick_clocks(monkeypatch):
    """Three short rounds, and memory from this process."""
    monkeypatch.setattr(speed, "in_own_process", lambda spec, limit: rivals.single(spec))


def test_speed_only_needs_no_preprocessed_data(tiny_flags, tiny_folders, tmp_path, results_elsewhere, quick_clocks, capsys):
    flags = [*tiny_flags, "--speed_only", "--device", "cpu", "--name", "speed"]
    flags[flags.index("--preprocessed") + 1] = str(tmp_path / "nothing")
    assert versus_nnunet.main(flags) == 0
    result = json.loads((results_elsewhere / "speed.json").read_text())
    for name in ("prediction_ratio_16", "training_ratio", "memory_ratio"):
        assert 0.01 < result[name] < 1000
    assert np.isfinite(result["sample_ratio"])
    assert set(result["parts"]["planned_gflop"]) == {"image_network", "denoiser_step", "label_decoder"}
    assert all(v > 0 for v in result["parts"]["planned_gflop"].values())
    assert "prediction_ratio_16:" in capsys.readouterr().out
    assert not (tmp_path / "nothing" / "Dataset901_Tiny").exists()


def test_both_sides_have_the_same_image_network_and_batch(tiny_plans):
    pair = Rivals(tiny_plans[0], "2d", tiny_plans[1], CPU)
    stock, ours = pair.trainers["nnunet"].network, pair.trainers["nndiffseg"].bare_network.image_network
    assert sum(p.numel() for p in stock.parameters()) == sum(p.numel() for p in ours.parameters())
    batch = pair.batch()
    assert batch["data"].shape == (pair.configuration.batch_size, 1, *pair.patch)
    stock.train()
    outputs = stock(batch["data"])
    assert [o.shape[2:] for o in outputs] == [t.shape[2:] for t in batch["target"]]
    assert set(batch["target"][0].unique().tolist()) == {0, 1, 2}


def test_a_timed_training_step_changes_the_weights_and_their_average(tiny_plans):
    pair = Rivals(tiny_plans[0], "2d", tiny_plans[1], CPU)
    for side in rivals.SIDES:
        before = {k: v.clone() for k, v in pair.trainers[side].network.state_dict().items()}
        pair.train_step(side, pair.batch())
        after = pair.trainers[side].network.state_dict()
        assert any(not torch.equal(before[k], after[k]) for k in before), side
    assert pair.trainers["nndiffseg"].average.updates == 1


def test_timed_predictions_draw_the_samples_asked_for(tiny_plans):
    pair = Rivals(tiny_plans[0], "2d", tiny_plans[1], CPU, ["nndiffseg"])
    image = pair.image((40, 40))
    assert pair.predictor("nndiffseg", samples=5)(image).labels.shape == (5, 1, 40, 40)


def test_rounds_take_turns_and_end_in_time():
    order: list[str] = []
    times = rounds({n: lambda n=n: order.append(n) for n in "ab"}, CPU, count=5)
    assert order == ["a", "b"] * 6 and len(times.wall["a"]) == 5  # one round of warming up
    slow = rounds({"a": lambda: None}, CPU, count=100, seconds=0)
    assert len(slow.processor["a"]) == 3


def test_the_ratio_is_of_each_round():
    a, b = np.array([1.0, 10, 3]), np.array([2.0, 20, 6])  # the machine was busy in the second round
    assert speed.median_ratio(a, b) == 0.5


def test_peak_memory_sees_what_was_freed_again():
    found = peak_memory(lambda: np.ones(2**26).sum(), CPU)  # 0.5 GB
    assert 0.45 < found["working_gb"] < 0.8 and found["peak_gb"] > found["working_gb"]


def test_a_measurement_that_takes_too_long_is_reported(tiny_plans):
    spec = {
        "plans": tiny_plans[0],
        "configuration": "2d",
        "dataset_json": tiny_plans[1],
        "device": "cpu",
        "side": "nnunet",
        "task": "training",
    }
    assert in_own_process(spec, 0.1) == {"failed": "more than 0.1 s"}


def test_cells_show_differences_with_sign_and_interval():
    figure = Figure(
        "Dice",
        {"nnunet": Interval(0.8, 0.7, 0.9), "nndiffseg": Interval(0.81, 0.7, 0.9)},
        {"nnunet": Interval(0.01, -0.002, 0.03)},
    )
    assert rows([figure]) == [["Dice", "0.8000", "0.8100", "", "+0.0100 [-0.0020, +0.0300]", ""]]
