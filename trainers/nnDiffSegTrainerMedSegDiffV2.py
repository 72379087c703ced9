"""MedSegDiff-V2 (Wu et al., arXiv 2301.11798), as published where a self-configuring 2D and 3D version allows it.

| paper | here |
|---|---|
| condition model, a U-Net on the image | nnU-Net's planned U-Net, ``MedSegDiff.condition_model`` |
| diffusion model, a U-Net on the noisy label | ``DiffusionModel``: the same stages, half the features |
| anchor condition, U-SA | ``nndiffseg.methods.medsegdiff.uncertain_attention`` |
| semantic condition, SS-Former with NBP-filter | ``nndiffseg.methods.medsegdiff.ss_former`` |
| anchor loss, Dice + CE on the condition model | ``anchor`` in the log |
| noise loss | ``denoising`` in the log |
| T = 1000, linear schedule | ``nndiffseg.diffusion.schedules.Linear``, t in {1/T, ..., 1}, evenly spread over a batch |
| DPM-Solver++ of order 2, 20 to 50 steps | ``dpmpp_2m``, 20 steps |
| fusion by STAPLE | ``nndiffseg_predict --fuse staple`` |

The authors never released the code of U-SA and SS-Former, and the paper leaves details open. Departures and choices:

- Any number of labels or regions, one channel each in [-1, 1]; the published code merges all classes. U-SA has one
  attention map per label instead of one, which could not tell structures apart.
- The network predicts v and the loss is the squared error of x0, where the paper predicts the noise. The schedule ends
  in pure noise, from which no x0 follows by way of the noise; and of all three, x0's error weighs the noisy steps most,
  where a mask is decided (arXiv 2504.05977).
- The anchor loss is paid at all time steps, where the paper pays it at every fifth (alpha = 5): the condition model
  does not see t, so that this changes the loss's weight only. And it is nnU-Net's own loss, so CE weighs 1 where the
  paper has 10: this head is the deterministic answer, which must equal nnU-Net's. ``ce_weight`` changes it.
- Both of an SS-Former block's cross-attentions act in Fourier space. Queries and keys are normalised and carry a code
  of their frequency, see :class:`~nndiffseg.methods.medsegdiff.ss_former.SpectralCrossAttention`.
- The Gaussian of U-SA learns its width along each axis; where voxels are anisotropic no one number would do.
- AdamW with the learning rate 1e-3, decaying to zero, and an average of decay 0.999 (paper: 1e-4, constant, 0.9999): the
  published values need hundreds of thousands of iterations.
- Samples are fused by the mean unless STAPLE is asked for, because the mean keeps the probabilities.
"""

from __future__ import annotations

from typing import Any

import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor, nn

from nndiffseg.methods.medsegdiff.network import build_medsegdiff
from nndiffseg.training.trainer import DiffusionTrainer

#: steps of the samples that are drawn after every epoch to watch the training; prediction takes the full number
STEPS_WHILE_TRAINING = 5


class nnDiffSegTrainerMedSegDiffV2(DiffusionTrainer):
    """Trains condition and diffusion model together.

    Attributes:
        uncertain_attention: False for the ablation that adds the anchor to the diffusion encoder's features.
        ss_former: False for the ablation that adds the deepest embeddings.
        ce_weight: weight of the cross-entropy in the anchor loss, relative to nnU-Net's.
        recycling: share of the items that noise the network's own prediction; 0 as published.
    """

    uncertain_attention = True
    ss_former = True
    ce_weight = 1.0
    recycling = 0.0

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        return build_medsegdiff(
            configuration_manager,
            num_input_channels,
            num_output_channels,
            uncertain_attention=cls.uncertain_attention,
            ss_former=cls.ss_former,
        )

    def prepare_network(self, network: Any) -> None:
        network.regions.fill_(self.label_manager.has_regions)

    def _build_loss(self) -> nn.Module:
        deep = super()._build_loss()
        deep.loss.weight_ce *= self.ce_weight
        return deep

    def loss_terms(self, data: Tensor, targets: list[Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        out = self.network(data, self.onehot(targets[0]), deep_supervision=True, recycling=self.recycling, generator=generator)
        return {
            "anchor": self.loss([logits.float() for logits in out.logits], targets),
            "denoising": (out.estimate - out.x0).square().mean(),
        }

    def predict_patch(self, network: Any, data: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        noise = torch.randn(2, len(data), network.heads, *data.shape[2:], generator=generator).to(data)
        x0 = network.sample_patch(data, noise, STEPS_WHILE_TRAINING)
        return network.deterministic(data), network.to_logits(x0)
