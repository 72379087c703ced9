"""LDSeg (Zaman et al., arXiv 2407.12952), as published where a self-configuring 2D and 3D version allows it.

| paper | here |
|---|---|
| label encoder, latent standardised | ``nndiffseg.nn.label_encoder``, with ``RunningWhitening`` |
| image encoder, residual blocks with group norm and attention | ``nndiffseg.methods.ldseg.parts.ImageEncoder`` |
| conditional denoiser, two residual blocks a level, both latents concatenated | ``nndiffseg.nn.denoiser`` |
| label decoder without skips | ``nndiffseg.methods.ldseg.parts.LabelDecoder`` |
| cosine schedule (s = 0.008), T = 1000 | ``nndiffseg.methods.ldseg.network.OffsetCosine``, t in {1/T, ..., 1} |
| CE + 2 Dice on the decoded denoised latent | ``segmentation`` in the log |
| MSE on the noise | ``noise`` in the log |
| DDIM, eta 0, 15 evenly spaced steps | ``ddim``, 15 steps, the defaults of ``nndiffseg_predict`` |
| ablation of label and image encoder (table V) | ``learned_label_encoder``, ``learned_image_encoder`` |

Departures, and why:

- Depth and channels of the latent come from the plan. LDSeg's own latent, one channel on a grid 16-fold coarser, is
  made by ``nndiffseg_plan_and_preprocess --latent paper``; where a patch is too small for that, the plan's deepest stage
  carries it. Widths follow the plan, at most the published 64.
- One-hot labels of any number of classes, or regions. The published code feeds one integer-valued channel, which puts
  class 3 further from class 1 than class 2.
- Latents are standardised by running statistics: the published code takes those of the whole test set, so that a
  prediction depends on the cases predicted with it, and its affine layer norm freezes the image size.
- The denoiser's raw output is the velocity, from which noise and x0 follow without dividing by alpha, which is 0 at the
  end of the schedule where sampling starts. The loss is still the noise's squared error.
- The decoded latent is that estimate of x0. The published code decodes ``z_t - predicted noise``, which is alpha x0: a
  latent that fades as t grows, unlike any that a sampler ends with.
- The denoiser has no attention, and it and the label decoder have channel norms instead of batch norm: sampling runs on
  the latent grid of a whole volume, of which training sees windows, and must be the same function on both. The image
  encoder keeps its attention, since it always sees one patch.
- The image encoder is the plan's encoder, which goes deeper than a planned latent and comes back up to it: on a shallow
  grid the published one would see a few voxels. In a planned latent's grid the image latent has more than one channel.
- A quarter of the items are denoised from t = 1 with the noise at its mean, zero. That estimate is the deterministic
  answer, which nnU-Net's own tools and the fused prediction need; nothing else would ever show it to the network. It adds
  nothing to the noise's loss, since both the noise and its estimate are 0 there.
- Half of the items noise the network's own prediction from pure noise instead of the true latent (recycling, MELBA
  2023:016). They pay the segmentation loss and, since their z_t holds other noise than was added, the squared error of
  x0 in the noise loss's place (``latent`` in the log). Without it the denoiser trusts what z_t shows and drifts on
  its own samples: ``docs/lab/methods.md`` has the results.
- Dice is nnU-Net's: without the background. The published code counts it in.
- AdamW, warm-up and a half cosine down to zero, no dropout, the average over all weights (paper: Adam, exponential decay,
  dropout 0.2, average of the denoiser alone).
"""

from nndiffseg.methods.ldseg.method import LDSegMethod
from nndiffseg.training.trainer import DiffusionTrainer


class nnDiffSegTrainerLDSeg(DiffusionTrainer):
    """Trains :class:`~nndiffseg.methods.ldseg.method.LDSegMethod`."""

    method_class = LDSegMethod
