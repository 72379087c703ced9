"""Finds trained models in the results folder and loads them."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nndiffseg.calibration.calibration import FILE, Calibration
from nndiffseg.data.checkpoint import load_checkpoint, mirror_axes
from nndiffseg.data.dataset_json import structures_of
from nndiffseg.data.files import read_json
from nndiffseg.data.folds import check_fold, fold_files, holds_out
from nndiffseg.data.model_json import read_model_json
from nndiffseg.data.plan_names import is_identifier
from nndiffseg.data.plans_schema import check_plans
from nndiffseg.data.records import preprocessing_settings
from nndiffseg.errors import UserError
from nndiffseg.methods.protocol import Method, MethodPlan

DEFAULT_CHECKPOINT = "checkpoint_final.pth"
#: a pattern for all of a fold
CHECKPOINTS = "checkpoint_*.pth"


@dataclass(frozen=True)
class TrainedModel:
    """A folder ``Dataset004_X/TRAINER__PLANS__CONFIGURATION`` with at least one checkpoint of nndiffseg's kind."""

    folder: Path
    dataset: str
    trainer: str
    plans: str
    configuration: str

    @property
    def flags(self) -> str:
        """What to type to choose this model."""
        number = int(self.dataset[len("Dataset") :].split("_")[0])
        return f"-d {number} -c {self.configuration} -tr {self.trainer} -p {self.plans}"


def trained_models(results: Path) -> list[TrainedModel]:
    """All models in nnU-Net's results folder that draw samples, sorted by path.

    These are nndiffseg's own, whose plans hold diffusion settings, and stock nnU-Nets that were calibrated.
    """
    models = []
    for plans_file in sorted(results.glob("Dataset*/*__*__*/plans.json")):
        folder = plans_file.parent
        trainer, plans, configuration = folder.name.split("__", 2)
        try:
            content = read_json(plans_file)
            check_plans(content, str(plans_file))
            has_diffusion = "diffusion" in PlansManager(content).get_configuration(configuration).configuration
        except (UserError, KeyError, RuntimeError, ValueError):
            continue  # not a model of ours, half-copied, or with foreign names in its plans: it cannot be chosen
        calibrated = (folder / FILE).is_file() or fold_files(folder, FILE)
        if (has_diffusion or calibrated) and fold_files(folder, CHECKPOINTS):
            models.append(TrainedModel(folder, folder.parent.name, trainer, plans, configuration))
    return models


def choose_model(
    results: Path,
    *,
    dataset: str | None = None,
    configuration: str | None = None,
    trainer: str | None = None,
    plans: str | None = None,
) -> TrainedModel:
    """The only trained model that fits all that is given.

    Args:
        results: nnU-Net's results folder.
        dataset: full name.
        configuration, trainer, plans: names.

    Raises:
        UserError: none fits, or several do; the message lists them and says how to choose.
    """
    models = trained_models(results)
    if not models:
        raise UserError(
            f"There is no trained nndiffseg model in {results}; train one with nndiffseg_train, calibrate a finished nnU-Net "
            "with nndiffseg_calibrate, or give a model folder with -m."
        )
    wanted = {"dataset": dataset, "configuration": configuration, "trainer": trainer, "plans": plans}
    fitting = [m for m in models if all(v is None or getattr(m, k) == v for k, v in wanted.items())]
    if len(fitting) == 1:
        return fitting[0]
    listing = "; ".join(m.flags for m in fitting or models)
    if fitting:
        raise UserError(f"{results} holds several trained models that fit; choose one with: {listing}.")
    given = ", ".join(f"{k} {v}" for k, v in wanted.items() if v is not None)
    raise UserError(f"There is no trained nndiffseg model with {given} in {results}; there is: {listing}.")


def available_folds(folder: Path, checkpoint: str) -> list[str]:
    """Folds with this checkpoint: the numbered ones, or ``all`` and its members where there are no others."""
    folds = [fold for fold, _ in fold_files(folder, checkpoint)]
    return [fold for fold in folds if holds_out(fold)] or folds


@dataclass(frozen=True)
class LoadedFold:
    """The network of one fold, in evaluation mode, and the calibration that was fitted on that fold's validation cases."""

    name: str
    network: Any
    calibration: Calibration


@dataclass(frozen=True)
class LoadedModel:
    """The folds of a model and what is needed around them."""

    method: Method
    folds: tuple[LoadedFold, ...]
    plans: PlansManager
    configuration: str
    dataset_json: dict[str, Any]
    trainer: str
    mirror_axes: tuple[int, ...]


@dataclass(frozen=True)
class ModelFiles:
    """What stands in a model folder, checked, before any checkpoint is read.

    Attributes:
        folder: of the model.
        plans, dataset_json: their content.
        checkpoints: fold -> file.
        calibration: fitted on the validation cases of several folds, these among them; None where there is none.
    """

    folder: Path
    plans: dict[str, Any]
    dataset_json: dict[str, Any]
    checkpoints: dict[str, Path]
    calibration: Calibration | None


def open_folder(
    folder: str | Path, folds: Sequence[int | str] | None = None, checkpoint: str = DEFAULT_CHECKPOINT
) -> ModelFiles:
    """Checks a model folder, nndiffseg's or nnU-Net's.

    Args:
        folder: holds ``plans.json``, ``dataset.json`` and ``fold_K/checkpoint_*.pth``.
        folds: such as ``[0, 1]``, ``["all"]`` or ``["all", "all/seed_1"]``; None for :func:`available_folds`.
        checkpoint: file name.

    Raises:
        UserError: something is missing or damaged, or the plans name what no planner writes.
    """
    folder = Path(folder)
    plans, dataset_json = read_model_json(folder)
    chosen = [check_fold(f) for f in folds] if folds is not None else available_folds(folder, checkpoint)
    files = {fold: folder / f"fold_{fold}" / checkpoint for fold in chosen}
    if not files or not all(f.is_file() for f in files.values()):
        raise UserError(_missing(folder, checkpoint, chosen))
    return ModelFiles(folder, plans, dataset_json, files, _pooled(folder, chosen))


def _pooled(folder: Path, folds: Sequence[str]) -> Calibration | None:
    """The model's own calibration where it was fitted on all of these folds; else each fold has its own."""
    calibration = read_calibration(folder)
    return calibration if calibration is not None and set(folds) <= set(calibration.folds) else None


def read_calibration(folder: Path) -> Calibration | None:
    """``calibration.json`` of a model or a fold; None where there is none.

    Raises:
        UserError: it is damaged.
    """
    file = folder / FILE
    return Calibration.from_json(read_json(file, "calibrate anew with nndiffseg_calibrate")) if file.is_file() else None


def load_model(
    folder: str | Path, folds: Sequence[int | str] | None = None, checkpoint: str = DEFAULT_CHECKPOINT
) -> LoadedModel:
    """Loads a model folder as nnU-Net's and nndiffseg's training leave it.

    Args:
        folder, folds, checkpoint: see :func:`open_folder`.

    Raises:
        UserError: something is missing, damaged, or from another trainer, or the plans name what no planner writes.
    """
    files = open_folder(folder, folds, checkpoint)
    manager, dataset_json, first = PlansManager(files.plans), files.dataset_json, None
    loaded = []
    for name, file in files.checkpoints.items():
        content = load_checkpoint(file)
        if first is None:
            first = content
            method = _method(manager, content, dataset_json, files.folder)
        elif content["trainer_name"] != first["trainer_name"] or (
            method.with_defaults(content["options"]) != method.with_defaults(first["options"])
        ):
            raise UserError(
                f"{file} was trained by another trainer or with other options than the first fold; choose folds that belong "
                "together with -f."
            )
        # What else a checkpoint holds, such as the optimiser's state, is dropped before the next one is read.
        calibration = files.calibration or Calibration.from_json(content["calibration"])
        calibration.check(method.plan.heads, len(structures_of(dataset_json)), str(file))
        network = _network(method, content, file)
        method.check_weights(network, name)
        loaded.append(LoadedFold(name, network, calibration))
        first = {k: v for k, v in first.items() if k != "network_weights" and "state" not in k}
    assert first is not None
    return LoadedModel(
        method,
        tuple(loaded),
        manager,
        first["init_args"]["configuration"],
        dataset_json,
        first["trainer_name"],
        mirror_axes(first, len(method.plan.patch), files.folder),
    )


def folder_of_previous(folder: Path, model: LoadedModel) -> Path:
    """The model folder of the stage before, beside that of a cascade's second stage.

    Raises:
        UserError: there is none.
    """
    stage = model.plans.get_configuration(model.configuration).previous_stage_name
    before = folder.resolve().parent / f"{model.trainer}__{model.plans.plans_name}__{stage}"
    if not before.is_dir():
        raise UserError(
            f"{folder} is the second stage of a cascade, and its first one is not in {before}; put that model there, train it "
            f"with nndiffseg_train, or give what it predicted with -prev_stage_predictions."
        )
    return before


def check_stages(first: LoadedModel, second: LoadedModel, folder: Path) -> None:
    """Checks that both stages of a cascade are of the same images and labels; ``folder`` is the first one's.

    Raises:
        UserError: they are not.
    """
    stage = first.configuration
    one, two = (
        (preprocessing_settings(m.plans.plans, m.plans.get_configuration(stage).configuration), m.dataset_json["labels"])
        for m in (first, second)
    )
    if one != two:
        raise UserError(
            f"The model in {folder} has other labels, or preprocesses {stage} otherwise, than the plans of the second stage "
            "say; train both stages with the same plans."
        )


def _network(method: Method, checkpoint: dict[str, Any], file: Path) -> Any:
    try:
        network = method.network()
    except (ValueError, TypeError, IndexError, ArithmeticError, RuntimeError):
        raise UserError(
            f"The diffusion settings in the plans above {file} do not fit the network there; the model folder is mixed up, so "
            "export or train it again."
        ) from None
    try:
        network.load_state_dict(checkpoint["network_weights"])
    except RuntimeError:
        raise UserError(
            f"The weights in {file} do not fit the plans beside them; the model folder is mixed up, so export or train it "
            "again."
        ) from None
    return network.eval()


def _missing(folder: Path, checkpoint: str, chosen: Sequence[str]) -> str:
    there = [f"fold_{fold}/{file.name}" for fold, file in fold_files(folder, CHECKPOINTS)]
    if not there:
        return f"{folder} holds no checkpoint yet; train it first with nndiffseg_train."
    lacking = [f"fold_{f}/{checkpoint}" for f in chosen if not (folder / f"fold_{f}" / checkpoint).is_file()]
    return (
        f"{folder} holds no {', '.join(lacking) or checkpoint}; it has {', '.join(there)}: choose folds with -f "
        "and another checkpoint with -chk."
    )


def trainer_by_name(name: str) -> Any:
    """A trainer class: nndiffseg's own, or one in a folder that ``nnUNet_extTrainer`` names; None if there is none."""
    if not is_identifier(name):
        return None
    trainer = getattr(importlib.import_module("nndiffseg.trainers"), name, None)
    if trainer is None:
        try:
            trainer = recursive_find_trainer_class_by_name(name)
        except (RuntimeError, AssertionError, TypeError):  # nnU-Net asserts that what it found is a trainer, or a class
            return None
    return trainer if isinstance(trainer, type) else None


def _method(plans: PlansManager, checkpoint: dict[str, Any], dataset_json: dict[str, Any], folder: Path) -> Method:
    """The method of a checkpoint, with the options that it was trained with."""
    configuration, trainer = checkpoint["init_args"]["configuration"], checkpoint["trainer_name"]
    if configuration not in plans.available_configurations:
        raise UserError(f"The plans in {folder} have no configuration {configuration}; the model folder is mixed up.")
    manager = plans.get_configuration(configuration)
    trainer_class = trainer_by_name(trainer)
    if trainer_class is None:
        raise UserError(
            f"The model was trained by {trainer}, which is not installed here; put its folder into nnUNet_extTrainer."
        )
    method_class = getattr(trainer_class, "method_class", None)
    if method_class is None:
        raise UserError(f"{folder} was trained by {trainer}, which draws no samples; use nnUNetv2_predict for it.")
    plan = MethodPlan.of(
        manager,
        determine_num_input_channels(plans, manager, dataset_json),
        plans.get_label_manager(dataset_json).num_segmentation_heads,
    )
    return method_class(plan, method_class.read_options(checkpoint["options"]))
