from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import entropy as scipy_entropy

from nndiffseg.uncertainty import Decomposition, entropy


def softmax_probabilities(*shape: int, seed: int = 0) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(scale=3, size=shape)
    p = np.exp(logits)
    return (p / p.sum(0)).astype(np.float32)


def test_entropy_is_shannons_over_the_classes_between_zero_and_one():
    p = softmax_probabilities(4, 5, 6, 7)
    np.testing.assert_allclose(entropy(p), scipy_entropy(p, base=4, axis=0), atol=1e-6)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_certainty_is_zero_and_indifference_is_one(classes):
    certain = np.zeros((classes, 2), dtype=np.float32)
    certain[1] = 1
    assert entropy(certain).tolist() == [0, 0]
    np.testing.assert_allclose(entropy(np.full((classes, 2), 1 / classes, dtype=np.float32)), 1, atol=1e-6)


def test_regions_average_the_binary_entropy_in_bits():
    p = np.array([[0.5, 0.25, 0.0], [1.0, 0.25, 0.0]], dtype=np.float32)
    quarter = -(0.25 * np.log2(0.25) + 0.75 * np.log2(0.75))
    np.testing.assert_allclose(entropy(p, regions=True), [0.5, quarter, 0], atol=1e-6)
    assert entropy(p[:1], regions=True)[0] == pytest.approx(1)  # a single region is allowed


def test_rounding_beyond_zero_and_one_stays_finite_and_in_range():
    p = np.array([[1 + 1e-6, -1e-6], [-1e-6, 1 + 1e-6]], dtype=np.float32)
    assert entropy(p).tolist() == [0, 0] and entropy(p, regions=True).tolist() == [0, 0]


def test_a_softmax_of_one_class_is_refused():
    with pytest.raises(ValueError, match="two classes"):
        entropy(np.ones((1, 3), dtype=np.float32))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_tensors_give_float32_tensors(dtype):
    p = torch.from_numpy(softmax_probabilities(3, 8)).to(dtype)
    result = entropy(p)
    assert isinstance(result, torch.Tensor) and result.dtype == torch.float32
    np.testing.assert_allclose(result, entropy(p.float().numpy()), atol=2e-3)


@pytest.mark.parametrize("regions", [False, True])
def test_decomposition_equals_its_definition_over_folds(regions):
    folds = [softmax_probabilities(3, 4, 5, 6, seed=s) for s in range(5)]
    decomposition = Decomposition(regions=regions)
    for fold in folds:
        decomposition.add(fold)
    mean = np.mean(folds, axis=0)
    total = entropy(mean, regions=regions)
    aleatoric = np.mean([entropy(f, regions=regions) for f in folds], axis=0)
    np.testing.assert_allclose(decomposition.probabilities, mean, atol=1e-6)
    np.testing.assert_allclose(decomposition.total, total, atol=1e-6)
    np.testing.assert_allclose(decomposition.aleatoric, aleatoric, atol=1e-6)
    np.testing.assert_allclose(decomposition.epistemic, total - aleatoric, atol=1e-6)
    for name, values in decomposition.maps().items():
        np.testing.assert_array_equal(values, getattr(decomposition, name))
    assert decomposition.epistemic.min() >= 0


def test_epistemic_is_the_mutual_information_of_label_and_fold():
    folds = np.stack([softmax_probabilities(3, 10, seed=s) for s in range(4)]).astype(np.float64)  # (F, C, voxels)
    joint = folds / len(folds)
    independent = joint.sum(0, keepdims=True) * joint.sum(1, keepdims=True)
    information = (joint * np.log(joint / independent)).sum((0, 1)) / np.log(3)
    decomposition = Decomposition()
    for fold in folds:
        decomposition.add(fold.astype(np.float32))
    np.testing.assert_allclose(decomposition.epistemic, information, atol=1e-6)


def test_two_folds_that_are_sure_of_different_labels_are_all_epistemic_and_two_that_doubt_alike_all_aleatoric():
    decomposition = Decomposition()
    decomposition.add(np.array([[1.0, 0.5], [0.0, 0.5]], dtype=np.float32))
    decomposition.add(np.array([[0.0, 0.5], [1.0, 0.5]], dtype=np.float32))
    np.testing.assert_allclose(decomposition.total, [1, 1], atol=1e-6)
    np.testing.assert_allclose(decomposition.aleatoric, [0, 1], atol=1e-6)
    np.testing.assert_allclose(decomposition.epistemic, [1, 0], atol=1e-6)


def test_one_fold_has_no_epistemic_map():
    decomposition = Decomposition()
    decomposition.add(softmax_probabilities(3, 8))
    assert set(decomposition.maps()) == {"total", "aleatoric"}
    assert not decomposition.epistemic.any()
    np.testing.assert_array_equal(decomposition.total, decomposition.aleatoric)


def test_a_fold_is_not_changed_and_may_be_overwritten_after_it_was_added():
    buffer = torch.from_numpy(softmax_probabilities(3, 8))
    first = buffer.clone()
    decomposition = Decomposition()
    decomposition.add(buffer)
    buffer.copy_(torch.from_numpy(softmax_probabilities(3, 8, seed=1)))
    second = buffer.clone()
    decomposition.add(buffer)
    assert torch.equal(buffer, second)
    torch.testing.assert_close(decomposition.probabilities, (first + second) / 2)


def test_folds_must_match_and_there_must_be_one():
    decomposition = Decomposition()
    with pytest.raises(ValueError, match="at least one fold"):
        decomposition.maps()
    decomposition.add(softmax_probabilities(3, 8))
    with pytest.raises(ValueError, match="do not match"):
        decomposition.add(softmax_probabilities(3, 9))
