"""The losses of the latent-diffusion method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nndiffseg.methods.latent.network import TrainingOutput
from nndiffseg.methods.latent.scores import KernelDistances, energy_distances, jaccard_distances
from nndiffseg.methods.latent.spread_control import SpreadControl
from nndiffseg.methods.protocol import Batch, Losses, SegmentationLoss
from nndiffseg.nn.annotated import mean_over_ranks
from nndiffseg.nn.heads import Heads
from nndiffseg.nn.ranks import item_mean

#: block edges of the energy score of latents, in cells (0 = the whole patch)
LATENT_SCALES = (1, 2, 4, 0)
#: block edges of the energy score of probabilities, in voxels
LABEL_SCALES = (1, 4, 16, 0)
#: more heads than this are many, see :meth:`LatentLosses._lean`
MANY = 32


class LatentLosses(Losses):
    """Sum of the deterministic, reconstruction, latent and label terms.

    Args:
        segmentation: nnU-Net's loss.
        heads: of the segmentation.
        frozen: the image network is not trained, so that there is no deterministic term.
    """

    def __init__(self, segmentation: SegmentationLoss, heads: Heads, *, frozen: bool = False):
        super().__init__()
        self.segmentation, self.heads, self.frozen = segmentation, heads, frozen
        self.control = nn.ModuleDict(
            {
                "latent": SpreadControl(len(LATENT_SCALES)),
                "label": SpreadControl(len(LABEL_SCALES)),
                "jaccard": SpreadControl(1),
            }
        )

    def forward(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        out = network(
            batch.image,
            batch.onehot,
            deep_supervision=not self.frozen,
            generator=batch.generator("noise"),
            seed=batch.seed("samples"),
        )
        return self.terms(out, batch)

    def terms(self, out: TrainingOutput, batch: Batch) -> dict[str, Tensor]:
        """The terms of one training pass; keys are their names."""
        p, first = self.heads.probabilities(out.samples, 2), self.heads.first_structure  # (2, B, heads, *patch)
        foreground = batch.onehot[:, first:]
        cells, voxels = batch.weights(out.z0.shape[2:]), batch.weights(foreground.shape[2:])
        latent = energy_distances(out.x0, out.z0, LATENT_SCALES, weights=cells)
        label = self._distances(energy_distances, p, batch.onehot, voxels, scales=LABEL_SCALES)
        jaccard = self._distances(jaccard_distances, p[:, :, first:], foreground, voxels)
        # Patches without any annotated voxel tell nothing.
        pure = out.pure if voxels is None else out.pure & voxels.flatten(1).any(1)
        # Most voxels are background: relative to the foreground the score does not depend on the patch size.
        present = foreground.amax(1, keepdim=True)
        share = (item_mean(present.flatten()) if voxels is None else mean_over_ranks(present, voxels)).clamp_min(0.01)
        deep, full = self.segmentation
        head = {} if self.frozen else {"deterministic": self._lean(deep, [x.float() for x in out.logits], batch.targets)}
        return {
            **head,
            "reconstruction": self._lean(full, out.reconstruction.float(), batch.targets[0]),
            "latent": self._score("latent", pure, latent, batch.progress),
            "label": self._score("label", pure, label, batch.progress) / share,
            "jaccard": self._score("jaccard", pure, jaccard, batch.progress),
        }

    def _distances(
        self, distances: Callable[..., KernelDistances], x: Tensor, y: Tensor, weights: Tensor | None, **named: Any
    ) -> KernelDistances:
        """Distances of samples ``(2, B, ...)`` and a label ``(B, ...)``; with many heads item by item."""
        if self.heads.number <= MANY:
            return distances(x, y, weights=weights, **named)
        one = [slice(i, i + 1) for i in range(len(y))]
        each = [self._lean(distances, x[:, i], y[i], weights=None if weights is None else weights[i], **named) for i in one]
        return KernelDistances(*(torch.cat(parts, 1) for parts in zip(*each, strict=True)))

    def _lean(self, term: Callable[..., Any], *values: Any, **named: Any) -> Any:
        """The term; with many heads it is computed again in the backward pass, instead of keeping what it needs there.

        Each term keeps a few numbers for every head of every voxel. With 117 labels all terms together would keep more than
        the networks do; with few it does not matter, and time does.
        """
        if self.heads.number <= MANY:
            return term(*values, **named)
        return checkpoint(term, *values, use_reentrant=False, **named)

    def _score(self, name: str, pure: Tensor, distances: KernelDistances, progress: float) -> Tensor:
        control = self.control[name]
        assert isinstance(control, SpreadControl)
        if self.training:
            # From pure noise alone: that is where all spread comes from, and z_t of other times holds the answer.
            control.update(distances.error[:, pure], distances.spread[:, pure])
        return distances.score(control.weight(progress))
