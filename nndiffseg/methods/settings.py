"""Sizes of the latent and of the light networks, as the planner writes them and every method reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from nndiffseg.data.schema import CONFIG, Count, to_json, validated
from nndiffseg.errors import UserError

WHAT = "The plans' diffusion settings"
PLAN_AGAIN = "make them again with nndiffseg_plan_and_preprocess -d DATASET"


@dataclass(frozen=True, config=CONFIG)
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
        steps: sampling steps of the flagship.
        samples: samples per case, over all folds.
    """

    latent_stage: Annotated[int, Field(strict=True, ge=0, le=20)]
    latent_stride: tuple[Count, ...]
    latent_channels: Count
    denoiser_channels: tuple[Count, ...]
    denoiser_strides: tuple[tuple[Count, ...], ...]
    encoder_channels: tuple[Count, ...]
    decoder_channels: tuple[Count, ...]
    noise_scales: Annotated[tuple[Count, ...], Field(max_length=20)] = (1, 2, 4, 8, 16)
    noise_channels: Annotated[int, Field(strict=True, ge=0, le=2**12)] = 2
    steps: Count = 2
    samples: Count = 16

    def __post_init__(self) -> None:
        if len(self.decoder_channels) != self.latent_stage + 1:
            raise ValueError("decoder_channels need one entry per stage from full resolution to the latent")
        if len(self.encoder_channels) != self.latent_stage:
            raise ValueError("encoder_channels need one entry per stage below full resolution")
        if not self.denoiser_channels or len(self.denoiser_channels) > 20:
            raise ValueError("denoiser_channels need from 1 to 20 levels")
        if {len(strides) for strides in self.denoiser_strides} - {len(self.latent_stride)} or len(self.latent_stride) not in (
            2,
            3,
        ):
            raise ValueError("strides need one number for each axis of the patch")
        if len(self.denoiser_strides) != len(self.denoiser_channels) - 1:
            raise ValueError("denoiser_strides need one entry less than denoiser_channels")

    def to_plan(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return to_json(self)

    @classmethod
    def from_plan(cls, plan: Mapping[str, Any]) -> DiffusionSettings:
        """Inverse of :meth:`to_plan`.

        Raises:
            UserError: the plan lacks a setting, holds an unknown one, or one of a wrong type or out of range.
        """
        return validated(cls, plan, WHAT, PLAN_AGAIN)

    @classmethod
    def from_configuration(cls, configuration: Mapping[str, Any]) -> DiffusionSettings:
        """Reads one configuration of a plans file (``configuration_manager.configuration``).

        Raises:
            UserError: the configuration was not planned by an nndiffseg planner, or see :meth:`from_plan`.
        """
        section = configuration.get("diffusion")
        if not isinstance(section, Mapping) or "settings" not in section:
            raise UserError(f"These plans hold no diffusion settings; {PLAN_AGAIN}.")
        return cls.from_plan(section["settings"])
