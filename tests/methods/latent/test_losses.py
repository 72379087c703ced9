"""The losses on hand-made training outputs, against the definitions of their terms written in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from nndiffseg.methods.latent.losses import LABEL_SCALES, LATENT_SCALES, LatentLosses
from nndiffseg.methods.latent.network import TrainingOutput
from nndiffseg.methods.latent.spread_control import RISE
from nndiffseg.methods.protocol import Batch, SegmentationLoss
from nndiffseg.nn.heads import Heads

ITEMS, HEADS, PATCH, LATENT, GRID = 4, 3, 16, 2, 4
PURE = (True, False, True, False)
#: voxels of structures in each item, of 256
LABELS = (20, 60, 0, 120)

regions_of = pytest.mark.parametrize("regions", [False, True], ids=["labels", "regions"])


# ---- helpers: all that knows how losses are built and called --------------------------------------------------------


def make(regions: bool = False) -> LatentLosses:
    """With a segmentation loss that can be told apart from everything else."""

    def deep(logits: list[Tensor], targets: list[Tensor]) -> Tensor:
        assert all(x.dtype == torch.float32 for x in logits)
        return torch.stack([(x - y).mean() for x, y in zip(logits, targets, strict=True)]).sum()

    def full(logits: Tensor, target: Tensor) -> Tensor:
        assert logits.dtype == torch.float32
        return 10 * (logits - target).mean()

    return LatentLosses(SegmentationLoss(deep, full), Heads(HEADS, regions)).eval()


def terms_of(losses: LatentLosses, out: TrainingOutput, onehot: Tensor, progress: float = 1.0) -> dict[str, float]:
    targets = [onehot[:, :1], onehot[:, :1, ::2, ::2]]
    batch = Batch(torch.zeros(ITEMS, 1, PATCH, PATCH), targets, onehot, progress, (0,))
    return {name: float(term) for name, term in losses.terms(out, batch).items()}


def running_means(losses: LatentLosses, name: str) -> tuple[list[float], list[float]]:
    """Error and spread that the control of a score has seen, for each scale."""
    control = losses.control[name]
    return control.error.tolist(), control.spread.tolist()


# ---- hand-made outputs -------------------------------------------------------------------------------------------------


def label(regions: bool = False, voxels: tuple[int, ...] = LABELS) -> Tensor:
    """One-hot ``(B, heads, PATCH, PATCH)``; as regions, each one contains the next."""
    kind = torch.zeros(ITEMS, PATCH * PATCH, dtype=torch.long)
    for item, n in enumerate(voxels):
        kind[item, :n] = 1
        kind[item, : n // 2] = 2
    onehot = [kind >= k for k in (1, 2, 2)] if regions else [kind == k for k in range(HEADS)]
    return torch.stack(onehot, 1).unflatten(2, (PATCH, PATCH)).float()


def output(seed: int = 0, pure: tuple[bool, ...] = PURE) -> TrainingOutput:
    g = torch.Generator().manual_seed(seed)
    randn = lambda *shape: torch.randn(*shape, generator=g)  # noqa: E731
    return TrainingOutput(
        logits=[randn(ITEMS, HEADS, n, n) for n in (PATCH, PATCH // 2)],
        reconstruction=randn(ITEMS, HEADS, PATCH, PATCH),
        z0=randn(ITEMS, LATENT, GRID, GRID),
        prior=randn(ITEMS, LATENT, GRID, GRID),
        x0=randn(2, ITEMS, LATENT, GRID, GRID),
        samples=randn(2, ITEMS, HEADS, PATCH, PATCH),
        pure=torch.tensor(pure),
    )


# ---- definitions in numpy ------------------------------------------------------------------------------------------------


def energy(x, y, scale: int) -> np.ndarray:
    """Euclidean distance of the channel vectors of block means, mean over blocks ``(B,)``."""
    size = x.shape[-1]
    edge = scale or size
    blocks = (x - y).reshape(*x.shape[:2], size // edge, edge, size // edge, edge).mean((3, 5))
    return np.sqrt((blocks**2).sum(1)).mean((1, 2))


def jaccard(x, y) -> np.ndarray:
    """1 - sum(min) / sum(max) with one voxel added to both, mean over structures ``(B,)``."""
    low, high = np.minimum(x, y).sum((2, 3)), np.maximum(x, y).sum((2, 3))
    return (1 - (low + 1) / (high + 1)).mean(1)


def error_and_spread(distance, x, y) -> tuple[np.ndarray, np.ndarray]:
    return (distance(x[0], y) + distance(x[1], y)) / 2, distance(x[0], x[1])


def probabilities(out: TrainingOutput, regions: bool) -> np.ndarray:
    logits = out.samples.double().numpy()
    if regions:
        return 1 / (1 + np.exp(-logits))
    e = np.exp(logits)
    return e / e.sum(2, keepdims=True)


def distances(out: TrainingOutput, onehot: Tensor, regions: bool = False) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """Error and spread ``(B,)`` of every scale of every score."""
    p, y = probabilities(out, regions), onehot.double().numpy()
    x0, z0, first = out.x0.double().numpy(), out.z0.double().numpy(), 0 if regions else 1
    return {
        "latent": [error_and_spread(lambda a, b, s=s: energy(a, b, s), x0, z0) for s in LATENT_SCALES],
        "label": [error_and_spread(lambda a, b, s=s: energy(a, b, s), p, y) for s in LABEL_SCALES],
        "jaccard": [error_and_spread(jaccard, p[:, :, first:], y[:, first:])],
    }


def score(of_scales: list[tuple[np.ndarray, np.ndarray]], weights: list[float] | None = None) -> float:
    """``E d(X, y) - weight / 2 E d(X, X')``, mean over scales."""
    weights = weights or [1.0] * len(of_scales)
    return float(np.mean([e.mean() - w / 2 * s.mean() for (e, s), w in zip(of_scales, weights, strict=True)]))


# ---- tests -------------------------------------------------------------------------------------------------------------


@regions_of
def test_every_term_is_its_definition(regions):
    """The union of the structures covers 200 of 1024 voxels."""
    out, onehot = output(), label(regions)
    terms, expected = terms_of(make(regions), out, onehot), distances(out, onehot, regions)
    assert terms == {
        "deterministic": pytest.approx(
            float(out.logits[0].mean() - onehot[:, :1].mean() + out.logits[1].mean() - onehot[:, :1, ::2, ::2].mean()),
            abs=1e-5,
        ),
        "reconstruction": pytest.approx(10 * float(out.reconstruction.mean() - onehot[:, :1].mean()), abs=1e-5),
        "latent": pytest.approx(score(expected["latent"]), rel=1e-5),
        "label": pytest.approx(score(expected["label"]) / (200 / 1024), rel=1e-5),
        "jaccard": pytest.approx(score(expected["jaccard"]), rel=1e-5),
    }


@regions_of
@pytest.mark.parametrize("voxels", [(0, 0, 0, 0), (2, 0, 2, 4)])
def test_the_foreground_of_the_label_score_is_at_least_a_hundredth(regions, voxels):
    """Less than that and a patch with hardly any structure would outweigh all others."""
    out, onehot = output(), label(regions, voxels)
    expected = score(distances(out, onehot, regions)["label"])
    assert terms_of(make(regions), out, onehot)["label"] == pytest.approx(expected / 0.01, rel=1e-5)


def test_the_background_is_no_structure_of_the_jaccard_score():
    """Samples that agree on both structures agree, whatever the background's channel says; regions have no background."""
    out, onehot = output(), label()
    right = torch.where(onehot == 1, 20.0, -20.0).repeat(2, 1, 1, 1, 1)
    assert terms_of(make(), out._replace(samples=right), onehot)["jaccard"] == pytest.approx(0, abs=1e-5)
    wrong = right.clone()
    wrong[:, :, 0] = -40.0  # as regions: the first one is absent, the others are right
    got = terms_of(make(regions=True), out._replace(samples=wrong), onehot)["jaccard"]
    expected = np.mean([1 - 1 / (float(v) + 1) for v in onehot[:, 0].sum((1, 2))]) / HEADS
    assert got == pytest.approx(expected, rel=1e-4)


@regions_of
def test_the_spread_control_sees_the_pure_items_of_a_training_alone(regions):
    losses, onehot = make(regions).train(), label(regions)
    outs = [output(seed) for seed in (0, 1)]
    for out in outs:
        terms_of(losses, out, onehot)
    for name in ("latent", "label", "jaccard"):
        seen = [distances(out, onehot, regions)[name] for out in outs]
        for mine, which in zip(running_means(losses, name), (0, 1), strict=True):
            expected = [np.mean([of_scales[s][which][list(PURE)].mean() for of_scales in seen]) for s in range(len(seen[0]))]
            assert mine == pytest.approx(expected, rel=1e-5), name


@pytest.mark.parametrize(("training", "pure"), [(False, PURE), (True, (False,) * ITEMS)], ids=["evaluation", "none pure"])
def test_otherwise_the_spread_control_learns_nothing(training, pure):
    losses = make().train(training)
    before = {k: v.clone() for k, v in losses.state_dict().items()}
    terms_of(losses, output(pure=pure), label())
    assert before and all(torch.equal(v, before[k]) for k, v in losses.state_dict().items())


def test_what_the_spread_control_knows_is_state_of_the_losses():
    losses, copy = make().train(), make()
    terms_of(losses, output(), label())
    copy.load_state_dict(losses.state_dict())
    names = ("latent", "label", "jaccard")
    assert [running_means(copy, n) for n in names] == [running_means(losses, n) for n in names]


@pytest.mark.parametrize(("progress", "weight"), [(0.0, 0.5), (RISE / 2, 0.75), (RISE, 1.0), (1.0, 1.0)])
def test_the_weight_of_the_spread_rises_with_the_training(progress, weight):
    out, onehot = output(), label()
    terms, expected = terms_of(make(), out, onehot, progress), distances(out, onehot)
    for name, factor in (("latent", 1), ("label", 1024 / 200), ("jaccard", 1)):
        weights = [weight] * len(expected[name])
        assert terms[name] == pytest.approx(factor * score(expected[name], weights), rel=1e-5), name


def test_the_weight_of_each_score_and_scale_falls_where_its_samples_are_too_wide():
    losses, out, onehot = make(), output(), label()
    ratios = {"latent": [1.1, 0.5, 1.0, 1.2], "label": [1.0, 1.05, 2.0, 0.0], "jaccard": [1.15]}
    for name, values in ratios.items():
        losses.control[name].update(torch.ones(len(values), 1), torch.tensor(values)[:, None])
    terms, expected = terms_of(losses, out, onehot), distances(out, onehot)
    for name, factor in (("latent", 1), ("label", 1024 / 200), ("jaccard", 1)):
        weights = [min(1, max(0, 1 - 4 * (r - 1))) for r in ratios[name]]  # 4 for every unit above 1
        assert terms[name] == pytest.approx(factor * score(expected[name], weights), rel=1e-4), name


@regions_of
def test_half_precision_outputs_are_scored_in_single_precision(regions):
    out, onehot = output(), label(regions)
    half = TrainingOutput(*([x.bfloat16() for x in f] if isinstance(f, list) else f.bfloat16() for f in out[:-1]), out.pure)
    rounded = TrainingOutput(*([x.float() for x in f] if isinstance(f, list) else f.float() for f in half[:-1]), out.pure)
    terms = make(regions), half, onehot
    assert terms_of(*terms) == pytest.approx(terms_of(make(regions), rounded, onehot), rel=1e-2, abs=1e-2)


def test_a_pass_hands_over_image_label_and_the_steps_own_randomness():
    """The network is called once, for deep supervision, and its output becomes the terms."""
    losses, out, onehot, calls = make(), output(), label(), []

    class Network(torch.nn.Module):
        def forward(self, image, onehot, *, deep_supervision, generator, seed):
            calls.append((image, onehot, (torch.rand(4, generator=generator).tolist(), seed), deep_supervision))
            return out

    image, targets = torch.zeros(ITEMS, 1, PATCH, PATCH), [onehot[:, :1], onehot[:, :1, ::2, ::2]]
    batches = [Batch(image, targets, onehot, 1.0, key) for key in ((0, 0, 0, 7), (0, 0, 0, 7), (0, 0, 0, 8))]
    terms = [losses(Network(), batch) for batch in batches]
    assert {k: float(v) for k, v in terms[0].items()} == terms_of(losses, out, onehot)
    assert all(c[0] is image and c[1] is onehot and c[3] for c in calls)
    first, again, other = (c[2] for c in calls)
    assert first == again and first[0] != other[0] and first[1] != other[1]
