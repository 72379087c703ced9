"""cDAL: a few-step denoising-diffusion GAN on label maps (Hejrati et al., MICCAI 2024, arXiv 2502.06997).

Published means the paper or the released code (Hejrati/cDAL at c705911), whose three experiments differ: chest X-ray (CXR),
MoNuSeg and hippocampus. Each row is one element of the method. The last column says ``same``, names an option of
``nndiffseg_train --option``, or states a departure and why. ``setting=paper`` sets the published value of every option marked
(paper), MoNuSeg's where the three differ.

| element | published | here |
|---|---|---|
| setting | one, as published | option ``setting=paper``; by default ``planned``, what this package makes of the method |
| label map | in [-1, 1], one channel (CXR, MoNuSeg) or three (hippocampus) (code) | departure: one channel per head in [-1, 1], so two for a binary label, because labels are one-hot and regions sigmoid heads throughout |
| diffusion steps T | 2 (CXR), 4 (MoNuSeg), 4 in training and 2 in sampling (hippocampus) (code) | option ``steps=4``, 2 to 8 |
| schedule | variance-preserving, beta 0.1 to 20, t = 0.999 n / T + 0.001 (code) | departure: ``nndiffseg.diffusion.schedules.Linear`` ends in pure noise, where the published alpha is 0.007, because sampling starts there (arXiv 2305.08891) |
| posterior | q(x_{t-1} given x_t, x0), DDPM eq. 6 and 7 (code) | same: ``nndiffseg.methods.cdal.pairs``, ``nndiffseg.diffusion.ancestral`` |
| generator: blocks | NCSN++, BigGAN up/down blocks, 1 or 2 a level and one more going up, two in the middle; 8.8 M (CXR), 41.7 M (MoNuSeg), 3.7 M (hippocampus) (code) | departure: one block a level both ways and one in the middle, at the plan's widths (1.2 M in docs/methods.md), because the generator runs at full resolution in every step of every sample |
| generator: resampling | FIR filter [1, 3, 3, 1] (code) | departure: strided convolution down, nearest neighbour up, because one code serves 2D, 3D and anisotropic strides; its effect is not measured |
| generator: skips and pyramid | skips over sqrt 2, residual input pyramid (code) | departure: plain concatenated skips, no pyramid, because group norm in the next block takes the scale out; the pyramid is not built |
| generator: attention | at 16 pixels (CXR), 16 and 8 (MoNuSeg), and the middle (code) | departure: at the deepest level only, because attention over more cells is too dear in 3D |
| generator: norm | adaptive group norm, scale and shift from the style (code) | same: ``nndiffseg.methods.cdal.generator.AdaptiveGroupNorm`` |
| mapping of z | pixel norm, 4 dense layers, 256 wide (128 hippocampus) (code) | option ``mapping_layers=4``, ``mapping_width=256`` (paper); by default 3 layers, 64 wide, since the generator is smaller too |
| random vector z | 100 numbers (50 hippocampus), fresh in every step (code) | same: 100, fresh |
| image encoder | 5 (MoNuSeg) or 6 residual blocks at full resolution, added to the first features (code) | option ``image_blocks=5`` (paper); by default 2, because each costs a pass at full resolution |
| time | enters every block (code) | same |
| generator output | tanh of x0 (code) | same |
| discriminator: size | 1x1 stem, 4 or 6 down blocks to 512 channels, 12.5 M or 27.7 M (code) | departure: the plan's stages at half the generator's widths, 0.09 M in docs/methods.md, because it must not cost more than the generator, which is smaller too |
| discriminator: resampling | FIR filter between the convolutions (code) | departure: average pooling at the block's end, because one code serves 2D, 3D and anisotropic strides; its effect is not measured |
| discriminator: mini-batch statistic | standard deviation over the mini-batch (code) | departure: none, because R1 needs an item's gradient to depend on that item alone |
| discriminator: end | 3x3 convolution, sum over the map, linear (code) | departure: sum, linear, because the statistic that the convolution reads is left out |
| discriminator loss | softplus (code) | same: ``nndiffseg.methods.cdal.discriminator.discriminator_loss`` |
| R1 | gamma 1, mean of the squared norm (code) | option ``r1_gamma=1.0`` |
| R1: rhythm | every step (CXR), every 10th (MoNuSeg, hippocampus) (code) | option ``r1_every=10`` (paper); by default every step |
| discriminator's rate | 0.05 (CXR), 0.5 (MoNuSeg), 0.78 (hippocampus) of the generator's (code) | departure: 0.5, because it is MoNuSeg's, in the middle |
| discriminator's optimiser | Adam, betas 0.5 and 0.9 (code) | same |
| attention on the label | channel mean of discriminator features, up-sampled, weights the label before it is noised, in training only (paper; code) | option ``attention=true`` |
| attention: layer | second block (CXR, hippocampus) or third (MoNuSeg) (code) | option ``attention_block=3`` (paper), the last where the plan has fewer; by default the first, because it is finest |
| attention: values | raw: at the official start about 0.01, also negative, so that x_t is almost pure noise (code; computed) | option ``attention_raw=true`` (paper); by default standardised, sigmoid, maximum 1, so that on average 0.53 of the label stays, because it should depend on where the discriminator looks and not on how large its features are |
| x0 loss | MSE on x0 (code) | option ``label_weight=0.0`` (paper); by default nnU-Net's CE + Dice joins with weight 1, because MSE alone weighs a structure by its number of voxels |
| adversarial gradient | none reaches the generator (code) | option ``adversarial_weight=0.0``; a positive weight adds DDGAN's non-saturating term |
| adversarial pair | DDGAN: the discriminator judges the same x_t that it is trained on | same: where ``adversarial_weight`` is positive and attention is on, the term has a pass of its own, on x_t of the label itself |
| deterministic answer | none | option ``deterministic_share=0.0`` (paper); by default a quarter of the items are t = 1 with noise and z zero, because the fused prediction and nnU-Net's own tools need that answer |
| weight average | off (CXR, MoNuSeg), 0.999 (hippocampus) (code) | option ``weight_average=0.0`` (paper); by default 0.999, because it costs nothing and steadies short trainings |
| optimiser | Adam, betas 0.5 and 0.9 (code) | option ``beta1=0.5``, ``beta2=0.9``, ``weight_decay=0.0`` (paper); by default AdamW 0.9, 0.999, 0.01, as for all trainers |
| gradient clipping | none (code) | option ``gradient_clipping=false`` (paper); by default norm 1, as for all trainers |
| learning rate | cosine over 500 epochs, floor 1e-5; constant (hippocampus) (code) | option ``learning_rate=0.001``, with warm-up and half cosine to zero, because a run of any length must end at rest |
| batch and length | batch 3, 4 or 128 slices, 12,000 epochs (code) | departure: the plan's batch, nnU-Net's or the given length, because both belong to the data |
| ensemble | mean of clamped (x + 1) / 2, rounded, of 5 (MoNuSeg, hippocampus) or 30 (CXR) samples (code) | departure: mean of probabilities of ``--samples`` (the plan's 16), because calibrated maps need more than 5; ``nndiffseg_predict --samples 5`` gives the published number |
| augmentation and crops | MoNuSeg 512 resized, crops of 256, flips, affine, colour jitter; CXR 256; hippocampus crops of 32 cubed as slices (code) | departure: nnU-Net's normalisation, patches and augmentation, because every trainer here has the same |
| choice of the checkpoint | the best on the test set (code) | departure: the last, because a test set must not be looked at |
"""  # noqa: E501

from nndiffseg.methods.cdal.method import CDAL
from nndiffseg.training.trainer import DiffusionTrainer


class nnDiffSegTrainerCDAL(DiffusionTrainer):
    """Trains :class:`~nndiffseg.methods.cdal.method.CDAL`."""

    method_class = CDAL
