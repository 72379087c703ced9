"""A model's description as text for a terminal, and as a model card in Markdown that a person completes.

The card has the headings of Mitchell et al. (Model Cards for Model Reporting, arXiv 1810.03993) in the form that Hugging Face
gives them. It says what the files say; what only a person knows is marked.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from nndiffseg.data.folds import holds_out, member_seed

#: stands where a person has to write
TO_FILL_IN = "[to be filled in by a person]"
NONE = "not recorded"
#: width of the first column of the text, characters
COLUMN = 14


def as_text(description: Mapping[str, Any]) -> str:
    """The description for a terminal.

    Args:
        description: what :func:`nndiffseg.inference.description.describe` returns.
    """
    model, plan, data = (description[key] for key in ("model", "plan", "data"))
    rows = [
        ("model", f"{model['dataset']}, {model['configuration']}"),
        ("", f"trainer {model['trainer']}, plans {model['plans']} by {shown(model['planner'])}"),
        ("", f"method {shown(model['method'])}" + _prefixed("; options ", model["options"])),
        (
            "plan",
            f"patch {cross(plan['patch_size'])}, spacing {cross(plan['spacing'])}, batch size {shown(plan['batch_size'])}",
        ),
        ("", f"{plan['network']}, channels {cross(plan['features_per_stage'], '-')}, {shown(plan['normalization_schemes'])}"),
        ("", latent(plan["latent"])),
        ("", stage(plan)),
        ("data", f"{shown(data['training_cases'])} training cases, {data['file_ending']}; channels {shown(data['channels'])}"),
        ("", "labels " + shown(data["labels"])),
        *(("", f"{shown(key)}: {shown(value)}") for key, value in data["origin"].items()),
        ("parameters", f"{millions(description['parameters']['total'])}; {parts(description['parameters']['parts'])}"),
        ("versions", shown(description["versions"] or None)),
        *(row for name, fold in description["folds"].items() for row in _fold_rows(name, fold)),
        ("all folds", _prefixed("calibration ", description["calibration"])),
    ]
    return "\n".join(f"{first:<{COLUMN}}{text}" for first, text in rows if text)


def _fold_rows(name: str, fold: Mapping[str, Any]) -> list[tuple[str, str]]:
    title = f"fold {name}" if member_seed(name) is None else name
    rows = [(title, checkpoints(fold["checkpoints"]))]
    if validation := fold["validation"]:
        scores = f"Dice {shown(validation['dice_mean'])}" + _prefixed("; ", validation["dice"])
        rows.append(("", f"validation, {shown(validation['cases'])} cases: {scores}"))
    return [*rows, ("", _prefixed("", fold["uncertainty"])), ("", "calibration " + shown(fold["calibration"] or "none"))]


def _prefixed(prefix: str, value: Any) -> str:
    return prefix + shown(value) if value else ""


def shown(value: Any) -> str:
    """A value of the description in one line; what cannot be printed is left out."""
    if isinstance(value, Mapping):
        text = ", ".join(
            f"{shown(k)} ({shown(v)})" if isinstance(v, Mapping) else f"{shown(k)} {shown(v)}" for k, v in value.items()
        )
    elif isinstance(value, (list, tuple)):
        text = ", ".join(shown(v) for v in value)
    elif isinstance(value, float):
        text = f"{value:.0f}" if value.is_integer() else f"{value:#.3g}"
    else:
        text = NONE if value is None else str(value)
    return "".join(c if c.isprintable() else " " for c in text)


def cross(values: Any, between: str = "x") -> str:
    """``40x56x40``."""
    return between.join(shown(v) for v in values) if isinstance(values, (list, tuple)) else shown(values)


def latent(settings: Mapping[str, Any] | None) -> str:
    """What is sampled, in words; empty for a model of stock nnU-Net."""
    if settings is None:
        return ""
    stride, channels = cross(settings["latent_stride"]), shown(settings["latent_channels"])
    return f"planned latent of stride {stride} with {channels} channels, {shown(settings['samples'])} samples"


def stage(plan: Mapping[str, Any]) -> str:
    """Its place in a cascade, in words; empty for a model that stands alone."""
    before, after = plan.get("previous_stage"), plan.get("next_stage")
    if before is None and after is None:
        return ""
    return "stage of a cascade" + (f", after {shown(before)}" if before else "") + (f", before {shown(after)}" if after else "")


def checkpoints(files: Mapping[str, Mapping[str, Any]]) -> str:
    """Names with their epochs and sizes."""
    return ", ".join(f"{shown(n)} ({shown(f['epochs'])} epochs, {f['bytes'] / 1e6:.1f} MB)" for n, f in files.items())


def millions(number: int) -> str:
    """``3.32 M``, or the number itself below ten thousand."""
    return f"{number / 1e6:.2f} M" if number >= 10_000 else str(number)


def parts(numbers: Mapping[str, int]) -> str:
    """Parameters of each part of the network."""
    return ", ".join(f"{shown(name)} {millions(number)}" for name, number in numbers.items())


def model_card(description: Mapping[str, Any]) -> str:
    """A model card in Markdown, with a head that Hugging Face reads.

    Args:
        description: what :func:`nndiffseg.inference.description.describe` returns.
    """
    environment = Environment(
        loader=PackageLoader("nndiffseg.report", "."), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "md": lambda value: escaped(shown(value)),
        "cross": lambda value: escaped(cross(value)),
        "checkpoints": lambda value: escaped(checkpoints(value)),
        "millions": millions,
        "parts": lambda value: escaped(parts(value)),
        "sh": shlex.quote,
        "latent": lambda value: escaped(latent(value)),
        "stage": lambda value: escaped(stage(value)),
    }
    labels = list(dict.fromkeys(n for f in description["folds"].values() for n in (f["validation"] or {}).get("dice", {})))
    return environment.get_template("card.md.j2").render(
        description, todo=TO_FILL_IN, label_names=labels, seen=not all(holds_out(fold) for fold in description["folds"])
    )


def escaped(text: str) -> str:
    """Text that Markdown shows as it stands, also in a table: names in a model folder may be anybody's."""
    return re.sub(r"([\\`*_{}\[\]<>#|~$&!])", r"\\\1", text)
