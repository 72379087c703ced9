"""The losses of the latent-diffusion trainer (DESIGN, section 4)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from nndiffseg.networks.model import TrainingOutput
from nndiffseg.settings import DiffusionSettings
from nndiffseg.training.scores import energy_score, jaccard_score

#: block edges of the energy score of latents, in cells (0 = the whole patch)
LATENT_SCALES = (1, 2, 4, 0)
#: block edges of the energy score of probabilities, in voxels
LABEL_SCALES = (1, 4, 16, 0)


class DiffusionLoss(nn.Module):
    """Sum of the deterministic, reconstruction, latent and label terms.

    Args:
        deterministic: nnU-Net's loss with deep supervision ``(list of logits, list of targets) -> scalar``.
        segmentation: nnU-Net's loss at full resolution ``(logits, target) -> scalar``.
        settings: of the configuration; the objective decides the latent and label terms.
        regions: sigmoid heads (nnU-Net's region-based training) instead of softmax.
    """

    def __init__(self, deterministic: Callable[..., Tensor], segmentation: Callable[..., Tensor],
                 settings: DiffusionSettings, regions: bool):
        super().__init__()
        self.deterministic, self.segmentation = deterministic, segmentation
        self.settings, self.regions = settings, regions
        self.spread_weight = 1.0

    def set_progress(self, progress: float) -> None:
        """Narrow samples first, calibrated ones later: lambda rises from 0.5 to 1 in the first 60 % of a training."""
        self.spread_weight = min(1.0, 0.5 + progress / 1.2)

    def forward(self, out: TrainingOutput, targets: list[Tensor], onehot: Tensor) -> dict[str, Tensor]:
        """``targets`` as nnU-Net's loader gives them, ``onehot`` ``(B, heads, *patch)``; keys are the terms' names."""
        terms = {
            "deterministic": self.deterministic([x.float() for x in out.logits], targets),
            "reconstruction": self.segmentation(out.reconstruction.float(), targets[0]),
        }
        if self.settings.objective == "mean":
            terms["latent"] = (out.x0[0] - out.z0).square().mean()
            terms["label"] = self.segmentation(out.samples[0].float(), targets[0])
            return terms
        logits = out.samples.float()
        p = torch.sigmoid(logits) if self.regions else logits.softmax(2)  # (2, B, heads, *patch)
        first = 0 if self.regions else 1
        terms["latent"] = energy_score(out.x0, out.z0, LATENT_SCALES, self.spread_weight)
        # Most voxels are background: relative to the foreground the score does not depend on the patch size.
        foreground = onehot[:, first:].amax(1).mean().clamp_min(0.01)
        terms["label"] = energy_score(p, onehot, LABEL_SCALES, self.spread_weight) / foreground
        terms["jaccard"] = jaccard_score(p[:, :, first:], onehot[:, first:], self.spread_weight)
        return terms
