"""The phantom's uncertainty must be what it claims, and its files must be nnU-Net's."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

from nndiffseg.data.phantom import (
    STRUCTURES,
    BoundaryLaw,
    PhantomGeometry,
    base_label,
    draw_geometry,
    draw_label,
    draw_volumes,
    ellipsoid_distance,
    render_image,
    smooth_field,
    write_phantom_dataset,
)
from nndiffseg.errors import UserError

pytestmark = pytest.mark.seconds


def array(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_phantom_dataset(tmp_path_factory.mktemp("raw"), cases=8, test_cases=2, seed=3, draws=200)


def dice(a, b, k):
    return 2 * np.sum((a == k) & (b == k)) / (np.sum(a == k) + np.sum(b == k))


def test_volume_spread_of_a_sphere_matches_its_closed_form():
    # V = 4/3 pi (r + delta)^3 with delta ~ N(0, s^2): E[V^2] - E[V]^2 = (4/3 pi)^2 (9 r^4 s^2 + 36 r^2 s^4 + 15 s^6)
    r, s = 10.0, 0.4
    middle = np.full(3, 19.5)
    sphere = ellipsoid_distance((40, 40, 40), middle, np.full(3, r), np.eye(3))
    far = np.full_like(sphere, 100.0)
    geometry = PhantomGeometry(np.stack([sphere, far]).astype(np.float32), law=BoundaryLaw(rigid_sd=s, field_sd=0.0))
    volumes = draw_volumes(geometry, np.random.default_rng(0), 4000)
    expected_mean = 4 / 3 * np.pi * (r**3 + 3 * r * s**2) / 1000
    expected_sd = 4 / 3 * np.pi * np.sqrt(9 * r**4 * s**2 + 36 * r**2 * s**4 + 15 * s**6) / 1000
    assert volumes[:, 0].mean() == pytest.approx(expected_mean, rel=0.01)
    assert volumes[:, 0].std() == pytest.approx(expected_sd, rel=0.05)
    assert np.all(volumes[:, 1] == 0)


def test_volumes_of_whole_labels_follow_the_same_law_as_the_band_computation():
    geometry = draw_geometry(np.random.default_rng(1))
    rng = np.random.default_rng(2)
    labels = [draw_label(geometry, rng) for _ in range(400)]
    whole = np.array([[np.sum(label == k) for k in (1, 2)] for label in labels]) / 1000
    band = draw_volumes(geometry, np.random.default_rng(3), 400)
    np.testing.assert_allclose(band.mean(axis=0), whole.mean(axis=0), rtol=0.03)
    np.testing.assert_allclose(band.std(axis=0), whole.std(axis=0), rtol=0.15)  # sampling error 5 % each
    assert abs(np.corrcoef(whole.T)[0, 1]) < 0.3  # offsets independent; only the shared interface couples them


def test_structures_touch_have_wide_volumes_and_high_agreement():
    for seed in range(4):
        geometry, rng = draw_geometry(np.random.default_rng(seed)), np.random.default_rng(seed)
        base = base_label(geometry)
        contact = np.sum((base[1:] != base[:-1]) & (base[1:] > 0) & (base[:-1] > 0))
        assert contact > 40
        edge = np.ones(base.shape, bool)
        edge[1:-1, 1:-1, 1:-1] = False
        assert not base[edge].any()
        volumes = draw_volumes(geometry, rng, 300)
        relative = volumes.std(axis=0) / volumes.mean(axis=0)
        assert np.all((relative > 0.08) & (relative < 0.14))
        agreement = np.mean([[dice(base, draw_label(geometry, rng), k) for k in (1, 2)] for _ in range(20)])
        assert agreement > 0.93


def test_the_touching_interface_moves():
    geometry, rng = draw_geometry(np.random.default_rng(5)), np.random.default_rng(6)
    deep = geometry.distance.max(axis=0) < -1.0  # inside both ellipsoids: only the interface decides
    assert deep.sum() > 20
    front = [np.sum(draw_label(geometry, rng)[deep] == 1) for _ in range(20)]
    assert np.std(front) > 1


def test_image_does_not_depend_on_the_label_draw():
    geometry = draw_geometry(np.random.default_rng(7))
    first = draw_label(geometry, np.random.default_rng(1))
    image = render_image(geometry, np.random.default_rng(9))
    second = draw_label(geometry, np.random.default_rng(2))
    again = render_image(geometry, np.random.default_rng(9))
    assert np.any(first != second)
    np.testing.assert_array_equal(image, again)


def test_another_boundary_law_leaves_the_image_file_unchanged(dataset, tmp_path):
    wide = write_phantom_dataset(tmp_path, cases=8, test_cases=2, seed=3, draws=20, law=BoundaryLaw(rigid_sd=1.0))
    name = "phantom_000"
    np.testing.assert_array_equal(
        array(dataset / "imagesTr" / f"{name}_0000.nii.gz"), array(wide / "imagesTr" / f"{name}_0000.nii.gz")
    )
    assert np.any(array(dataset / "labelsTr" / f"{name}.nii.gz") != array(wide / "labelsTr" / f"{name}.nii.gz"))


def test_smooth_field_has_the_asked_standard_deviation_everywhere():
    rng = np.random.default_rng(0)
    fields = np.stack([smooth_field(rng, (12, 12, 12), 0.5, 5.0) for _ in range(2000)])
    np.testing.assert_allclose(fields.std(axis=0), 0.5, rtol=0.12)


def test_structures_can_be_told_apart_in_the_image():
    geometry = draw_geometry(np.random.default_rng(11))
    image, base = render_image(geometry, np.random.default_rng(12)), base_label(geometry)
    means = [image[base == k].mean() for k in range(3)]
    assert means[0] < means[1] < means[2]


def test_same_seed_same_voxels_other_seed_other_voxels(dataset, tmp_path):
    again = write_phantom_dataset(tmp_path / "a", cases=8, test_cases=2, seed=3, draws=200)
    other = write_phantom_dataset(tmp_path / "b", cases=8, test_cases=2, seed=4, draws=20)
    for file in ("imagesTr/phantom_004_0000.nii.gz", "labelsTr/phantom_004.nii.gz", "labelsTs/phantom_009.nii.gz"):
        np.testing.assert_array_equal(array(dataset / file), array(again / file))
        assert np.any(array(dataset / file) != array(other / file))
    assert (dataset / "truth.json").read_text() == (again / "truth.json").read_text()


def test_folder_passes_nnunets_own_integrity_check(dataset):
    verify_dataset_integrity(str(dataset), num_processes=1)
    meta = json.loads((dataset / "dataset.json").read_text())
    assert meta["numTraining"] == 8
    assert list(meta["labels"].values()) == [0, 1, 2]
    assert sorted(p.name for p in (dataset / "imagesTs").iterdir()) == ["phantom_008_0000.nii.gz", "phantom_009_0000.nii.gz"]
    split = json.loads((dataset / "splits_final.json").read_text())
    assert len(split) == 1 and not set(split[0]["train"]) & set(split[0]["val"])
    assert len(split[0]["train"]) + len(split[0]["val"]) == 8


def test_truth_is_stored_for_every_case_and_structure(dataset):
    truth = json.loads((dataset / "truth.json").read_text())["cases"]
    assert sorted(truth) == [f"phantom_{i:03d}" for i in range(10)]
    for name, structures in truth.items():
        folder = "labelsTr" if int(name[-3:]) < 8 else "labelsTs"
        label = array(dataset / folder / f"{name}.nii.gz")
        for k, structure in enumerate(STRUCTURES, start=1):
            volume = np.sum(label == k) / 1000
            assert abs(volume - structures[structure]["mean_ml"]) < 4 * structures[structure]["sd_ml"]


def test_existing_dataset_is_not_overwritten(dataset):
    with pytest.raises(UserError, match="exists already"):
        write_phantom_dataset(dataset.parent, cases=8)


def test_too_few_cases_are_refused(tmp_path):
    with pytest.raises(UserError, match="at least 4"):
        write_phantom_dataset(tmp_path, cases=1)
    assert not list(tmp_path.iterdir())
