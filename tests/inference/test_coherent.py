"""Coherent samples over a volume: their marginals are the scaled map near the segmentation and the plain one far from it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nndiffseg.calibration import Calibration
from nndiffseg.calibration.coherence import coherent_labels
from nndiffseg.calibration.coherent_fit import normals_at
from nndiffseg.calibration.voxels import LabelKind, observe
from nndiffseg.inference.coherent import draw_coherent
from nndiffseg.nn.heads import Heads
from nndiffseg.uncertainty.case_labels import near_structures

pytestmark = pytest.mark.fast

SHAPE, SAMPLES, T = (6, 10, 40), 60, 3.0
#: a structure in one corner, a doubtful rim around it, and a background that is one per cent foreground
P = torch.full(SHAPE, 0.01)
P[:4, :4, :4] = 0.3
P[:3, :3, :3] = 0.95


def scaled(p: float) -> float:
    return float(torch.sigmoid(torch.logit(torch.tensor(p)) / T))


def draw(kind: LabelKind, lengths: tuple[float, ...], foreground: torch.Tensor = P) -> tuple[np.ndarray, torch.Tensor]:
    """Samples ``(SAMPLES, *SHAPE)``, and the probabilities they are drawn from ``(heads, *SHAPE)``."""
    p = foreground[None].clone() if kind.heads.regions else torch.stack([1 - foreground, foreground])
    manager = SimpleNamespace(
        has_regions=kind.heads.regions, regions_class_order=kind.order, num_segmentation_heads=kind.heads.number
    )
    labels = np.zeros((SAMPLES, *SHAPE), np.uint8)
    calibration = Calibration(temperature=(T,), length_weights=lengths, coherent_share=1.0)
    options = {"spacing": (1.0, 1.0, 1.0), "finest": 1.0, "seed": 3, "label_manager": manager}
    draw_coherent(p, "case", range(SAMPLES), calibration, labels, **options)
    return labels, p


KINDS = {
    "labels": LabelKind(Heads(2), (), ((0,), (1,)), ((1,),)),
    "regions": LabelKind(Heads(1, True), (1,), ((1,),), ((1,),)),
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_temperature_holds_near_the_segmentation_alone(kind):
    labels, _ = draw(kind, (1.0, 0.0, 0.0, 0.0))
    frequency = (labels == 1).mean(0)
    far = np.zeros(SHAPE, bool)
    far[:, :, 12:] = True
    rim, near = P.numpy() == np.float32(0.3), P.numpy() == np.float32(0.95)
    assert frequency[near].mean() == pytest.approx(scaled(0.95), abs=0.03)
    assert frequency[rim].mean() == pytest.approx(scaled(0.3), abs=0.04)
    assert frequency[far].mean() == pytest.approx(0.01, abs=0.002) and scaled(0.01) > 0.17


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_network_that_is_too_sure_is_doubted_near_its_segmentation(kind):
    sure = torch.where(P > 0.5, 1.0, 0.0)
    labels, _ = draw(kind, (1.0, 0.0, 0.0, 0.0), sure)
    near = near_structures([sure.numpy()])
    varied = (labels != labels[0]).any(0)
    assert varied[near].mean() > 0.1 and not varied[~near].any()


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_prediction_draws_what_the_fits_have_seen(kind):
    lengths = (0.25, 0.25, 0.25, 0.25)
    labels, p = draw(kind, lengths)
    hard = (P.numpy() > 0.5).astype(np.uint8)
    reach = near_structures([hard])
    case = observe("case", p, hard[None], np.ones(SHAPE, bool), reach, kind, spacing=(1.0, 1.0, 1.0), voxel_ml=1.0)
    assert len(case.where) == P.numel() and not case.reach.all()
    normals = normals_at(case, kind.heads.number, 1.0, 3, range(SAMPLES))
    expected = coherent_labels(case.scaled(case.logits, (T,)), normals, lengths, kind)
    assert np.array_equal(labels.reshape(SAMPLES, -1)[:, case.where], expected.numpy())
