"""The flagship: nnU-Net's planned U-Net with a latent diffusion model of its label on top"""

from nndiffseg.methods.latent.method import LatentDiffusion
from nndiffseg.training.trainer import DiffusionTrainer


class nnDiffSegTrainer(DiffusionTrainer):
    """Trains :class:`~nndiffseg.methods.latent.method.LatentDiffusion`."""

    method_class = LatentDiffusion
