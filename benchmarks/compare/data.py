"""The data of a comparison: one fold of one configuration, its cases, their images and annotations."""

from __future__ import annotations

import argparse
import glob
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.compare.processes import Measurements, clock_name
from nndiffseg.data.dataset_json import structures_of
from nndiffseg.data.files import write_json
from nndiffseg.data.folders import configure_folders
from nndiffseg.errors import UserError

if TYPE_CHECKING:
    from nnunetv2.utilities.label_handling.label_handling import LabelManager
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

#: annotations of several raters: ``ratersTr/CASE/RATER`` with the file ending of the labels
RATERS = "ratersTr"


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

    @property
    def structures(self) -> dict[str, tuple[int, ...]]:
        """Labels of each of the K structures."""
        return structures_of(self.dataset_json)

    @property
    def heads(self) -> list[tuple[int, ...]]:
        """Labels of each channel of the probabilities."""
        manager = self.label_manager
        heads = manager.foreground_regions if manager.has_regions else manager.all_labels
        return [tuple(int(v) for v in h) if isinstance(h, (tuple, list)) else (int(h),) for h in heads]

    def fold_folder(self, trainer: str) -> Path:
        """Where nnU-Net's conventions put a trainer's results; ``trainer`` is a class name, see :func:`class_name`."""
        model = f"{trainer}__{self.plans['plans_name']}__{self.configuration}"
        return self.results / self.dataset / model / f"fold_{self.fold}"

    def describe(self) -> dict[str, Any]:
        """Data, split and sizes, for a result's JSON."""
        configuration = self.plans["configurations"][self.configuration]
        return {
            "dataset": self.dataset,
            "configuration": self.configuration,
            "fold": self.fold,
            "plans": self.plans["plans_name"],
            "patch_size": configuration["patch_size"],
            "batch_size": configuration["batch_size"],
            "validation_cases": len(self.validation),
            "split_sha256": hashlib.sha256(" ".join(self.validation).encode()).hexdigest()[:16],
            "cases": len(self.cases),
            "diffusion_settings": configuration["diffusion"]["settings"],
        }


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
        raise UserError(
            f"The plans {name} have no configuration {args.configuration} for diffusion models; they have "
            f"{', '.join(plans['configurations'])}."
        )
    if not (base / configuration["data_identifier"]).is_dir():
        raise UserError(f"{dataset} is not preprocessed for {args.configuration}; run `{command}`.")
    dataset_json = json.loads((base / "dataset.json").read_text())
    validation = _split(base, configuration["data_identifier"], args.fold)
    if args.cases is not None and args.cases < 1:
        raise UserError(f"--cases must be at least 1, not {args.cases}.")
    return Data(
        dataset,
        args.configuration,
        args.fold,
        folders.raw / dataset,
        base,
        folders.results,
        plans,
        dataset_json,
        validation,
        spread_evenly(validation, args.cases),
    )


def finished_data(folder: Path, raw: Path, preprocessed: Path, fold: int, cases: int | None = None) -> tuple[Data, str]:
    """The data of a finished model's folder ``RESULTS/DATASET/TRAINER__PLANS__CONFIGURATION``, and its trainer's name.

    Raises:
        UserError: the folder's name is not one of nnU-Net's, a file is missing or damaged, or there is no such fold.
    """
    from nndiffseg.data.model_json import read_model_json
    from nndiffseg.data.splits import SPLITS, read_splits

    folder = folder.resolve()
    parts, dataset = folder.name.split("__"), folder.parent.name
    if len(parts) != 3:
        raise UserError(f"{folder} is not called TRAINER__PLANS__CONFIGURATION; give a model folder of nnU-Net's results.")
    trainer, _, configuration = parts
    base, results = preprocessed / dataset, folder.parent.parent
    folds, (plans, dataset_json) = read_splits(base / SPLITS), read_model_json(folder)
    if not 0 <= fold < len(folds):
        raise UserError(f"There is no fold {fold}; {base / SPLITS} has {len(folds)}, counted from 0.")
    validation = sorted(folds[fold]["val"])
    chosen = spread_evenly(validation, cases)
    data = Data(dataset, configuration, fold, raw / dataset, base, results, plans, dataset_json, validation, chosen)
    return data, trainer


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


def references_of(data: Data, case: str, raters: bool = True) -> tuple[np.ndarray, tuple[float, ...]]:
    """The annotations of a case ``(M, *image)`` and the spacing in mm of the image's three axes.

    Args:
        data: of the fold.
        case: its name.
        raters: all raters of the raw dataset's folder ``ratersTr`` where it has one for the case, else the one label.

    Raises:
        UserError: there is none.
    """
    ending, reader = data.dataset_json["file_ending"], data.plans_manager.image_reader_writer_class()
    files = sorted((data.raw / RATERS / case).glob(f"*{ending}")) if raters else []
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
    files = (
        [Path(f) if Path(f).is_absolute() else data.raw / f for f in entry["images"]]
        if entry
        else sorted((data.raw / "imagesTr").glob(f"{glob.escape(case)}_[0-9][0-9][0-9][0-9]{data.dataset_json['file_ending']}"))
    )
    if not files:
        raise UserError(f"There is no image of {case} in {data.raw / 'imagesTr'}; give the raw data with --raw.")
    return tuple(files)


def measurements_of(kind: str, data: Data, *, device: str, **settings: Any) -> Measurements:
    """The measurements of an experiment beside the trained models. They are kept per case, so ``cases`` may change."""
    described = {k: v for k, v in data.describe().items() if k != "cases"}
    folder = data.results / data.dataset / "benchmark_measurements"
    return Measurements(folder, kind, {**described, "device": device, "clock": clock_name(device), **settings})


def result_name(kind: str, data: Data) -> str:
    """Name of a result's files: ``methods_Dataset004_2d``."""
    return f"{kind}_{data.dataset.split('_')[0]}_{data.configuration}"
