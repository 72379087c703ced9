"""The flagship's samples on a finished nnU-Net, whose network is frozen: what ``nndiffseg_attach`` trains"""

from nndiffseg.methods.latent.method import AttachedLatentDiffusion
from nndiffseg.training.attached import AttachedTrainer


class nnDiffSegTrainerAttached(AttachedTrainer):
    """Trains :class:`~nndiffseg.methods.latent.method.AttachedLatentDiffusion`."""

    method_class = AttachedLatentDiffusion
