"""The axes along which a training mirrors its patches, and along which predictions may mirror images for that reason."""

from __future__ import annotations

from collections.abc import Sequence

from nndiffseg.errors import UserError


def asked_axes(axes: Sequence[int] | None, disabled: bool, dimensions: int) -> tuple[int, ...] | None:
    """The axes that a user asked for, sorted; None where nothing was asked.

    Args:
        axes: of the patch, as nnU-Net counts them from 0: in the order of the spacing in the plans.
        disabled: no mirroring at all.
        dimensions: of the patch.

    Raises:
        UserError: both, or an axis that the patch does not have.
    """
    if disabled and axes is not None:
        raise UserError("--disable_mirroring leaves no --mirror_axes; give one of them.")
    if wrong := [axis for axis in axes or () if not 0 <= axis < dimensions]:
        raise UserError(f"--mirror_axes must lie between 0 and {dimensions - 1} for this configuration, not {wrong[0]}.")
    return () if disabled else None if axes is None else tuple(sorted(set(axes)))


def check_mirroring(trainer: str, asked: tuple[int, ...] | None, used: Sequence[int] | None) -> None:
    """Checks that a trainer mirrors along the axes that were asked for, by a flag or by the checkpoint that goes on.

    Raises:
        UserError: its class decides otherwise.
    """
    used = tuple(used or ())
    if asked is not None and asked != used:
        raise UserError(
            f"{trainer} mirrors along {in_words(used)} by a rule of its own, not along {in_words(asked)}; leave out "
            "--mirror_axes and --disable_mirroring, and begin anew without --c where the trainer was changed."
        )


def in_words(axes: Sequence[int]) -> str:
    """Such as ``the axes 0 1``."""
    return f"the axes {' '.join(map(str, axes))}" if axes else "no axis"
