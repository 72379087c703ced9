"""Do volumes vary as much as they should? Trainings of several seeds on the demo's phantoms, evaluated on fresh ones.

    python -m benchmarks.phantom_spread --folder FOLDER [--seeds 0 1] [--iterations 600] [--device cpu]

The demo evaluates one training on ten phantoms. Here every seed's training (the demo's data, plans and length, but counted
in iterations) is evaluated on phantoms that no demo shows: standard deviation of each structure's volume over the samples,
divided by the known one; with the fitted scale of the volumes, and as drawn. The error of the mean volume is that against
the known mean. ``FOLDER`` keeps data and models; what is finished is reused.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import command, report
from nndiffseg.data.phantom import STRUCTURES, write_phantom_dataset
from nndiffseg.inference.predictor import Predictor

PLANS, TRAINER, CONFIGURATION = "nnDiffSegPlansS", "nnDiffSegTrainer", "3d_fullres"
NAME = "Dataset999_Phantom"
#: of the fresh phantoms; the demo's have seed 0
FRESH_SEED = 77


def prepare(folder: Path, cases: int) -> None:
    """The demo's training data and plans, and fresh phantoms."""
    if not (folder / "raw" / NAME).is_dir():
        write_phantom_dataset(folder / "raw", cases=96, test_cases=0, seed=0)
    if not (folder / "fresh" / NAME).is_dir():
        write_phantom_dataset(folder / "fresh", cases=4, test_cases=cases, seed=FRESH_SEED)
    # Makes what is missing, and nothing anew.
    command(
        [
            sys.executable,
            "-m",
            "nndiffseg.cli.plan_and_preprocess",
            "-d",
            "999",
            "-pl",
            "DiffSegPlannerS",
            "-c",
            CONFIGURATION,
            "--raw",
            folder / "raw",
            "--preprocessed",
            folder / "preprocessed",
        ]
    )


def train(folder: Path, seed: int, iterations: int, device: str) -> Path:
    """Trains fold 0 unless it is trained; returns the model folder."""
    results = folder / f"results_{iterations}_seed{seed}"
    model = results / NAME / f"{TRAINER}__{PLANS}__{CONFIGURATION}"
    if not (model / "fold_0" / "validation" / "uncertainty.json").is_file():
        print(f"Training, seed {seed}, {iterations} iterations ...", flush=True)
        command(
            [
                sys.executable,
                "-m",
                "nndiffseg.cli.train",
                "999",
                CONFIGURATION,
                "0",
                "-p",
                PLANS,
                "--epochs",
                str(iterations // 100),
                "--iterations_per_epoch",
                "100",
                "--seed",
                str(seed),
                "-device",
                device,
                "--raw",
                folder / "raw",
                "--preprocessed",
                folder / "preprocessed",
                "--results",
                results,
            ]
        )
    return model


def evaluate(model: Path, fresh: Path, device: str) -> list[dict[str, Any]]:
    """Volumes of 16 samples of every fresh phantom, first with the fitted scale of the volumes, then as drawn."""
    predictor = Predictor.from_folder(model, [0], device=device, seed=0)
    truth = json.loads((fresh / "truth.json").read_text(encoding="utf8"))["cases"]
    known, found = [], []
    for file in sorted((fresh / "imagesTs").glob("*_0000.nii.gz")):
        case = file.name.removesuffix("_0000.nii.gz")
        known.append(truth[case])
        found.append(predictor.predict(file, case_id=case).volumes)

    def pairs(measured: str, key: str) -> NDArray:  # (2, cases, structures)
        return np.array([[[v[s][k] for s in STRUCTURES] for v in of] for of, k in ((found, measured), (known, key))])

    mean, true_mean = pairs("mean_ml", "mean_ml")
    rms = np.sqrt(np.square(mean - true_mean).mean(0))
    results = []
    for key, scale in (("calibrated_sd_ml", predictor.model.folds[0].calibration.volume_scale), ("sd_ml", 1.0)):
        measured, true = pairs(key, "sd_ml")
        results.append(
            {
                "fitted": key != "sd_ml",
                "volume_scale": scale,
                "cases": len(found),
                "spread_ratio": dict(zip(STRUCTURES, map(float, (measured / true).mean(0)), strict=True)),
                "mean_volume_rms_error_ml": dict(zip(STRUCTURES, map(float, rms), strict=True)),
            }
        )
    return results


def row(seed: int, found: dict[str, Any]) -> list[str]:
    """Cells of one of the results of :func:`evaluate`."""
    return [
        str(seed),
        "fitted" if found["fitted"] else "none",
        f"{found['volume_scale']:.2f}",
        *(f"{found['spread_ratio'][s]:.2f}" for s in STRUCTURES),
        *(f"{found['mean_volume_rms_error_ml'][s]:.2f}" for s in STRUCTURES),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", required=True, type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--iterations", type=int, default=600, help="a multiple of 100 (default: %(default)s)")
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--name", default="phantom_spread", help="of the JSON file")
    args = parser.parse_args()
    if args.iterations < 100 or args.iterations % 100:
        parser.error(f"--iterations must be a multiple of 100, not {args.iterations}.")
    folder = args.folder.resolve()
    prepare(folder, args.cases)
    runs = []
    for seed in args.seeds:
        model = train(folder, seed, args.iterations, args.device)
        runs += [{"seed": seed, **found} for found in evaluate(model, folder / "fresh" / NAME, args.device)]
    flags = f"--seeds {' '.join(map(str, args.seeds))} --iterations {args.iterations} --cases {args.cases}"
    spread, error = ("sd / known", "rms error of the mean in ml")
    report(
        args.name,
        [row(run["seed"], run) for run in runs],
        ["seed", "scale", "r", *(f"{what}, {s}" for what in (spread, error) for s in STRUCTURES)],
        {
            "command": f"python -m benchmarks.phantom_spread --folder FOLDER {flags} --device {args.device}",
            "iterations": args.iterations,
            "device": args.device,
            "fresh_seed": FRESH_SEED,
            "runs": runs,
        },
    )


if __name__ == "__main__":
    main()
