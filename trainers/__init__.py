"""nnU-Net trainers, one method per file."""

from nndiffseg.trainers.nnDiffSegTrainer import nnDiffSegTrainer
from nndiffseg.trainers.nnDiffSegTrainerAttached import nnDiffSegTrainerAttached
from nndiffseg.trainers.nnDiffSegTrainerCDAL import nnDiffSegTrainerCDAL
from nndiffseg.trainers.nnDiffSegTrainerLDSeg import nnDiffSegTrainerLDSeg
from nndiffseg.trainers.nnDiffSegTrainerMedSegDiffV2 import nnDiffSegTrainerMedSegDiffV2

__all__ = [
    "nnDiffSegTrainer",
    "nnDiffSegTrainerAttached",
    "nnDiffSegTrainerCDAL",
    "nnDiffSegTrainerLDSeg",
    "nnDiffSegTrainerMedSegDiffV2",
]
