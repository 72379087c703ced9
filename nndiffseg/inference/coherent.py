"""Draws the samples of the coherent sampler (:mod:`nndiffseg.diffusion.coherent`) over a whole volume, slab by slab."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor

from nndiffseg.calibration.calibration import Calibration
from nndiffseg.calibration.temperature import FLOOR
from nndiffseg.calibration.voxels import CERTAIN
from nndiffseg.diffusion.coherent import components, mixed, perturbation
from nndiffseg.diffusion.noise.field import NoiseField
from nndiffseg.nn.heads import Heads
from nndiffseg.uncertainty.case_labels import near_structures
from nndiffseg.uncertainty.statistics import label_map

#: values of a slab's noise, so that a large volume needs little memory
SLAB_VALUES = 2**23


def grid_spacing(plans: PlansManager, configuration: ConfigurationManager) -> tuple[float, ...]:
    """Spacing of the preprocessed grid along its three axes, in mm; across slices of a 2D configuration the median image's."""
    planned = [float(s) for s in configuration.spacing]
    return tuple(planned if len(planned) == 3 else [float(plans.original_median_spacing_after_transp[0]), *planned])


def finest_edge(configuration: ConfigurationManager) -> float:
    """Edge of the finest voxels of the plans, in mm: the unit of the correlation lengths."""
    return float(min(configuration.spacing))


def draw_coherent(
    probabilities: Tensor,
    case_id: str,
    samples: Sequence[int],
    calibration: Calibration,
    labels: np.ndarray,
    *,
    spacing: Sequence[float],
    finest: float,
    seed: int,
    label_manager: LabelManager,
) -> None:
    """Draws label maps whose marginals are the probabilities, to within :data:`~nndiffseg.calibration.voxels.CERTAIN`.

    The temperature scales the probabilities within reach of the segmentation alone
    (:meth:`nndiffseg.calibration.voxels.CaseVoxels.scaled`). A sample is a function of seed, case, its index and the
    probabilities; in which order samples are drawn, and by how many processes, changes nothing.

    Args:
        probabilities: before their temperature ``(heads, *grid)``.
        case_id: part of the key of the noise.
        samples: global indices.
        calibration: its temperature and weights of the lengths.
        labels: ``(N, *grid)``, filled at ``samples``.
        spacing, finest: see :func:`~nndiffseg.diffusion.coherent.node_distances`.
        seed: of the noise.
        label_manager: of the dataset.
    """
    heads = Heads(label_manager.num_segmentation_heads, label_manager.has_regions)
    hard = label_map(probabilities, label_manager).numpy()
    for index in samples:
        labels[index] = hard
    reach = torch.from_numpy(near_structures([hard]))
    box = _at_stake(probabilities, reach, heads)
    if box is None:
        return
    shape = [s.stop - s.start for s in box]
    which = [i for i, w in enumerate(calibration.length_weights) if w > 0]
    used = [calibration.length_weights[i] for i in which]
    temperature = torch.tensor(calibration.temperature).view(-1, 1, 1, 1)
    rows = max(1, SLAB_VALUES // (heads.number * math.prod(shape[1:])))
    for start in range(box[0].start, box[0].stop, rows):
        where = (slice(start, min(start + rows, box[0].stop)), *box[1:])
        window = (slice(None), *where)
        logits = heads.logits(probabilities[window].float().clamp(FLOOR, 1 - FLOOR))
        logits = torch.where(reach[where], logits / temperature, logits)
        for index in samples:
            fields, size, origin = (
                [NoiseField(seed, case_id, index)],
                [s.stop - s.start for s in where],
                [s.start for s in where],
            )
            parts = components(fields, heads.number, size, spacing, finest, which=which, origin=origin)
            scores = logits + perturbation(mixed(parts, used), heads.regions)[0]
            scores = (scores > 0).float() if heads.regions else scores
            labels[index][where] = label_map(scores, label_manager).numpy()


def _at_stake(probabilities: Tensor, reach: Tensor, heads: Heads) -> tuple[slice, ...] | None:
    """The smallest box around all voxels where samples can differ; None without one."""
    p = probabilities
    sure = torch.maximum(p, 1 - p).amin(0) if heads.regions else p.amax(0)
    places = ((sure < CERTAIN) | reach).nonzero()
    if not len(places):
        return None
    low, high = places.amin(0).tolist(), (places.amax(0) + 1).tolist()
    return tuple(slice(a, b) for a, b in zip(low, high, strict=True))
