"""``nndiffseg_demo``: the whole pipeline in one command, on a phantom whose true uncertainty is known."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nndiffseg.cli.common import Parser, add_device_flag, device_from, run, user_path
from nndiffseg.data.parallel import kill_with_parent
from nndiffseg.errors import UserError

PLANS = "nnDiffSegPlansS"
TRAINER = "nnDiffSegTrainer"
#: Marks a folder as the demo's own; in any other folder with content it refuses to work.
MARKER = ".nndiffseg_demo"
LOG = "demo.log"
#: All that the demo writes, and so all that a rerun deletes.
OWN = (
    "raw",
    "preprocessed",
    "results",
    "predictions",
    "images",
    "references",
    LOG,
    "evaluation.json",
    "summary.json",
    "report.html",
    MARKER,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Console entry point; returns the exit code."""
    return run(_main, argv)


def _parser() -> Parser:
    parser = Parser("Makes a phantom dataset, plans, trains, predicts, evaluates and writes a report, in one folder.")
    parser.add_argument("--output", type=user_path, default=Path("nndiffseg_demo"), help="default: ./%(default)s")
    parser.add_argument(
        "--dataset",
        type=user_path,
        metavar="FOLDER",
        help="your own dataset in nnU-Net's raw format (.../DatasetXXX_Name) instead of the phantom",
    )
    parser.add_argument("--minutes", type=float, default=3.9, help="training time (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=32, help="samples per case (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--cases", type=int, default=96, help="training cases of the phantom (default: %(default)s)")
    parser.add_argument("--test_cases", type=int, default=10, help="held-out phantoms (default: %(default)s)")
    add_device_flag(parser)
    return parser


@dataclass
class Demo:
    """Folders and clock of one run.

    Attributes:
        output: the only folder that is written to.
        args: the parsed command line.
        device: name of the device.
        seconds: per finished stage.
    """

    output: Path
    args: argparse.Namespace
    device: str
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def folders(self) -> list[str]:
        raw = self.args.dataset.resolve().parent if self.args.dataset else self.output / "raw"
        return [f"--raw={raw}", f"--preprocessed={self.output / 'preprocessed'}", f"--results={self.output / 'results'}"]

    @contextmanager
    def stage(self, name: str, what: str) -> Iterator[None]:
        print(f"[{name}] {what}", flush=True)
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 1)
        print(f"[{name}] done in {self.seconds[name]:.0f} s", flush=True)

    def command(self, name: str, *arguments: object) -> None:
        """Runs one of the commands as a user would. Its log goes to a file, its progress bars to the terminal."""
        line = [sys.executable, "-m", f"nndiffseg.cli.{name}", *map(str, arguments), *self.folders]
        with open(self.output / LOG, "a", encoding="utf8") as log:
            log.write(f"\n$ nndiffseg_{name} {' '.join(line[3:])}\n")
            log.flush()
            threads = {} if self.args.num_threads is None else {"OMP_NUM_THREADS": str(self.args.num_threads)}
            code = subprocess.run(
                line, stdout=log, check=False, env=os.environ | threads, preexec_fn=kill_with_parent
            ).returncode
        if code == 2:
            raise SystemExit(code)  # the command has said why
        if code != 0:
            raise UserError(f"nndiffseg_{name} stopped with exit code {code}; {self.output / LOG} says what it did last.")


def _main(argv: Sequence[str] | None) -> None:
    args = _parser().parse_args(argv)
    _check(args)
    demo = Demo(_fresh(args.output.resolve()), args, device_from(args).type)
    started = time.monotonic()
    dataset = _dataset(demo)
    number = str(int(dataset.name[7:].split("_")[0]))
    with demo.stage("plan", "fingerprint, rate-distortion, plans and preprocessing"):
        demo.command("plan_and_preprocess", "-d", number, "-pl", "DiffSegPlannerS", *_configurations(args))
    configuration = _planned_configuration(demo.output / "preprocessed" / dataset.name)
    with demo.stage("train", f"fold 0 of {configuration} for {args.minutes:g} minutes, then its validation"):
        demo.command(
            "train",
            number,
            configuration,
            0,
            "-p",
            PLANS,
            "-tr",
            TRAINER,
            "--minutes",
            args.minutes,
            "--iterations_per_epoch",
            100,
            "--seed",
            args.seed,
            "-device",
            demo.device,
        )
    images, references = _held_out(demo, dataset)
    predictions = demo.output / "predictions"
    with demo.stage("predict", f"{args.samples} samples of each held-out case"):
        demo.command(
            "predict",
            "-i",
            images,
            "-o",
            predictions,
            "-d",
            number,
            "-c",
            configuration,
            "-p",
            PLANS,
            "-tr",
            TRAINER,
            "-f",
            0,
            "--samples",
            args.samples,
            "--seed",
            args.seed,
            "--save_samples",
            "--save_probabilities",
            "-device",
            demo.device,
        )
    _evaluate(demo, dataset, predictions, images, references, started)


def _check(args: argparse.Namespace) -> None:
    for flag in ("minutes", "samples", "cases", "test_cases"):
        if getattr(args, flag) <= 0:
            raise UserError(f"--{flag} must be positive, not {getattr(args, flag)}.")
    if args.dataset is not None and not (args.dataset / "dataset.json").is_file():
        raise UserError(f"{args.dataset} holds no dataset.json; give a dataset folder in nnU-Net's raw format.")
    if args.dataset is not None and args.output.resolve() in args.dataset.resolve().parents:
        raise UserError(f"{args.dataset} lies in the output folder, which is emptied; choose another with --output.")


def _fresh(output: Path) -> Path:
    """Makes the output folder; what an earlier demo wrote there is deleted, and nothing else.

    Raises:
        UserError: the folder holds something that no demo wrote.
    """
    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file; choose another folder with --output.")
    if output.is_dir() and any(output.iterdir()):
        if not (output / MARKER).is_file():
            raise UserError(f"{output} holds files that are not the demo's; choose another folder with --output.")
        for name in OWN:
            path = output / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    output.mkdir(parents=True, exist_ok=True)
    (output / MARKER).touch()
    return output


def _dataset(demo: Demo) -> Path:
    if demo.args.dataset is not None:
        return demo.args.dataset.resolve()
    from nndiffseg.data.phantom import write_phantom_dataset

    with demo.stage("generate", f"{demo.args.cases} phantoms to train on and {demo.args.test_cases} to predict"):
        return write_phantom_dataset(
            demo.output / "raw", cases=demo.args.cases, test_cases=demo.args.test_cases, seed=demo.args.seed
        )


def _configurations(args: argparse.Namespace) -> list[str]:
    return [] if args.dataset is not None else ["-c", "3d_fullres"]


def _planned_configuration(folder: Path) -> str:
    """3d_fullres where the data is 3D, else 2d."""
    planned = json.loads((folder / f"{PLANS}.json").read_text(encoding="utf8"))["configurations"]
    return "3d_fullres" if "3d_fullres" in planned else "2d"


def _held_out(demo: Demo, dataset: Path) -> tuple[Path, Path]:
    """Images and labels that the training has not seen: the phantom's test cases, else the fold's validation cases."""
    if demo.args.dataset is None:
        return dataset / "imagesTs", dataset / "labelsTs"
    from nndiffseg.data.check import read_dataset_json, training_cases
    from nndiffseg.data.listing import copy_with_side_files

    splits = demo.output / "preprocessed" / dataset.name / "splits_final.json"
    split = json.loads(splits.read_text(encoding="utf8"))[0]
    images, references = demo.output / "images", demo.output / "references"
    images.mkdir()
    references.mkdir()
    for case in training_cases(dataset, read_dataset_json(dataset)):
        if case.name in split["val"]:
            for image in case.images:
                copy_with_side_files(Path(image), images, label=False)
            copy_with_side_files(Path(case.label), references, label=True)
    return images, references


def _evaluate(demo: Demo, dataset: Path, predictions: Path, images: Path, references: Path, started: float) -> None:
    """Evaluation, report, ``summary.json`` and the closing table."""
    from nndiffseg.data.files import write_json
    from nndiffseg.report.report import write_demo_report
    from nndiffseg.uncertainty.evaluation import evaluate_predictions
    from nndiffseg.uncertainty.evaluation_table import format_table, number

    truth = dataset / "truth.json"
    dataset_json = json.loads((dataset / "dataset.json").read_text(encoding="utf8"))
    with demo.stage("evaluate", "against the labels of the held-out cases"):
        evaluation = evaluate_predictions(
            predictions,
            references,
            dataset_json=dataset_json,
            truth=truth if truth.is_file() else None,
            output_file=demo.output / "evaluation.json",
        )
    with demo.stage("report", "pictures and tables"):
        report = write_demo_report(demo.output, predictions, images, references, evaluation, dataset_json)
    summary = evaluation["summary"]
    result: dict[str, Any] = {
        "dice_mean": summary["dice_mean"],
        "error_auroc": summary["error_auroc"],
        "volume_spread_ratio": summary["volume_spread_ratio"],
        "seconds": {**demo.seconds, "total": round(time.monotonic() - started, 1)},
        "cases": summary["cases"],
        "samples": demo.args.samples,
        "seed": demo.args.seed,
        "device": demo.device,
    }
    write_json(result, demo.output / "summary.json")
    print(f"\n{format_table(evaluation)}\n")
    print(f"mean Dice on the held-out cases         {number(summary['dice_mean'])}")
    print(f"AUROC of total uncertainty for errors   {number(summary['error_auroc'])}")
    for structure, ratio in (summary["volume_spread_ratio"] or {}).items():
        if structure != "mean":
            print(f"volume spread, measured / known         {number(ratio, 2)}  {structure}")
    print(f"report                                  {report}")
    print(f"total                                   {result['seconds']['total']:.0f} s")


if __name__ == "__main__":
    raise SystemExit(main())
