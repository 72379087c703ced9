"""The phantoms of several modes must follow the laws they claim."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk

from nndiffseg.data.phantom import BoundaryLaw, base_label, draw_label, draw_volumes, render_image, write_phantom_dataset
from nndiffseg.data.phantom_variants import OUTSIDE, PRESENCE, SHIFT, VARIANTS, optional_lobe, shifted_boundary, two_boundaries

pytestmark = pytest.mark.seconds
STILL = BoundaryLaw(rigid_sd=0.0, field_sd=0.0)


def draws(geometry, count):
    rng = np.random.default_rng(5)
    return np.stack([draw_label(geometry, rng) for _ in range(count)])


def test_the_rear_lobe_is_whole_or_absent_as_often_as_the_case_says():
    geometry = optional_lobe(np.random.default_rng(0), law=STILL)
    base = base_label(geometry)
    labels = draws(geometry, 200)
    present = np.array([np.array_equal(label, base) for label in labels])
    absent = np.array([np.array_equal(label, np.where(base == 2, 0, base)) for label in labels])
    assert np.all(present ^ absent) and present.mean() == pytest.approx(geometry.presence, abs=0.1)


def test_presence_varies_between_cases_and_shows_in_the_image():
    rng = np.random.default_rng(1)
    cases = [optional_lobe(rng) for _ in range(16)]
    presence = np.array([c.presence for c in cases])
    assert presence.min() >= PRESENCE[0] and presence.max() <= PRESENCE[1] and presence.std() > 0.1
    contrast = []
    for case in cases:
        image, near = render_image(case, rng), np.where(case.distance.min(0) < 5, base_label(case), -1)
        outside, front, rear = (image[near == k].mean() for k in range(3))
        contrast.append((rear - outside) / (front - outside))
    assert np.corrcoef(presence, contrast)[0, 1] > 0.6


def test_the_front_lobe_has_two_sizes():
    geometry = two_boundaries(np.random.default_rng(2), law=STILL)
    labels = draws(geometry, 100)
    sizes, first, counts = np.unique(np.sum(labels == 1, axis=(1, 2, 3)), return_index=True, return_counts=True)
    assert len(sizes) == 2 and counts.min() > 30
    small, large = labels[first]
    np.testing.assert_array_equal(small, base_label(geometry))
    assert np.all(large[small == 1] == 1)
    added = geometry.distance[0][(large == 1) & (small == 0)]
    assert added.min() >= 0 and OUTSIDE - 0.2 < added.max() < OUTSIDE


def test_the_front_lobe_is_shifted_one_way_or_the_other():
    geometry = shifted_boundary(np.random.default_rng(3), law=STILL)
    kinds = np.stack(list({label.tobytes(): label for label in draws(geometry, 20)}.values())) == 1
    assert len(kinds) == 2
    centres = np.sort([np.argwhere(kind)[:, 1].mean() for kind in kinds])
    np.testing.assert_allclose(centres[1] - centres[0], 2 * SHIFT, atol=0.8)  # the rear lobe cuts both
    assert (kinds[0] & ~kinds[1]).sum() > 100 and (kinds[1] & ~kinds[0]).sum() > 100  # neither holds the other


def test_volumes_are_those_of_whole_labels():
    geometry = replace(optional_lobe(np.random.default_rng(4)), presence=0.5)
    volumes = draw_volumes(geometry, np.random.default_rng(5), 60)
    whole = np.array([[np.sum(label == k) for k in (1, 2)] for label in draws(geometry, 60)]) / 1000
    np.testing.assert_allclose(volumes, whole)
    assert 10 < np.sum(volumes[:, 1] == 0) < 50 and np.all(volumes[:, 0] > 0)


@pytest.mark.parametrize("name", list(VARIANTS))
def test_a_dataset_holds_true_draws_of_its_validation_cases(name, tmp_path):
    dataset_id, variant = VARIANTS[name]
    settings = {"cases": 5, "test_cases": 1, "validation_cases": 2, "annotations": 3, "draws": 8}
    dataset = write_phantom_dataset(tmp_path, dataset_id=dataset_id, variant=variant, seed=1, **settings)
    assert dataset.name == f"Dataset{dataset_id}_{variant.name}"
    (split,) = json.loads((dataset / "splits_final.json").read_text())
    assert split["val"] == ["phantom_003", "phantom_004"] and len(split["train"]) == 3
    assert sorted(p.name for p in (dataset / "ratersTr").iterdir()) == split["val"]
    files = [*sorted((dataset / "ratersTr" / "phantom_003").iterdir()), dataset / "labelsTr" / "phantom_003.nii.gz"]
    labels = [sitk.GetArrayFromImage(sitk.ReadImage(str(f))) for f in files]
    assert len(labels) == 4 and all(np.any(a != b) for a, b in zip(labels[1:], labels[:-1], strict=True))
    truth = json.loads((dataset / "truth.json").read_text())
    assert truth["variant"] == variant.name and truth["law"]["rigid_sd_mm"] == variant.law.rigid_sd
    assert len(truth["cases"]) == len(truth["presence"]) == 6
    assert all((p < 1) == (name == "optional") for p in truth["presence"].values())
