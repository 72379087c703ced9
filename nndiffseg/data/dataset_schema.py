"""The form of nnU-Net's ``dataset.json`` and the bounds of its numbers, checked once where it enters."""

from __future__ import annotations

from typing import Annotated, Any

from nnunetv2.utilities.label_handling.label_handling import LabelManager
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nndiffseg.data.dataset_json import channel_names
from nndiffseg.data.names import check_file_ending
from nndiffseg.data.plan_names import check_reader
from nndiffseg.errors import UserError

#: most channels of an image, and most structures of a label
MOST = 1024

Label = Annotated[int, Field(strict=True, ge=0, le=65535)]
Region = Annotated[list[Label], Field(min_length=1, max_length=MOST)]
Text = Annotated[str, Field(max_length=1000)]
File = Annotated[str, Field(min_length=1, max_length=4096)]
Channels = Annotated[dict[str, Text], Field(min_length=1, max_length=MOST)]


class ListedCase(BaseModel):
    """A training case that ``dataset`` lists."""

    images: Annotated[list[File], Field(min_length=1, max_length=MOST)]
    label: File


class DatasetJson(BaseModel):
    """The keys that are read; others are left alone."""

    model_config = ConfigDict(extra="allow")

    labels: Annotated[dict[Text, Label | Region], Field(min_length=1, max_length=MOST)]
    regions_class_order: Annotated[list[Label], Field(max_length=MOST)] | None = None
    channel_names: Channels | None = None
    modality: Channels | None = None
    numTraining: Annotated[int, Field(strict=True, ge=0, le=10**8)] | None = None
    dataset: dict[Text, ListedCase] | None = None


def _check_ignore(labels: dict[str, Any], where: str) -> None:
    """Raises a UserError unless the ignore label, where there is one, is a number above all others, as nnU-Net wants it."""
    if "ignore" not in labels:
        return
    others = [v for name, value in labels.items() if name != "ignore" for v in (value if isinstance(value, list) else [value])]
    if labels["ignore"] != (highest := max(others, default=0) + 1):
        raise UserError(
            f"{where} has the ignore label {str(labels['ignore'])[:40]}, which must be the highest number, {highest}; "
            "number it so in the label files too."
        )


def check_dataset_json(content: Any, where: str, remedy: str = "correct it", *, channels: bool = True) -> dict[str, Any]:
    """Checks form and numbers of a ``dataset.json``; the readers of each command check the rest of what they need.

    Args:
        content: foreign, so anything at all.
        where: what it is or where it stands, the start of the message.
        remedy: what to do, the end of the message.
        channels: it must name the channels of images.

    Returns:
        The content.

    Raises:
        UserError: it is no object, labels or channels are not as nnU-Net writes them, a number is out of range, or it asks for
            an unknown reader or file ending.
    """
    if not isinstance(content, dict) or "labels" not in content:
        raise UserError(f"{where} must hold a JSON object that names the labels; {remedy}.")
    try:
        known = DatasetJson.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ascii(".".join(str(part) for part in first["loc"] if part not in ("constrained-int", "constrained-list")))
        reason = first["msg"][:1].lower() + first["msg"][1:]
        raise UserError(f"{where} has an invalid {place[1:81].rstrip(chr(39))} ({reason}); {remedy}.") from None
    _check_ignore(content["labels"], where)
    if channels or known.channel_names or known.modality:
        channel_names(content, where)
    try:
        manager = LabelManager(content["labels"], content.get("regions_class_order"))
        values, heads = [int(v) for v in manager.all_labels], int(manager.num_segmentation_heads)
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        raise UserError(f"{where} has invalid labels: {' '.join(str(error).split()) or 'see the format'}; {remedy}.") from None
    if values != list(range(len(values))) or len(values) < 2 or heads < 1:
        raise UserError(f"{where} has the labels {str(values)[:80]}; they must be 0 (background), 1, 2, ... without gaps.")
    check_file_ending(content.get("file_ending"), where)
    check_reader(content, where)
    return content
