"""MedSegDiff-V2 (Wu et al., arXiv 2301.11798), in 2D and 3D and at sizes that come from the plan.

The authors never released the code of U-SA and SS-Former. So published means the paper, the released code of the rest
(KidsWithTokens/MedSegDiff at 60850bf), its framework figure (``frameworkv2.png``), or a second-hand account of the text where
that is all that could be had. Each row is one element of the method. The last column says ``same``, names an option of
``nndiffseg_train --option``, or states a departure and why. ``setting=paper`` sets the
published value of every option marked (paper).

| element | published | here |
|---|---|---|
| setting | one, as published | option ``setting=paper``; by default ``planned``, what this package makes of the method |
| two networks | condition U-Net on the image, diffusion U-Net on the noisy label, at every step (figure; code) | same: ``nndiffseg.methods.medsegdiff.network``; the condition model is nnU-Net's planned U-Net |
| anchor: levels | the two first levels of the diffusion encoder, each from the condition decoder's feature of that level (figure) | option ``anchor_levels=own`` (paper); by default both from the last decoded feature, pooled for the second, because it holds the finest boundary |
| anchor: U-SA | learnt Gaussian, maximum with the unsmoothed, 1x1 convolution, sigmoid, f + a f (second-hand) | option ``uncertain_attention=true``: ``nndiffseg.methods.medsegdiff.uncertain_attention`` |
| anchor: maps | one attention map (second-hand) | option ``anchor_maps=one`` (paper); by default one map per head, because one map could not tell several structures apart |
| anchor: Gaussian | one learnt Gaussian (second-hand) | departure: a width for each axis, because voxels are anisotropic |
| anchor: start | not said | departure: the projection starts at zero, so a = 1/2 for every image, because a random one would hide features at random; with PyTorch's own start the result is alike (Dice of the mean of 4 samples 0.311 against 0.279, 250 iterations, one seed) |
| anchor: released form | decoder features of two resolutions added once to the first layer (code) | option ``uncertain_attention=false`` adds the anchor, at each of the two levels |
| anchor: gradient | detached: the denoising loss does not train the condition U-Net (code) | option ``anchor_detached=true`` (paper); by default not; through the SS-Former's semantic embedding the denoising loss trains the condition encoder in either case, because the released code has no SS-Former to follow |
| SS-Former | cross-attentions between the two deepest embeddings in Fourier space (figure; second-hand) | option ``ss_former=true``: ``nndiffseg.methods.medsegdiff.ss_former`` |
| SS-Former: roles | first the noise asks, the image is key and value; then the result asks, the noise is key and value; the result goes on (figure) | option ``ss_former_roles=figure`` (paper); by default first the image asks the noise, then the noise asks the blend and goes on |
| SS-Former: values | stay in space; the inverse transform acts on the affinity map (figure; second-hand) | option ``ss_former_values=space`` (paper), with a softmax, since no account says how affinities are normalised; by default values are transformed too, affinities are real, and the filter acts on the answer |
| SS-Former: queries and keys | Fourier-transformed in both attentions (figure) | departure: also normalised at each frequency and given a learnt code of it, because an embedding's mean outweighs its other frequencies by orders of magnitude |
| SS-Former: band-pass filter | coordinates through several blocks of convolution, layer norm, scale and shift by time, ReLU; sigmoid in (0, 1); acts on the affinity map (second-hand) | departure: one hidden layer of 32, gains in (0, 2) for each query frequency and head, because it starts as the identity, at gain 1; the published form is not built yet |
| SS-Former: shifts | mixing frequencies is not equivariant to shifts (computed) | same |
| SS-Former: blocks | N, unknown | departure: 2, because N is unknown |
| ablation: plain attention | spatial attention without smoothing in U-SA's place (second-hand) | option ``smoothing=false`` |
| ablation: no band-pass filter | SS-Former without it (second-hand) | option ``band_pass=false`` |
| diffusion U-Net: size | 128 channels x (1, 1, 2, 2, 4, 4), 2 blocks a level (code) | departure: the plan's stages at half nnU-Net's widths, one block a level, because it runs at full resolution in every step of every sample |
| diffusion U-Net: attention | self-attention at 16 pixels (code) | departure: none, because the SS-Former already attends at the deepest level |
| learned sigma | yes, with its variational term (code) | departure: none, because DPM-Solver++ and DDIM do not use it |
| schedule | linear, T = 1000 (code) | departure: ``nndiffseg.diffusion.schedules.Linear`` in continuous time, t in {1/T, ..., 1} spread evenly over a batch, ending in pure noise, because sampling starts there (arXiv 2305.08891) |
| prediction | noise, MSE (code) | departure: v, and the squared error of x0, because no x0 follows from the noise where sampling starts, and x0's error weighs most the noisy steps where a mask is decided (arXiv 2504.05977) |
| anchor loss: rhythm | Dice + CE at every fifth step, alpha = 5 (second-hand); MSE, weight 10 (code) | departure: nnU-Net's loss with deep supervision at every step, because the condition model does not see t, so that the rhythm changes a weight only |
| anchor loss: weight of CE | 10 (second-hand) | option ``ce_weight=10.0`` (paper); by default 1, because this head is the deterministic answer, which must equal nnU-Net's |
| recycling | none | option ``recycling=0.0``, the default |
| label map | 0 and 1, all classes merged (code) | departure: [-1, 1], one channel per label or region, because merged classes segment nothing |
| optimiser | AdamW 1e-4, or 5e-5 (code) | option ``learning_rate=0.0001`` (paper); by default 1e-3, because the published rate needs hundreds of thousands of iterations; ``beta1=0.9``, ``beta2=0.999``, ``weight_decay=0.01``, ``gradient_clipping=true``, warm-up and half cosine to zero as for all trainers |
| weight average | 0.9999 (code) | option ``weight_average=0.9999`` (paper); by default 0.999, because a short training would end inside the published one's warm-up |
| batch and length | batch 8 (64 for "++"), 100,000 steps (code) | departure: the plan's batch, nnU-Net's or the given length, because both belong to the data |
| sampling | DPM-Solver++ 2M, 20 or 50 steps (code) | option ``steps=20`` |
| thresholding | dynamic; the result is standardised (code) | departure: x0 is clamped to [-1, 1], because its range is known |
| ensemble | 5 samples (25 for "++") (code) | departure: the plan's 16, because a calibrated map needs more; ``nndiffseg_predict --samples 5`` gives the published number |
| fusion | "STAPLE": mean, product, mean (code); STAPLE (paper) | departure: the mean, because it keeps the probabilities; ``nndiffseg_predict --fuse staple`` is the real STAPLE (SimpleITK) |
| evaluation | prediction and reference thresholded at 0.1, 0.3, 0.5, 0.7, 0.9 and averaged (code) | departure: Dice of the label map, because a reference has no thresholds |
"""  # noqa: E501

from nndiffseg.methods.medsegdiff.method import MedSegDiffV2
from nndiffseg.training.trainer import DiffusionTrainer


class nnDiffSegTrainerMedSegDiffV2(DiffusionTrainer):
    """Trains :class:`~nndiffseg.methods.medsegdiff.method.MedSegDiffV2`."""

    method_class = MedSegDiffV2
