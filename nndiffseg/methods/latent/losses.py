"""The losses of the latent-diffusion method."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from nndiffseg.methods.latent.network import TrainingOutput
from nndiffseg.methods.latent.scores import KernelDistances, energy_distances, jaccard_distances
from nndiffseg.methods.latent.spread_control import SpreadControl

#: block edges of the energy score of latents, in cells (0 = the whole patch)
LATENT_SCALES = (1, 2, 4, 0)
#: block edges of the energy score of probabilities, in voxels
LABEL_SCALES = (1, 4, 16, 0)


class DiffusionLoss(nn.Module):
    """Sum of the deterministic, reconstruction, latent and label terms.

    Args:
        deterministic: nnU-Net's loss with deep supervision ``(list of logits, list of targets) -> scalar``.
        segmentation: nnU-Net's loss at full resolution ``(logits, target) -> scalar``.
        regions: sigmoid heads (nnU-Net's region-based training) instead of softmax.
    """

    def __init__(
        self,
        deterministic: Callable[..., Tensor],
        segmentation: Callable[..., Tensor],
        regions: bool,
    ):
        super().__init__()
        self.deterministic, self.segmentation = deterministic, segmentation
        self.regions = regions
        self.progress = 1.0
        self.control = nn.ModuleDict(
            {
                "latent": SpreadControl(len(LATENT_SCALES)),
                "label": SpreadControl(len(LABEL_SCALES)),
                "jaccard": SpreadControl(1),
            }
        )

    def set_progress(self, progress: float) -> None:
        """Says which share of the training is done; see :mod:`nndiffseg.methods.latent.spread_control`."""
        self.progress = progress

    def forward(self, out: TrainingOutput, targets: list[Tensor], onehot: Tensor) -> dict[str, Tensor]:
        """``targets`` as nnU-Net's loader gives them, ``onehot`` ``(B, heads, *patch)``; keys are the terms' names."""
        terms = {
            "deterministic": self.deterministic([x.float() for x in out.logits], targets),
            "reconstruction": self.segmentation(out.reconstruction.float(), targets[0]),
        }
        logits = out.samples.float()
        p = torch.sigmoid(logits) if self.regions else logits.softmax(2)  # (2, B, heads, *patch)
        first = 0 if self.regions else 1
        terms["latent"] = self._score("latent", out.pure, energy_distances(out.x0, out.z0, LATENT_SCALES))
        # Most voxels are background: relative to the foreground the score does not depend on the patch size.
        foreground = onehot[:, first:].amax(1).mean().clamp_min(0.01)
        terms["label"] = self._score("label", out.pure, energy_distances(p, onehot, LABEL_SCALES)) / foreground
        terms["jaccard"] = self._score("jaccard", out.pure, jaccard_distances(p[:, :, first:], onehot[:, first:]))
        return terms

    def _score(self, name: str, pure: Tensor, distances: KernelDistances) -> Tensor:
        control = self.control[name]
        assert isinstance(control, SpreadControl)
        if self.training:
            # From pure noise alone: that is where all spread comes from, and z_t of other times holds the answer.
            control.update(distances.error[:, pure], distances.spread[:, pure])
        return distances.score(control.weight(self.progress))
