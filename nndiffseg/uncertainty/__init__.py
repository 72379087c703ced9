"""Derived from samples: uncertainty maps, volumes with error bars, agreement and calibration."""

from nndiffseg.uncertainty.agreement import (
    EnergyDistance,
    PairwiseOverlap,
    expected_dice,
    generalised_energy_distance,
    matched_iou,
    mean_pairwise_dice,
    spread,
)
from nndiffseg.uncertainty.maps import Decomposition, entropy
from nndiffseg.uncertainty.reliability import (
    ReliabilityAccumulator,
    region_of_interest,
)
from nndiffseg.uncertainty.volumes import volume_statistics

__all__ = [
    "Decomposition",
    "EnergyDistance",
    "PairwiseOverlap",
    "ReliabilityAccumulator",
    "entropy",
    "expected_dice",
    "generalised_energy_distance",
    "matched_iou",
    "mean_pairwise_dice",
    "region_of_interest",
    "spread",
    "volume_statistics",
]
