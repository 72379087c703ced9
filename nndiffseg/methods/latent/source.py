"""The finished nnU-Net that a model is attached to: what the plans record of it, and its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from nndiffseg.data.checkpoint import digest, load_any_checkpoint
from nndiffseg.data.schema import CONFIG, Index, to_json, validated
from nndiffseg.errors import UserError

#: key in a configuration's ``diffusion`` section
KEY = "attached_to"
ATTACH_AGAIN = "make them again with nndiffseg_attach MODEL_FOLDER"


@dataclass(frozen=True, config=CONFIG)
class Source:
    """A trained nnU-Net.

    Attributes:
        trainer: name of its trainer, for the record; nothing looks it up.
        plans: name of its plans.
        mirror_axes: axes along which it was mirrored in training, and may be in prediction.
        sha256: fold -> :func:`~nndiffseg.data.checkpoint.digest` of its weights.
    """

    trainer: str
    plans: str
    mirror_axes: tuple[Index, ...]
    sha256: dict[str, str]

    def to_plan(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return to_json(self)

    @classmethod
    def from_configuration(cls, configuration: Mapping[str, Any]) -> Source:
        """Reads one configuration of the plans.

        Raises:
            UserError: it is attached to nothing, or the record is not valid.
        """
        section = configuration.get("diffusion", {})
        if KEY not in section:
            raise UserError(f"These plans are attached to no finished nnU-Net; {ATTACH_AGAIN}.")
        return validated(cls, section[KEY], "The records of the nnU-Net in the plans", ATTACH_AGAIN)

    def check(self, unet: nn.Module, fold: int | str) -> None:
        """Checks that a network is the recorded one of this fold.

        Raises:
            UserError: the fold is not recorded, or the weights are others.
        """
        if self.sha256.get(str(fold)) != digest(unet.state_dict()):
            raise UserError(
                f"The image network of fold {fold} is not that of {self.trainer} which the plans name; attach this fold anew "
                "with nndiffseg_attach MODEL_FOLDER, without --c."
            )


def read_finished(path: str | Path) -> dict[str, Any]:
    """A checkpoint of nnU-Net, without executing code from it.

    Raises:
        UserError: there is no such file, or it is none.
    """
    checkpoint = load_any_checkpoint(path)
    if "nndiffseg_version" in checkpoint:
        raise UserError(f"{path} is a model of nndiffseg already; give the folder of a model that nnUNetv2_train wrote.")
    return checkpoint


def load_finished(unet: nn.Module, weights: Mapping[str, Any], path: str | Path) -> None:
    """Loads all weights of a finished nnU-Net, segmentation layers too.

    Args:
        unet: nnU-Net's planned network.
        weights: of the checkpoint; they are taken over unchanged.
        path: where they come from, for the message.

    Raises:
        UserError: they are not exactly those of the planned network.
    """
    planned = unet.state_dict()
    for name in sorted(planned.keys() ^ weights.keys(), key=str):
        where = "the plans' network lacks" if name in weights else "it lacks"
        raise UserError(_other_network(path, f"{where} {ascii(name)[:80]}"))
    for name, value in weights.items():
        if not isinstance(value, Tensor) or value.shape != planned[name].shape or value.dtype != planned[name].dtype:
            raise UserError(_other_network(path, f"{name} differs in shape or type"))
    unet.load_state_dict(weights)


def _other_network(path: str | Path, difference: str) -> str:
    return (
        f"The weights in {path} are not those of the network in the plans beside it ({difference}); only models of "
        "trainers that keep nnU-Net's network will do, so train the data with nnUNetTrainer or with nndiffseg_train."
    )
