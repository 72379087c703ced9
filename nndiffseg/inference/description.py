"""What a model folder says about a model, of nndiffseg or stock nnU-Net: nothing that does not stand in its files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor

from nndiffseg.calibration.calibration import FILE as CALIBRATION
from nndiffseg.calibration.calibration import Calibration
from nndiffseg.data.checkpoint import load_any_checkpoint
from nndiffseg.data.dataset_json import channel_names
from nndiffseg.data.files import read_json
from nndiffseg.data.folds import fold_files
from nndiffseg.data.model_json import ModelNames, read_model_json
from nndiffseg.errors import UserError

Json = dict[str, Any]
#: keys of dataset.json that tell where the data come from; nnU-Net asks for none of them
ORIGIN = ("name", "description", "reference", "licence", "license", "release", "citation")
#: of a configuration's ``diffusion.settings``
LATENT = ("latent_stage", "latent_stride", "latent_channels", "steps", "samples")


def describe(folder: Path) -> Json:
    """All of it, JSON-ready; what is not recorded is None or left out.

    Args:
        folder: of the model, above ``fold_0``.

    Returns:
        ``model`` (names, method, options), ``plan``, ``data``, ``parameters`` (see :func:`count_parameters`), ``folds``
        (checkpoints, validation, calibration), ``calibration`` (pooled over the folds) and ``versions``.

    Raises:
        UserError: it is no model folder, holds no checkpoint, or a file is damaged or names what no planner writes.
    """
    plans, dataset_json = read_model_json(folder)
    folds: dict[str, Json] = {}
    first: Json = {}
    versions: Json = {}
    for name, file in fold_files(folder, "checkpoint_*.pth"):
        content = load_any_checkpoint(file)
        model = _model(content, plans, file)
        if not first:
            first = {"model": model, "parameters": count_parameters(content["network_weights"])}
        if model != first["model"]:
            raise UserError(f"{file} is of another model than those before it; the model folder is mixed up.")
        if name not in folds:
            folds[name] = {"checkpoints": {}, **_fold(file.parent, dataset_json)}
            versions |= _versions(file.parent)
        folds[name]["checkpoints"][file.name] = {"epochs": _number(content, "current_epoch"), "bytes": file.stat().st_size}
        versions |= _texts(nndiffseg=content.get("nndiffseg_version"))
    if not first:
        raise UserError(f"{folder} holds no checkpoint yet; train it first.")
    return {
        "model": first["model"],
        "plan": _plan(plans, first["model"]["configuration"]),
        "data": _data(dataset_json),
        "parameters": first["parameters"],
        "folds": folds,
        "calibration": _calibration(folder),
        "versions": versions,
    }


def _model(checkpoint: Mapping[str, Any], plans: Mapping[str, Any], file: Path) -> Json:
    names = ModelNames.of(checkpoint, plans, file)
    return {
        "dataset": names.dataset,
        "trainer": names.trainer,
        "plans": names.plans,
        "configuration": names.configuration,
        "planner": plans.get("experiment_planner_used"),
        "method": checkpoint.get("method"),
        "options": checkpoint.get("options"),
    }


def count_parameters(weights: Mapping[str, Tensor]) -> Json:
    """Numbers in a checkpoint's weights, in all and of each part of the network; those under two names count once.

    Running statistics count as well: a checkpoint does not tell them apart.

    Returns:
        ``total``, and ``parts``: the first word of the weights' names -> number.
    """
    parts: dict[str, int] = {}
    seen = set()
    for name, tensor in weights.items():
        # nnU-Net's networks name many layers twice; in a checkpoint both names lead to the same memory.
        place = (tensor.data_ptr(), tensor.shape)
        if place not in seen:
            seen.add(place)
            part = name.split(".")[0]
            parts[part] = parts.get(part, 0) + tensor.numel()
    return {"total": sum(parts.values()), "parts": parts}


def _plan(plans: Json, configuration: str) -> Json:
    section = PlansManager(plans).get_configuration(configuration).configuration
    architecture = _mapping(section.get("architecture"))
    settings = _mapping(_mapping(section.get("diffusion")).get("settings"))
    return {
        **{key: section.get(key) for key in ("patch_size", "spacing", "batch_size", "normalization_schemes")},
        "network": str(architecture.get("network_class_name", section.get("UNet_class_name"))).split(".")[-1],
        "features_per_stage": _mapping(architecture.get("arch_kwargs")).get("features_per_stage"),
        "latent": {key: settings.get(key) for key in LATENT} if settings else None,
        **{key: section[key] for key in ("previous_stage", "next_stage") if key in section},
    }


def _data(dataset_json: Json) -> Json:
    try:
        channels = channel_names(dataset_json)
    except (KeyError, ValueError, TypeError, AttributeError):
        raise UserError("dataset.json does not name the channels by their numbers; copy the model folder again.") from None
    return {
        "channels": channels,
        "labels": dataset_json["labels"],
        "training_cases": dataset_json.get("numTraining"),
        "file_ending": dataset_json["file_ending"],
        "origin": {key: dataset_json[key] for key in ORIGIN if isinstance(dataset_json.get(key), str)},
    }


def _fold(folder: Path, dataset_json: Json) -> Json:
    return {
        "validation": _validation(folder / "validation" / "summary.json", dataset_json["labels"]),
        "uncertainty": _uncertainty(folder / "validation" / "uncertainty.json"),
        "calibration": _calibration(folder),
    }


def _validation(file: Path, labels: Json) -> Json | None:
    """nnU-Net's summary: number of cases, mean Dice and that of each label or region."""
    if not file.is_file():
        return None
    summary = _mapping(read_json(file))
    names = {str(tuple(v) if isinstance(v, list) else v): name for name, v in labels.items()}
    cases = summary.get("metric_per_case")
    return {
        "cases": len(cases) if isinstance(cases, list) else None,
        "dice_mean": _number(summary.get("foreground_mean"), "Dice"),
        "dice": {names.get(key, key): _number(v, "Dice") for key, v in _mapping(summary.get("mean")).items()},
    }


def _uncertainty(file: Path) -> Json | None:
    """The figures of nndiffseg's validation that are single numbers."""
    if not file.is_file():
        return None
    content = _mapping(read_json(file))
    figures = {key: value for key in content if (value := _number(content, key)) is not None}
    coverage = {name: _number(v, "coverage_90") for name, v in _mapping(content.get("volumes")).items()}
    return figures | {"coverage_90": coverage}


def _mapping(value: Any) -> Json:
    """Other people's JSON may hold anything anywhere."""
    return value if isinstance(value, dict) else {}


def _number(values: Any, key: str) -> float | int | None:
    value = _mapping(values).get(key)
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) else None


def _texts(**values: Any) -> dict[str, str]:
    return {key: value for key, value in values.items() if isinstance(value, str)}


def _calibration(folder: Path) -> Json | None:
    file = folder / CALIBRATION
    return Calibration.from_json(read_json(file)).to_json() if file.is_file() else None


def _versions(fold: Path) -> Json:
    """Where a training or a validation recorded them: nnU-Net's debug.json, and the JSON of a predicted case."""
    found: Json = {}
    if (debug := fold / "debug.json").is_file():
        found |= _texts(torch=_mapping(read_json(debug)).get("torch_version"))
    if case := next(iter(sorted((fold / "validation" / "uncertainty").glob("*.json"))), None):
        versions = _mapping(_mapping(_mapping(read_json(case)).get("settings")).get("versions"))
        found |= _texts(torch=versions.get("torch"), nnunetv2=versions.get("nnunetv2"))
    return found
