"""The flagship: nnU-Net's planned U-Net with a latent diffusion model of its label on top (DESIGN, section 4)."""

from __future__ import annotations

from typing import Any

import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor, nn

from nndiffseg.methods.latent.build import build_latent_diffusion
from nndiffseg.methods.latent.losses import DiffusionLoss
from nndiffseg.training.trainer import DiffusionTrainer


class nnDiffSegTrainer(DiffusionTrainer):
    """Trains image network, label encoder, denoiser and label decoder together."""

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        return build_latent_diffusion(configuration_manager, num_input_channels, num_output_channels)

    def prepare_network(self, network: Any) -> None:
        network.regions.fill_(self.label_manager.has_regions)

    def _build_loss(self) -> nn.Module:
        deep = super()._build_loss()
        return DiffusionLoss(deep, deep.loss, self.label_manager.has_regions).to(self.device)

    def loss_terms(self, data: Tensor, targets: list[Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        assert self.budget is not None
        self.loss.set_progress(self.budget.progress(self.iteration))
        onehot = self.onehot(targets[0])
        out = self.network(data, onehot, deep_supervision=True, generator=generator)
        return self.loss(out, targets, onehot)
