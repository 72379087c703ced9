"""nnU-Net trainers, one method per file."""

from nndiffseg.trainers.nnDiffSegTrainer import nnDiffSegTrainer

__all__ = ["nnDiffSegTrainer"]
