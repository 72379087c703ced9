"""cDAL: a few-step denoising-diffusion GAN on label maps (Hejrati et al., MICCAI 2024, arXiv 2502.06997).

Part of the method -> where it is
    label map as one channel per head in [-1, 1], T steps (section 2) -> the option ``steps``; x0 = 2 onehot - 1
    variance-preserving schedule, beta 0.1 to 20 -> :class:`nndiffseg.diffusion.schedules.Linear`
    generator p(x0 | x_t, image, z), latent embedding z -> :class:`nndiffseg.methods.cdal.generator.CDALGenerator`
    posterior q(x_{t-1} | x_t, x0) (DDPM, arXiv 2006.11239, eq. 6 and 7) -> :mod:`nndiffseg.methods.cdal.pairs` in training,
        :func:`nndiffseg.diffusion.ancestral.sample_ancestral` in prediction
    discriminator D(x_{t-1}, x_t, t), softplus loss, R1 (DDGAN, arXiv 2112.07804)
        -> :mod:`nndiffseg.methods.cdal.discriminator`
    attention from the discriminator's features, training only -> ``Discriminator.attention``, ``CDALLosses``

Departures, and why
    - ``adversarial_weight`` is 0. In the released code no adversarial gradient reaches the generator either; the
      discriminator then acts through the attention alone. A positive weight adds DDGAN's non-saturating term. With 0.1
      it does not help in a short training (hippocampus slices, 400 iterations, one seed: Dice of the mean of samples 0.737
      without and 0.729 with it, spread 0.144 and 0.140; ``benchmarks.component_ablation --methods cDAL``).
    - CE + Dice (nnU-Net's loss) on x0 joins the squared error, which alone weighs a structure by its number of voxels.
    - A quarter of the items train the deterministic answer: t = 1 with noise and z zero. Nothing else would ever show
      the generator these inputs, and the fused prediction and nnU-Net's own tools rely on them.
    - ``attention = False`` switches the attention off; the same trial cannot tell the two apart (deterministic 0.743 with,
      0.735 without; mean of samples 0.722 and 0.730).
    - The attention is standardised, squashed and scaled to a maximum of 1, so that it depends on where the
      discriminator looks and not on how large its features are.
    - t = 1 is pure noise (zero terminal SNR, arXiv 2305.08891), where sampling starts; cDAL's alpha(1) is 0.007.
    - Sizes come from the plan, also in 3D; multi-class labels are one-hot, regions sigmoid heads.
    - AdamW with warm-up and decay and averaged weights, as for every trainer here.
"""

from nndiffseg.methods.cdal.method import CDAL
from nndiffseg.training.trainer import DiffusionTrainer


class nnDiffSegTrainerCDAL(DiffusionTrainer):
    """Trains :class:`~nndiffseg.methods.cdal.method.CDAL`."""

    method_class = CDAL
