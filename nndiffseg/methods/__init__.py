"""Methods, one a folder, behind one protocol (:mod:`nndiffseg.methods.protocol`)."""

from nndiffseg.methods.cdal.method import CDAL
from nndiffseg.methods.latent.method import LatentDiffusion
from nndiffseg.methods.ldseg.method import LDSegMethod
from nndiffseg.methods.medsegdiff.method import MedSegDiffV2
from nndiffseg.methods.protocol import Method

#: name of a trainer -> the method that it trains; the planner fits each to the memory that there is
METHODS: dict[str, type[Method]] = {
    "nnDiffSegTrainer": LatentDiffusion,
    "nnDiffSegTrainerLDSeg": LDSegMethod,
    "nnDiffSegTrainerCDAL": CDAL,
    "nnDiffSegTrainerMedSegDiffV2": MedSegDiffV2,
}
