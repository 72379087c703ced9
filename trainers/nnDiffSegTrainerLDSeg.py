"""LDSeg (Zaman et al., arXiv 2407.12952; code FahimZaman/LDSeg at e85b4c8), in 2D and 3D and at sizes that come from the plan.

Each row is one element of the method. The last column says ``same``, names an option of ``nndiffseg_train --option``, or states
a departure and why. ``setting=paper`` sets the published value of every option marked (paper).

| element | published | here |
|---|---|---|
| setting | one, as published | option ``setting=paper``; by default ``planned``, what this package makes of the method |
| four networks | label encoder, image encoder, denoiser, label decoder, trained end to end (paper; code) | same: ``nndiffseg.methods.ldseg.network.LDSeg`` |
| end-to-end or two-step | end to end; two-step training (LSegDiff) is the paper's comparison | option ``end_to_end=false`` for two-step training, in one run: encoder and decoder of the label learn from each other alone, the denoiser and the image encoder from the latent; by default end to end, as published |
| decoded latent in training | z_t - predicted noise (method figure; code), that is alpha z0 + (sigma - 1) eps for a perfect prediction | option ``decoded=difference`` (paper); by default the estimate of z0, because z_t - noise holds less of z0 and more noise as t grows, unlike what a sampler ends with |
| latent | 16-fold along each axis, 1 channel (paper; code) | option ``latent=paper`` (paper), which ``nndiffseg_plan_and_preprocess --latent paper`` plans; by default the plan's depth and channels, because 16-fold cannot hold small structures |
| label encoder: blocks | residual blocks 16, 32, 64, 64, 32, one at full resolution (code) | departure: one block at each stage below full resolution, the plan's widths (the published ones with ``latent=paper``), because a block on the one-hot map at full resolution costs most and adds no receptive field to what follows |
| label encoder: down-sampling | max-pooling in 2D, strided convolutions in 3D (code) | departure: strided convolutions in both, because one code serves both |
| label encoder: norm and dropout | batch norm, swish, dropout 0.2 (code) | departure: channel norm, swish, no dropout, because norms over batch or space would make a latent depend on its neighbours and on the image size |
| label input | one integer-valued channel (code) | departure: one-hot in [-1, 1], labels or regions, because one channel puts class 3 further from class 1 than class 2 |
| standardisation of the label latent | affine layer norm over (H, W, C) (code) | departure: ``nndiffseg.nn.whitening.RunningWhitening``, because an affine layer norm freezes the image size, and the code's test-time statistics make a prediction depend on the cases predicted with it |
| standardisation while sampling | z_t is standardised again after every DDIM step, over the whole test array (code) | departure: none, because the sampler's own variance is right by construction and must not depend on other cases |
| image encoder: size | 5 stages 16, 32, 64, 64, 32; 0.29 M parameters in 2D, 0.14 M in 3D (code) | option ``image_encoder=paper`` (paper); by default the plan's encoder, down to its deepest stage and back up to the latent's, as wide as the plan (up to 512 channels; 138.6 M for a 512x512 plan of size M, 470 times as many), because on the shallow grid of a planned latent the published one sees few voxels |
| image encoder: norm | group norm of 4 groups, batch norm to the latent (code) | departure: instance norm and leaky ReLU on the way down, group norm of 4 groups on the way up, running whitening at the end, because the way down is nnU-Net's; with ``image_encoder=paper`` group norm throughout, and still running whitening at the end |
| image encoder: attention | 8 heads, after the last two stages and on the output; none in 3D (code) | departure: 8 heads at the same places, also in 3D where a patch has at most 4096 cells, because there it is affordable |
| image latent | 1 channel (code) | option ``latent=paper``; by default up to 64, because one number in a cell of a shallow grid cannot say what each channel of the latent should be |
| denoiser: levels and blocks | U-Net 16, 32, 64; 2 blocks down, block, attention, block in the middle, 3 up; 1.01 M in 2D, 2.21 M in 3D (code) | departure: 2 blocks down, 2 deepest, 2 up, 0.30 M and 0.79 M, because each level goes back up with one skip; widths as published with ``latent=paper`` |
| denoiser: skips | concatenated after every block (code) | departure: one added skip a level, because it is the flagship's denoiser, shared; its effect is not measured |
| denoiser: attention | two lower levels (code) | departure: none, because sampling runs on the latent grid of a whole volume, of which training sees windows, and must be the same function on both |
| denoiser: norm and time | group norm of 4 groups, additive time embedding (code) | departure: channel norm, and time scales and shifts (FiLM), because group norm over space depends on the extent of the grid |
| denoiser: condition | noisy label latent and image latent concatenated (paper; code) | same: a convolution of a concatenation is a sum, whose image part is computed once |
| label decoder | transposed convolutions, residual blocks 32, 64, 64, 32, no skips, batch norm on the logits, softmax; 0.27 M (code) | departure: ``nndiffseg.methods.ldseg.parts.LabelDecoder``, a block at every stage, the plan's widths up to 64, channel norm, 0.37 M, because a slab must decode as the whole volume does |
| schedule | cosine, s = 0.008, T = 1000 (code) | same: ``nndiffseg.methods.ldseg.network.OffsetCosine``, t in {1/T, ..., 1} |
| times in a batch | one uniform t for each item (code) | departure: spread evenly over the batch, each still uniform, because that takes variance from the loss |
| noise in a batch | one noise map shared by the batch (code) | departure: fresh for each item, because sharing it is an oversight that couples the items |
| parameterisation | the network outputs the noise (paper; code) | departure: it outputs the velocity, from which noise and z0 follow, because at alpha = 0, where sampling starts, no z0 follows from the noise; the loss is still the noise's |
| noise loss | MSE, weight 1 (code) | option ``noise_weight=1.0``: ``noise`` in the log |
| segmentation loss | cross-entropy + 2 Dice on the decoded latent, Dice over the batch with background (code; the paper's weights are lost to us) | option ``dice_weight=2.0``; Dice is nnU-Net's, per class and without background, because background hides small structures |
| deterministic answer | none | option ``deterministic_share=0.0`` (paper); by default a quarter of the items are denoised from t = 1 without noise, because nnU-Net's own tools and the fused prediction need that answer |
| recycling | none | option ``recycling=0.0`` (paper); by default half of the items noise the network's own prediction from pure noise (MELBA 2023:016) and pay the squared error of z0 (``latent_weight=1.0``, ``latent`` in the log) in the noise's place, because otherwise the denoiser drifts on its own samples (``docs/lab/methods.md``) |
| image scaling | min-max to [0, 1] of the whole resized image (code) | departure: nnU-Net's normalisation, resampling and patches, because self-configuration is what this package is for |
| augmentation | random flips in 2D, none in 3D (code) | departure: nnU-Net's, because every trainer here has the same |
| optimiser | Adam 1e-3, exponential decay (paper) or constant (code) | option ``weight_decay=0.0`` (paper) makes AdamW the published Adam, with ``learning_rate=0.001``, ``beta1=0.9``, ``beta2=0.999``; warm-up and half cosine to zero stay, because a run of any length must end at rest |
| gradient clipping | none (code) | option ``gradient_clipping=false`` (paper); by default norm 1, as for all trainers |
| batch and length | batch 4, 2500 epochs (code) | departure: the plan's batch, nnU-Net's or the given length, because both belong to the data |
| weight average | 0.999, of the denoiser (code) | option ``weight_average=0.999``, with warm-up, of all weights, because all of them predict |
| sampling | DDIM, eta 0, 15 of 1000 steps evenly spaced, of which 14 act (code) | option ``steps=15``, from pure noise |
| uncertainty | standard deviation over repeated runs (paper, figure 10) | same: the maps of ``nndiffseg_predict``, and more |
| post-processing | none | same |
| ablation of the encoders | nearest-neighbour down-sampling in place of label or image encoder (paper, table V) | option ``learned_label_encoder=false``, ``learned_image_encoder=false`` |
| validation | none; the test set is watched (code) | departure: nnU-Net's folds, because a test set must not be looked at |
"""  # noqa: E501

from nndiffseg.methods.ldseg.method import LDSegMethod
from nndiffseg.training.trainer import DiffusionTrainer


class nnDiffSegTrainerLDSeg(DiffusionTrainer):
    """Trains :class:`~nndiffseg.methods.ldseg.method.LDSegMethod`."""

    method_class = LDSegMethod
