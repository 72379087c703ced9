"""The diffusion settings of one configuration, as the planner writes them and everything else reads them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from nndiffseg.errors import UserError


@dataclass(frozen=True)
class DiffusionSettings:
    """Frozen; round-trips through ``plans["configurations"][c]["diffusion"]["settings"]``.

    Attributes:
        latent_stage: index of the image network's stage whose features lie on the latent grid (0 = full resolution).
        latent_stride: voxels per latent cell along each axis, the product of the pooling strides up to that stage.
        latent_channels: channels of the whitened latent ``z0``.
        denoiser_channels: channels at the latent grid and at every coarser level of the denoiser.
        denoiser_strides: stride from each denoiser level to the next, one tuple per transition.
        encoder_channels: channels of the label encoder at the strides of stages ``1 .. latent_stage``.
        decoder_channels: channels of the label decoder at stages ``0 .. latent_stage`` (full resolution first).
        noise_scales: correlation lengths, in latent cells, of the auxiliary noise ``xi`` that makes the denoiser a
            sampler of p(z0 | z_t).
        noise_channels: channels of ``xi`` at each scale.
        steps: default number of sampling steps.
        samples: default number of samples per case and fold set.
    """

    latent_stage: int
    latent_stride: tuple[int, ...]
    latent_channels: int
    denoiser_channels: tuple[int, ...]
    denoiser_strides: tuple[tuple[int, ...], ...]
    encoder_channels: tuple[int, ...]
    decoder_channels: tuple[int, ...]
    noise_scales: tuple[int, ...] = (1, 2, 4, 8, 16)
    noise_channels: int = 2
    steps: int = 2
    samples: int = 16

    def __post_init__(self) -> None:
        if len(self.decoder_channels) != self.latent_stage + 1:
            raise UserError("The plans' decoder_channels need one entry per stage from full resolution to the latent.")
        if len(self.encoder_channels) != self.latent_stage:
            raise UserError("The plans' encoder_channels need one entry per stage below full resolution.")
        if len(self.denoiser_strides) != len(self.denoiser_channels) - 1:
            raise UserError("The plans' denoiser_strides need one entry less than denoiser_channels.")

    def to_plan(self) -> dict[str, Any]:
        """A JSON-ready dictionary (tuples become lists in JSON; :meth:`from_plan` turns them back)."""
        return asdict(self)

    @classmethod
    def from_plan(cls, plan: dict[str, Any]) -> DiffusionSettings:
        """Inverse of :meth:`to_plan`.

        Raises:
            UserError: the plan lacks a setting or holds an unknown one.
        """
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(plan) - known):
            raise UserError(f"The plans' diffusion settings hold unknown keys: {', '.join(unknown)}.")
        try:
            return cls(**{key: _tuples(value) for key, value in plan.items()})
        except TypeError as error:
            raise UserError(f"The plans' diffusion settings are incomplete: {error}.") from None

    @classmethod
    def from_configuration(cls, configuration: dict[str, Any]) -> DiffusionSettings:
        """Reads one configuration of a plans file (``configuration_manager.configuration``).

        Raises:
            UserError: the configuration was not planned by an nndiffseg planner.
        """
        if "diffusion" not in configuration:
            raise UserError(
                "These plans hold no diffusion settings; make some with `nndiffseg_plan_and_preprocess -d DATASET`."
            )
        return cls.from_plan(configuration["diffusion"]["settings"])


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, (list, tuple)) else value
