"""Plans onto a finished nnU-Net: its plans stay as they are, and the light networks are planned beside its network."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nndiffseg.data.checkpoint import digest
from nndiffseg.data.dataset_json import structures_of
from nndiffseg.data.dataset_schema import check_dataset_json
from nndiffseg.data.files import read_json
from nndiffseg.data.model_json import read_model_json
from nndiffseg.data.plan_names import is_identifier
from nndiffseg.data.plans_schema import check_plans
from nndiffseg.errors import UserError
from nndiffseg.inference.model_folder import available_folds
from nndiffseg.methods.latent.source import KEY, Source, load_finished, read_finished
from nndiffseg.methods.protocol import planned_network
from nndiffseg.planning.cost import Architecture
from nndiffseg.planning.decisions import Size
from nndiffseg.planning.labels import load_preprocessed_labels
from nndiffseg.planning.plans_file import same_preprocessing
from nndiffseg.planning.section import decide

NATURAL_IMAGES = "NaturalImage2DIO"


@dataclass(frozen=True)
class FinishedModel:
    """A folder that ``nnUNetv2_train`` wrote, checked.

    Attributes:
        folder: holds ``fold_K``.
        plans, dataset_json: its JSON files.
        configuration: name in the plans.
        checkpoint: name of the file in each fold.
        source: what is recorded of it, with the weights of the chosen folds.
    """

    folder: Path
    plans: dict[str, Any]
    dataset_json: dict[str, Any]
    configuration: str
    checkpoint: str
    source: Source

    @property
    def manager(self) -> ConfigurationManager:
        """nnU-Net's view of the configuration, what it inherits included."""
        return PlansManager(self.plans).get_configuration(self.configuration)

    @property
    def regions(self) -> bool:
        return bool(_labels(self.plans, self.dataset_json).has_regions)

    @property
    def architecture(self) -> Architecture:
        """Of its network."""
        return _architecture(self.plans, self.configuration, self.dataset_json)

    def weights(self, fold: str) -> Path:
        """The checkpoint of a fold."""
        return self.folder / f"fold_{fold}" / self.checkpoint


# ---- the model folder -------------------------------------------------------------------------------------------------


def read_model(folder: Path, folds: Sequence[str] | None, checkpoint: str) -> FinishedModel:
    """Reads and checks a finished nnU-Net; nothing that it names is imported before it is checked.

    Args:
        folder: holds ``plans.json``, ``dataset.json`` and ``fold_K/``.
        folds: such as ``["0", "1"]`` or ``["all"]``; None for all that are trained.
        checkpoint: file name in each fold.

    Raises:
        UserError: something is missing, damaged, or not supported.
    """
    plans, dataset_json = read_model_json(folder)
    chosen = _folds(folder, folds, checkpoint)
    configuration, records = "", []
    for fold in chosen:
        path = folder / f"fold_{fold}" / checkpoint
        content = read_finished(path)
        try:
            configuration = configuration or _configuration(content, plans, dataset_json, path)
            architecture = _architecture(plans, configuration, dataset_json)
            unet = planned_network(architecture.section, architecture.input_channels, architecture.heads, initialise=False)
            records.append(_record(content, plans["plans_name"], path))
        except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
            raise UserError(
                f"The JSON files in {folder} describe no network of nnU-Net; copy the model folder again."
            ) from None
        load_finished(unet, content["network_weights"], path)
        records[-1].sha256[fold] = digest(unet.state_dict())
        if replace(records[-1], sha256={}) != replace(records[0], sha256={}):
            raise UserError(
                f"{path} was trained by another trainer than fold {chosen[0]}; choose --folds that belong together."
            )
    sha256 = {fold: value for record in records for fold, value in record.sha256.items()}
    return FinishedModel(folder, plans, dataset_json, configuration, checkpoint, replace(records[0], sha256=sha256))


def _folds(folder: Path, wanted: Sequence[str] | None, checkpoint: str) -> list[str]:
    trained = available_folds(folder, checkpoint)
    if not trained:
        raise UserError(f"{folder} holds no fold_K/{checkpoint}; finish its training first, or choose another with -chk.")
    for fold in wanted or ():
        if not (folder / f"fold_{fold}" / checkpoint).is_file():
            raise UserError(f"{folder} holds no fold_{fold}/{checkpoint}; choose --folds from {' '.join(trained)}.")
    return list(dict.fromkeys(wanted or trained))


def _configuration(checkpoint: Mapping[str, Any], plans: dict[str, Any], dataset_json: dict[str, Any], path: Path) -> str:
    arguments = checkpoint.get("init_args")
    name = arguments.get("configuration") if isinstance(arguments, dict) else None
    if not isinstance(name, str) or name not in plans["configurations"]:
        raise UserError(f"{path} belongs to no configuration of the plans beside it; copy the model folder again.")
    if PlansManager(plans).get_configuration(name).previous_stage_name is not None:
        raise UserError(f"{path} is the second stage of a cascade, to which nothing can be attached; give another model.")
    return name


def _record(checkpoint: Mapping[str, Any], plans_name: str, path: Path) -> Source:
    trainer, axes = checkpoint.get("trainer_name"), checkpoint.get("inference_allowed_mirroring_axes")
    if not is_identifier(trainer):
        raise UserError(f"{path} names no trainer by which it was written; copy the model folder again.")
    return Source(str(trainer), plans_name, tuple(int(a) for a in axes or ()), {})


def _labels(plans: dict[str, Any], dataset_json: dict[str, Any]) -> Any:
    return PlansManager(plans).get_label_manager(dataset_json)


def _architecture(plans: dict[str, Any], configuration: str, dataset_json: dict[str, Any]) -> Architecture:
    manager = PlansManager(plans)
    planned = manager.get_configuration(configuration)
    channels = determine_num_input_channels(manager, planned, dataset_json)
    return Architecture.of(planned.configuration, channels, _labels(plans, dataset_json).num_segmentation_heads)


# ---- the plans --------------------------------------------------------------------------------------------------------


def check_data(model: FinishedModel, preprocessed: Path) -> None:
    """Checks that the data are there that the model was trained on.

    Args:
        preprocessed: the dataset's folder of nnU-Net's preprocessed data.

    Raises:
        UserError: they are absent, or were preprocessed or labelled otherwise.
    """
    name, plans_name = model.configuration, model.plans["plans_name"]
    again = f"run nnUNetv2_plan_and_preprocess for {model.plans['dataset_name']} and train again"
    for needed in (model.manager.data_identifier, "gt_segmentations", "dataset.json"):
        if not (preprocessed / needed).exists():
            raise UserError(f"{preprocessed} holds no {needed}; preprocess the dataset with {plans_name}, as for its training.")
    file = preprocessed / "dataset.json"
    dataset_json = check_dataset_json(read_json(file, again), str(file), again)
    if any(dataset_json.get(key) != model.dataset_json.get(key) for key in ("labels", "regions_class_order")):
        raise UserError(f"The labels in {preprocessed / 'dataset.json'} are not those of the model; {again}.")
    if (file := preprocessed / f"{plans_name}.json").is_file():
        plans = read_json(file, again)
        check_plans(plans, str(file))
        if name not in plans["configurations"] or not same_preprocessing(model.plans, plans, name):
            raise UserError(f"{file} preprocesses {name} otherwise than the model's plans do; {again}.")


def attached_plans(
    model: FinishedModel, preprocessed: Path, name: str, size: Size, *, resume: bool
) -> tuple[dict[str, Any], str]:
    """The model's plans with a ``diffusion`` section for its configuration.

    Args:
        preprocessed: the dataset's folder; of plans of this name that lie there, what is attached to the same model stays.
        name: of the new plans.
        size: for the budget and the widths of the light networks.
        resume: trainings go on, so that their weights must be those of before.

    Returns:
        Plans, and the decisions as text.

    Raises:
        UserError: the name is taken, or the weights of a fold that goes on have changed.
    """
    configuration = copy.deepcopy(model.manager.configuration)
    configuration.pop("inherits_from", None)
    attached, source = _earlier(model, preprocessed / f"{name}.json", resume)
    ignore = _labels(model.plans, model.dataset_json).ignore_label
    labels = load_preprocessed_labels(preprocessed / configuration["data_identifier"], configuration["spacing"], ignore)
    if not labels:
        raise UserError(f"No preprocessed label of {model.plans['dataset_name']} holds any structure; check labelsTr.")
    section = decide(model.architecture, configuration["spacing"], labels, structures_of(model.dataset_json), size)
    configuration["diffusion"] = section.to_plan(model.regions) | {KEY: source.to_plan()}
    plans = copy.deepcopy(model.plans) | {"plans_name": name}
    plans["configurations"].update(attached | {model.configuration: configuration})
    unit = "pixels" if plans["image_reader_writer"] == NATURAL_IMAGES else "mm"
    return plans, section.report(model.configuration, configuration["batch_size"], unit)


def _earlier(model: FinishedModel, file: Path, resume: bool) -> tuple[dict[str, Any], Source]:
    """Configurations that are attached already, and the model's record with the folds that are."""
    if not file.is_file():
        return {}, model.source
    other = "choose another name with -overwrite_plans_name"
    plans = read_json(file, f"remove it, or {other}")
    check_plans(plans, str(file))
    attached = {n: c for n, c in plans["configurations"].items() if KEY in c.get("diffusion", {})}
    if not attached:
        raise UserError(f"{file} was not made by nndiffseg_attach; {other}.")
    if model.configuration not in attached:
        return attached, model.source
    before, now = Source.from_configuration(attached[model.configuration]), model.source
    if (before.trainer, before.plans) != (now.trainer, now.plans):
        raise UserError(f"The plans in {file} are attached to a model of {before.trainer}; {other}.")
    changed = [fold for fold in now.sha256 if before.sha256.get(fold, now.sha256[fold]) != now.sha256[fold]]
    if resume and changed:
        raise UserError(
            f"The weights in {model.weights(changed[0])} have changed since fold {changed[0]} was attached; leave out --c "
            "to attach it anew."
        )
    return attached, replace(now, sha256=before.sha256 | now.sha256)
