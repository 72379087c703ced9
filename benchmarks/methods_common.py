"""What the comparisons of methods share: the command line, the data of a fold, references, cached measurements."""

from __future__ import annotations

import argparse
import glob
import hashlib
import importlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.common import RESULTS, _tree_memory
from nndiffseg.cli.common import Parser
from nndiffseg.errors import UserError
from nndiffseg.evaluation import write_json
from nndiffseg.folders import configure_folders

if TYPE_CHECKING:
    from nnunetv2.utilities.label_handling.label_handling import LabelManager
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

STOCK = "nnUNetTrainer"
TRAINERS = (STOCK, "nnDiffSegTrainer", "nnDiffSegTrainerLDSeg", "nnDiffSegTrainerCDAL", "nnDiffSegTrainerMedSegDiffV2")
LABELS = dict(zip(TRAINERS, ("nnU-Net", "nnDiffSeg", "LDSeg", "cDAL", "MedSegDiff-V2"), strict=True))
IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
#: annotations of several raters: ``ratersTr/CASE/RATER`` with the file ending of the labels
RATERS = "ratersTr"


# ---- command line -------------------------------------------------------------------------------------------------


def data_parser(description: str) -> Parser:
    """A parser with the flags that say which data, fold and results are meant."""
    parser = Parser(description)
    parser.add_argument("--dataset", "-d", default="4", help="id or name (default: %(default)s)")
    parser.add_argument("--configuration", "-c", default="2d", help="of the plans (default: %(default)s)")
    parser.add_argument("--fold", "-f", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--planner", default="S", help="size of the planner, S, M or L (default: %(default)s)")
    parser.add_argument("--plans", "-p", help="name of the plans, instead of --planner")
    parser.add_argument("--cases", type=int, help="predict so many validation cases, spread evenly (default: all)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda", "mps"), help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--disable_tta", action="store_true", help="no mirroring, in nnU-Net neither")
    for kind in ("raw", "preprocessed", "results"):
        parser.add_argument(f"--{kind}", metavar="FOLDER", help=f"overrides nnUNet_{kind}")
    return parser


def add_budget_flags(parser: argparse.ArgumentParser) -> None:
    """``--iterations`` and ``--minutes``, see :func:`budget_from`."""
    parser.add_argument("--iterations", type=int, help="of every training")
    parser.add_argument("--minutes", type=float, help="of every training, instead of --iterations; without either, only "
                                                      "finished trainings are used")


def add_trainers_flag(parser: argparse.ArgumentParser, default: Sequence[str] = TRAINERS) -> None:
    parser.add_argument("--trainers", nargs="+", default=list(default), metavar="TRAINER", help="default: all of them")


def passed_on(args: argparse.Namespace, *more: str) -> list[str]:
    """The flags of :func:`data_parser` again, and ``more``, for a command that works on the same data."""
    names = ("dataset", "configuration", "fold", "plans", "planner", "cases", "device", "seed", "raw", "preprocessed",
             "results", *more)
    given = [(name, getattr(args, name)) for name in names]
    flags = [text for name, value in given if value is not None for text in (f"--{name}", str(value))]
    return flags + (["--disable_tta"] if args.disable_tta else [])


@dataclass(frozen=True)
class Budget:
    """Length of a training: iterations, or minutes, or neither (what is trained is taken as it is)."""

    iterations: int | None
    minutes: float | None

    def __str__(self) -> str:
        return f"{self.iterations} iterations" if self.minutes is None else f"{self.minutes:g} minutes"

    @property
    def given(self) -> bool:
        return self.iterations is not None or self.minutes is not None


def budget_from(args: argparse.Namespace) -> Budget:
    """Raises UserError where both flags are given or one is not positive."""
    if args.iterations is not None and args.minutes is not None:
        raise UserError("Give either --iterations or --minutes, not both.")
    for flag in ("iterations", "minutes"):
        value = getattr(args, flag)
        if value is not None and not value > 0:
            raise UserError(f"--{flag} must be positive, not {value}.")
    return Budget(args.iterations, args.minutes)


# ---- data ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Data:
    """One fold of one configuration.

    Attributes:
        dataset: full name.
        raw, preprocessed: the dataset's own folders.
        results: nnU-Net's results folder.
        plans, dataset_json: contents of the files.
        validation: all validation cases of the fold, sorted.
        cases: those to predict.
    """

    dataset: str
    configuration: str
    fold: int
    raw: Path
    preprocessed: Path
    results: Path
    plans: dict[str, Any]
    dataset_json: dict[str, Any]
    validation: list[str]
    cases: list[str]

    @property
    def plans_manager(self) -> PlansManager:
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        return PlansManager(self.plans)

    @property
    def label_manager(self) -> LabelManager:
        return self.plans_manager.get_label_manager(self.dataset_json)

    def fold_folder(self, trainer: str) -> Path:
        """Where nnU-Net's conventions put a trainer's results; ``trainer`` is a class name, see :func:`class_name`."""
        model = f"{trainer}__{self.plans['plans_name']}__{self.configuration}"
        return self.results / self.dataset / model / f"fold_{self.fold}"

    def describe(self) -> dict[str, Any]:
        """Data, split and sizes, for a result's JSON."""
        configuration = self.plans["configurations"][self.configuration]
        return {"dataset": self.dataset, "configuration": self.configuration, "fold": self.fold,
                "plans": self.plans["plans_name"], "patch_size": configuration["patch_size"],
                "batch_size": configuration["batch_size"], "validation_cases": len(self.validation),
                "split_sha256": hashlib.sha256(" ".join(self.validation).encode()).hexdigest()[:16],
                "cases": len(self.cases), "diffusion_settings": configuration["diffusion"]["settings"]}


def data_from(args: argparse.Namespace) -> Data:
    """The data that the flags name.

    Raises:
        UserError: something is missing; the message says which command makes it.
    """
    folders = configure_folders(args.raw, args.preprocessed, args.results)
    dataset = folders.dataset(args.dataset, "preprocessed")
    base = folders.preprocessed / dataset
    name = args.plans or "nnDiffSegPlans" + ("" if args.planner.upper() == "M" else args.planner.upper())
    command = f"nndiffseg_plan_and_preprocess -d {args.dataset} -c {args.configuration}"
    command += "" if args.plans else f" -pl DiffSegPlanner{'' if args.planner.upper() == 'M' else args.planner.upper()}"
    if not (base / f"{name}.json").is_file():
        raise UserError(f"There are no plans {name} for {dataset}; run `{command}` or choose with --plans.")
    plans = json.loads((base / f"{name}.json").read_text())
    configuration = plans["configurations"].get(args.configuration)
    if configuration is None or "diffusion" not in configuration:
        raise UserError(f"The plans {name} have no configuration {args.configuration} for diffusion models; they have "
                        f"{', '.join(plans['configurations'])}.")
    if not (base / configuration["data_identifier"]).is_dir():
        raise UserError(f"{dataset} is not preprocessed for {args.configuration}; run `{command}`.")
    dataset_json = json.loads((base / "dataset.json").read_text())
    validation = _split(base, configuration["data_identifier"], args.fold)
    if args.cases is not None and args.cases < 1:
        raise UserError(f"--cases must be at least 1, not {args.cases}.")
    return Data(dataset, args.configuration, args.fold, folders.raw / dataset, base, folders.results, plans, dataset_json,
                validation, spread_evenly(validation, args.cases))


def _split(base: Path, identifier: str, fold: int) -> list[str]:
    """Validation cases of a fold; nnU-Net's own split is made, and kept, where the dataset brings none."""
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    file = base / "splits_final.json"
    if not file.is_file():
        cases = infer_dataset_class(str(base / identifier)).get_identifiers(str(base / identifier))
        if len(cases) < 5:
            raise UserError(f"{base.name} has {len(cases)} cases, too few for five folds; write a splits_final.json.")
        write_json(generate_crossval_split(sorted(cases), seed=12345, n_splits=5), file)
    splits = json.loads(file.read_text())
    if not 0 <= fold < len(splits):
        raise UserError(f"There is no fold {fold}; the split of {base.name} has {len(splits)}, counted from 0.")
    return sorted(splits[fold]["val"])


def spread_evenly(cases: Sequence[str], count: int | None) -> list[str]:
    """``count`` of the cases in their order, evenly spread; all of them without a count."""
    if count is None or count >= len(cases):
        return list(cases)
    return [cases[i] for i in np.linspace(0, len(cases) - 1, count).round().astype(int)]


def references_of(data: Data, case: str) -> tuple[np.ndarray, tuple[float, ...]]:
    """The annotations of a case ``(M, *image)`` and the spacing in mm of the image's three axes.

    All raters of the raw dataset's folder ``ratersTr`` where it has one for the case, else the one label.

    Raises:
        UserError: there is none.
    """
    ending, reader = data.dataset_json["file_ending"], data.plans_manager.image_reader_writer_class()
    files = sorted((data.raw / RATERS / case).glob(f"*{ending}"))
    files = files or [f for f in [data.preprocessed / "gt_segmentations" / f"{case}{ending}"] if f.is_file()]
    if not files:
        raise UserError(f"There is no label of {case} in {data.preprocessed / 'gt_segmentations'}; preprocess it again.")
    read = [reader.read_seg(str(f)) for f in files]
    return np.stack([array[0].astype(np.int16) for array, _ in read]), tuple(float(s) for s in read[0][1]["spacing"])


def image_files(data: Data, case: str) -> tuple[Path, ...]:
    """The files of a case's channels.

    Raises:
        UserError: there are none.
    """
    entry = data.dataset_json.get("dataset", {}).get(case)  # nnU-Net lets a dataset.json name the files itself
    files = [Path(f) if Path(f).is_absolute() else data.raw / f for f in entry["images"]] if entry else sorted(
        (data.raw / "imagesTr").glob(f"{glob.escape(case)}_[0-9][0-9][0-9][0-9]{data.dataset_json['file_ending']}"))
    if not files:
        raise UserError(f"There is no image of {case} in {data.raw / 'imagesTr'}; give the raw data with --raw.")
    return tuple(files)


# ---- trainers -----------------------------------------------------------------------------------------------------


def find_class(name: str) -> Any:
    """A trainer class: ``nnUNetTrainer``, one of nndiffseg's, or ``module:Class`` for a variant that lives elsewhere.

    Raises:
        UserError: there is no such class.
    """
    if name == STOCK:
        from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

        return nnUNetTrainer
    if ":" in name:
        module, _, attribute = name.partition(":")
        found = getattr(importlib.import_module(module), attribute, None)
        if found is None:
            raise UserError(f"There is no trainer {attribute} in {module}.")
        return found
    from nndiffseg.cli.train import find_trainer

    return find_trainer(name)


def class_name(name: str) -> str:
    """The class's own name, without its module."""
    return name.rpartition(":")[2]


def label_of(name: str) -> str:
    """How tables and figures call a trainer."""
    return LABELS.get(name, class_name(name))


def clock_of(device: Any) -> Callable[[], float]:
    """What times a ``torch.device``: processor seconds of this process (all its threads) on the CPU, so that whatever else
    the machine does leaves no trace in a comparison; wall-clock on an accelerator, after its queue is empty."""
    if device.type == "cpu":
        return time.process_time

    def wait_and_see() -> float:
        import torch

        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    return wait_and_see


# ---- commands that run unattended ---------------------------------------------------------------------------------


def stop_cleanly_on_terminate() -> None:
    """SIGTERM ends this program as Ctrl-C does, so that its children end with it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def run_module(module: str, arguments: Iterable[str]) -> tuple[int, float]:
    """Runs ``python -m module`` with this program's output; returns its exit code and peak memory in GB."""
    process, peak = subprocess.Popen([sys.executable, "-m", module, *arguments]), 0.0
    try:
        while process.poll() is None:
            peak = max(peak, _tree_memory(process.pid))
            time.sleep(0.1)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    return process.returncode, peak / 2**30


class Measurements:
    """Results that took long, in a JSON file: an interrupted benchmark goes on where it stopped.

    Args:
        path: the file.
        settings: what the results depend on; a file made with others is started anew.
    """

    def __init__(self, path: Path, settings: dict[str, Any]):
        self.path, self.settings = path, json.loads(json.dumps(settings))
        self.values: dict[str, Any] = {}
        if path.is_file():
            content = json.loads(path.read_text())
            if content["settings"] == self.settings:
                self.values = content["values"]
            else:
                print(f"{path.name} was made with other settings and is made anew.", flush=True)

    def get(self, key: str, measure: Callable[[], Any]) -> Any:
        """The value of ``key``, measured where it is not known; JSON-ready."""
        if key not in self.values:
            started = time.monotonic()
            self.values[key] = measure()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json({"settings": self.settings, "values": self.values}, self.path)
            print(f"{key} ({time.monotonic() - started:.0f} s)", flush=True)
        return self.values[key]


def measurements_of(kind: str, data: Data, **settings: Any) -> Measurements:
    """The measurements of an experiment beside the trained models. They are kept per case, so ``cases`` may change."""
    described = {k: v for k, v in data.describe().items() if k != "cases"}
    path = data.results / data.dataset / "benchmark_measurements" / f"{result_name(kind, data)}.json"
    return Measurements(path, {**described, **settings})


def result_name(kind: str, data: Data) -> str:
    """Name of a result's files: ``methods_Dataset004_2d``."""
    return f"{kind}_{data.dataset.split('_')[0]}_{data.configuration}"


def earlier_result(name: str) -> dict[str, Any]:
    """What :func:`benchmarks.common.report` wrote under this name, or an empty dictionary."""
    file = RESULTS / f"{name}.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def save_figure(figure: Any, name: str) -> None:
    """Writes ``docs/images/NAME.png``."""
    from matplotlib import pyplot as plt

    IMAGES.mkdir(parents=True, exist_ok=True)
    figure.savefig(IMAGES / f"{name}.png", dpi=110)
    plt.close(figure)
    print(f"figure: docs/images/{name}.png", flush=True)


def new_figure(columns: int = 1) -> tuple[Any, list[Any]]:
    """A figure with axes side by side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, columns, figsize=(6.4 * columns, 4.4), layout="constrained", squeeze=False)
    for axis in axes[0]:
        axis.grid(alpha=0.3)
    return figure, list(axes[0])
