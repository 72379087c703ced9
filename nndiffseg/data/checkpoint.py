"""Checkpoints that load with ``torch.load(weights_only=True)`` and are never half-written."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nndiffseg.data.archive import check_finite, read_archive
from nndiffseg.data.files import write_atomically
from nndiffseg.data.plan_names import check_plan_names, is_identifier
from nndiffseg.errors import UserError

_SCALAR = np.float64(0).__reduce__()[0]
#: what nnU-Net's own checkpoints hold besides tensors; numpy 1 and 2 name it differently
NUMPY_TYPES: list[Any] = [
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    np.dtype,
    *(type(np.dtype(t)) for t in (np.float64, np.float32, np.int64, np.int32, np.bool_)),
]
#: what a prediction needs of a checkpoint
KEYS = {"network_weights", "nndiffseg_version", "trainer_name", "init_args", "options", "calibration"}


def plain(value: Any) -> Any:
    """Turns numpy scalars and arrays into Python numbers and lists, recursively; tensors stay."""
    if isinstance(value, dict):
        return {plain(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(plain(v) for v in value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value


def save_atomically(checkpoint: dict[str, Any], path: str | Path) -> None:
    """Writes a checkpoint of tensors and plain values; a kill at any moment leaves the old file or the new one."""
    # A stream, not a path: torch writes the path's name into the archive.
    with write_atomically(Path(path)) as temporary, open(temporary, "wb") as file:
        torch.save(plain(checkpoint), file)


def load_checkpoint(path: str | Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Reads a checkpoint without executing code from it.

    Raises:
        UserError: there is no such file, it is damaged or does not fit into memory, it is not a checkpoint of nndiffseg, its
            weights are not finite, or it names a trainer or, in its plans, anything else that cannot be one of nnU-Net's or
            nndiffseg's.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no checkpoint {path}; train the fold first with nndiffseg_train.")
    with torch.serialization.safe_globals(NUMPY_TYPES):  # so that those of nnU-Net get their own sentence
        checkpoint = read_archive(path, device)
    if not isinstance(checkpoint, dict) or "network_weights" not in checkpoint or "nndiffseg_version" not in checkpoint:
        raise UserError(f"The checkpoint {path} was not written by an nndiffseg trainer; choose another with -m or -tr.")
    if missing := sorted(KEYS - checkpoint.keys()):
        raise UserError(
            f"The checkpoint {path} is of nndiffseg {checkpoint['nndiffseg_version']} and lacks {missing[0]}, which version "
            "0.2 needs; train the fold again."
        )
    if not isinstance(checkpoint["network_weights"], dict) or not _are_weights(checkpoint["network_weights"]):
        raise UserError(f"{path} holds no network weights; choose another checkpoint with -chk.")
    _check_names(checkpoint, path)
    check_finite(checkpoint["network_weights"], path)
    return checkpoint


def load_any_checkpoint(path: str | Path, *, tensors: bool = True) -> dict[str, Any]:
    """Reads a checkpoint of nndiffseg or of nnU-Net without executing code from it.

    Args:
        path: of the file.
        tensors: False leaves them on the disk, mapped, where only what stands beside them is wanted.

    Returns:
        At least ``network_weights``, name -> tensor, on the CPU.

    Raises:
        UserError: there is no such file, it is damaged or does not fit into memory, it is no checkpoint of either, or its
            weights are not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no checkpoint {path}; give a checkpoint_final.pth of nndiffseg or nnU-Net.")
    with torch.serialization.safe_globals(NUMPY_TYPES):
        checkpoint: Any = read_archive(path, tensors=tensors)
    weights = checkpoint.get("network_weights") if isinstance(checkpoint, dict) else None
    if not isinstance(weights, dict) or not weights or not _are_weights(weights):
        raise UserError(f"{path} holds no network weights; give a checkpoint_final.pth of nndiffseg or nnU-Net.")
    if tensors:
        check_finite(checkpoint["network_weights"], path)
    return checkpoint


def _are_weights(weights: Mapping[Any, Any]) -> bool:
    return all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in weights.items())


def mirror_axes(checkpoint: Mapping[str, Any], axes: int, path: str | Path) -> tuple[int, ...]:
    """Axes along which a model's prediction may mirror a patch of so many axes.

    Raises:
        UserError: they are none of the patch's.
    """
    allowed = checkpoint.get("inference_allowed_mirroring_axes") or ()
    if not isinstance(allowed, (list, tuple)) or not all(type(a) is int and 0 <= a < axes for a in allowed):
        raise UserError(
            f"The checkpoint {path} asks to mirror axes that its patch does not have; choose another file with -chk."
        )
    return tuple(allowed)


def digest(weights: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of names, types, shapes and values, as hexadecimal digits; the device does not matter."""
    state = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name].detach().cpu().contiguous()
        state.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        state.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def _check_names(checkpoint: dict[str, Any], path: Path) -> None:
    """Nothing that is looked up by its name later may come from a stranger."""
    arguments = checkpoint["init_args"]
    if not is_identifier(checkpoint["trainer_name"]):
        raise UserError(f"The checkpoint {path} names no trainer by which it was written; choose another with -chk.")
    if not isinstance(arguments, dict) or not isinstance(arguments.get("configuration"), str):
        raise UserError(f"The checkpoint {path} does not say for which configuration it was trained; choose another with -chk.")
    if "plans" in arguments:
        check_plan_names(arguments["plans"], f"The plans in the checkpoint {path}")
