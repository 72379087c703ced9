"""Export: values come back to where they were, files carry the image's geometry, cases are whole or absent."""

from __future__ import annotations

import copy
import json
import os
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from sklearn.metrics import f1_score

from nndiffseg.calibration import Calibration
from nndiffseg.calibration.expected_dice import DiceMap
from nndiffseg.data.cases import preprocess
from nndiffseg.errors import UserError
from nndiffseg.export.geometry import CaseGeometry
from nndiffseg.export.maps import write_map, write_probability
from nndiffseg.export.summary import case_summary
from nndiffseg.export.writer import STAGING, ExportJob, export_case
from nndiffseg.uncertainty import entropy
from nndiffseg.uncertainty.statistics import CaseStatistics

LABELS = {"channel_names": {"0": "a", "1": "b"}, "labels": {"background": 0, "shell": 1, "core": 2}, "file_ending": ".nii.gz"}


@pytest.fixture(scope="module")
def plans(model_folder) -> dict:
    """The model's plans without intensity normalisation, so that the preprocessed image is the resampled image."""
    plans = json.loads((model_folder / "plans.json").read_text())
    for configuration in plans["configurations"].values():
        if "normalization_schemes" in configuration:
            configuration["normalization_schemes"] = ["NoNormalization"] * 2
    return plans


def smooth_image(shape=(24, 40, 32), border=(3, 5, 4)) -> np.ndarray:
    """A smooth image in [0, 1] with a border of zeros that preprocessing crops away, ``(2, *shape)``."""
    inner = [n - 2 * b for n, b in zip(shape, border, strict=True)]
    axes = np.meshgrid(*[np.linspace(0, np.pi, n) for n in inner], indexing="ij")
    image = 0.5 + 0.3 * np.sin(axes[0]) * np.cos(axes[1]) + 0.1 * np.cos(2 * axes[2])
    return np.stack([np.pad(image, [(b, b) for b in border])] * 2).astype(np.float32)


def statistics_of(p: torch.Tensor, labels: np.ndarray, regions: bool = False) -> CaseStatistics:
    total = entropy(p, regions=regions)
    return CaseStatistics(p, {"total": total, "aleatoric": total}, labels, (Calibration(),), regions)


def random_statistics(shape, samples=3, seed=0) -> CaseStatistics:
    rng = np.random.default_rng(seed)
    p = torch.from_numpy(rng.dirichlet((1, 1, 1), shape).astype(np.float32)).movedim(-1, 0)
    return statistics_of(p, rng.integers(0, 3, (samples, *shape)).astype(np.uint8))


@pytest.mark.parametrize("configuration", ["3d_fullres", "2d"])
@pytest.mark.parametrize("transpose", [(0, 1, 2), (2, 0, 1)])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.5, 0.8, 0.9), (4.0, 0.7, 0.7)])
def test_a_map_comes_back_to_the_voxels_it_was_made_from(plans, configuration, transpose, spacing):
    """The preprocessed image itself serves as the map: undone, it must be the image, and 0 outside the crop."""
    plans = copy.deepcopy(plans)
    plans["transpose_forward"], plans["transpose_backward"] = list(transpose), list(np.argsort(transpose))
    manager, image = PlansManager(plans), smooth_image()
    grid, properties = preprocess(image.copy(), {"spacing": list(spacing)}, manager, configuration, LABELS)
    geometry = CaseGeometry(properties, manager, manager.get_configuration(configuration))
    back = geometry.maps_to_image(grid[:1])[0]
    assert back.shape == image.shape[1:] and back.dtype == np.float32
    assert (back[image[0] == 0] == 0).all()
    inside = np.pad(np.ones([n - 4 for n in (18, 30, 24)], bool), [(5, 5), (7, 7), (6, 6)])
    assert np.abs(back - image[0])[inside].max() < 0.06  # twice linearly (nearest, along thick slices) resampled
    labels = (grid[0] > 0.5).astype(np.uint8)
    agreement = f1_score((geometry.labels_to_image(labels) == 1).ravel(), (image[0] > 0.5).ravel())
    assert agreement > 0.93


def test_voxel_volumes_add_up_to_the_crop(plans):
    manager = PlansManager(plans)
    grid, properties = preprocess(smooth_image(), {"spacing": [1.5, 0.8, 0.9]}, manager, "3d_fullres", LABELS)
    geometry = CaseGeometry(properties, manager, manager.get_configuration("3d_fullres"))
    assert geometry.voxel_volume() == pytest.approx(1.5 * 0.8 * 0.9)
    assert geometry.voxel_volume(grid.shape[1:]) * grid[0].size == pytest.approx(18 * 30 * 24 * 1.5 * 0.8 * 0.9)


@pytest.mark.parametrize("regions", [False, True])
def test_nnunets_export_gives_the_probabilities_back(plans, regions):
    dataset = LABELS
    if regions:
        dataset = {**LABELS, "labels": {"background": 0, "whole": [1, 2], "core": [2]}, "regions_class_order": [1, 2]}
    manager, image = PlansManager(plans), smooth_image(border=(0, 0, 0))
    grid, properties = preprocess(image, {"spacing": [1, 1, 1]}, manager, "3d_fullres", dataset)
    p = random_statistics(grid.shape[1:]).probabilities
    p = p[:2].clone() if regions else p
    statistics = statistics_of(p, np.zeros((1, *grid.shape[1:]), np.uint8), regions)
    geometry = CaseGeometry(properties, manager, manager.get_configuration("3d_fullres"))
    segmentation, back = geometry.segmentation(statistics, dataset, with_probabilities=True)
    np.testing.assert_allclose(back, p.numpy(), atol=2e-6)
    expected = np.where(p[1] > 0.5, 2, np.where(p[0] > 0.5, 1, 0)) if regions else p.numpy().argmax(0)
    assert np.array_equal(segmentation, expected)
    again, none = geometry.segmentation(statistics, dataset, with_probabilities=False)
    assert none is None and np.array_equal(again, segmentation)


def rotated_image(path: Path, shape=(14, 20, 18)) -> sitk.Image:
    """A NIfTI with oblique axes, a shifted origin and three different spacings."""
    angle = 0.3
    c, s = np.cos(angle), np.sin(angle)
    direction = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.diag([-1, 1, 1])[:, [1, 0, 2]]
    image = sitk.GetImageFromArray(np.random.default_rng(0).normal(100, 10, shape).astype(np.float32))
    image.SetSpacing((0.8, 0.9, 1.5))
    image.SetOrigin((-12.5, 30.25, 7))
    image.SetDirection(direction.ravel())
    sitk.WriteImage(image, str(path))
    return sitk.ReadImage(str(path))


@pytest.mark.parametrize("reader", ["SimpleITKIO", "SimpleITKIOWithReorient", "NibabelIO", "NibabelIOWithReorient"])
def test_files_lie_where_the_image_lies(plans, reader, tmp_path):
    image = rotated_image(tmp_path / "image_0000.nii.gz")
    plans = {**plans, "image_reader_writer": reader}
    manager = PlansManager(plans)
    one = recursive_find_reader_writer_by_name(reader)()
    data, properties = one.read_images([str(tmp_path / "image_0000.nii.gz")])
    grid, properties = preprocess(np.repeat(data, 2, 0), properties, manager, "3d_fullres", LABELS)
    statistics = random_statistics(grid.shape[1:])
    intensity = torch.from_numpy(grid[0]).clamp(0, 200) / 200
    statistics.maps["total"] = intensity
    export_case(ExportJob(tmp_path, plans, "3d_fullres", LABELS, save_samples=True), "image", statistics, properties)
    names = ["image", "uncertainty/image_total", "uncertainty/image_aleatoric", "samples/image_s02"]
    for file in (tmp_path / f"{name}.nii.gz" for name in names):
        written = sitk.ReadImage(str(file))
        assert written.GetSize() == image.GetSize()
        np.testing.assert_allclose(written.GetSpacing(), image.GetSpacing(), rtol=1e-6)
        np.testing.assert_allclose(written.GetOrigin(), image.GetOrigin(), atol=1e-5)
        np.testing.assert_allclose(written.GetDirection(), image.GetDirection(), atol=1e-6)
        affine = nibabel.load(file).affine
        np.testing.assert_allclose(affine, nibabel.load(tmp_path / "image_0000.nii.gz").affine, atol=1e-5)
    written = sitk.ReadImage(str(tmp_path / "uncertainty" / "image_total.nii.gz"))
    assert written.GetPixelID() == sitk.sitkFloat32
    # The map shows the (resampled) image's intensity in every voxel: axes are not mixed up either.
    a, b = (sitk.GetArrayFromImage(x)[2:-2, 2:-2, 2:-2].ravel() for x in (written, image))
    assert np.corrcoef(a, b)[0, 1] > 0.6


REGIONS = {**LABELS, "labels": {"background": 0, "whole/all": [1, 2], "core": [2]}, "regions_class_order": [1, 2]}
#: nnU-Net orders heads by value, whatever the order in the file
MIXED = {**LABELS, "labels": {"core": 2, "background": 0, "shell": 1}}


@pytest.mark.parametrize("reader", ["SimpleITKIO", "SimpleITKIOWithReorient", "NibabelIO", "NibabelIOWithReorient"])
@pytest.mark.parametrize("dataset", [MIXED, REGIONS], ids=["labels", "regions"])
def test_probabilities_as_images_are_those_of_the_npz_where_the_image_lies(plans, reader, dataset, tmp_path):
    image = rotated_image(tmp_path / "image_0000.nii.gz")
    plans = {**plans, "image_reader_writer": reader}
    one = recursive_find_reader_writer_by_name(reader)()
    data, properties = one.read_images([str(tmp_path / "image_0000.nii.gz")])
    grid, properties = preprocess(np.repeat(data, 2, 0), properties, PlansManager(plans), "3d_fullres", dataset)
    p = random_statistics(grid.shape[1:]).probabilities
    regions = dataset is REGIONS
    statistics = statistics_of(p[:2] if regions else p, np.zeros((1, *grid.shape[1:]), np.uint8), regions)
    job = ExportJob(tmp_path, plans, "3d_fullres", dataset, save_probabilities=["npz", "nifti"])
    export_case(job, "image", statistics, properties)
    names = ["01_whole_all", "02_core"] if regions else ["01_shell", "02_core"]
    assert sorted(f.name for f in (tmp_path / "probabilities" / "image").iterdir()) == [f"{n}.nii.gz" for n in names]
    expected = np.load(tmp_path / "image.npz")["probabilities"][-2:]
    affine = nibabel.load(tmp_path / "image_0000.nii.gz").affine
    for name, wanted in zip(names, expected, strict=True):
        file = tmp_path / "probabilities" / "image" / f"{name}.nii.gz"
        written = nibabel.load(file)
        assert written.get_data_dtype() == np.uint8
        np.testing.assert_allclose(written.affine, affine, atol=1e-5)
        np.testing.assert_allclose(one.read_images([str(file)])[0][0], wanted, atol=0.0021)  # as a user reads it
        again = sitk.ReadImage(str(file))
        np.testing.assert_allclose(again.GetDirection(), image.GetDirection(), atol=1e-6)
        assert again.GetSize() == image.GetSize()
    export_case(replace(job, save_probabilities=False), "image", statistics, properties)
    assert not list((tmp_path / "probabilities").rglob("*.gz"))


def test_a_probability_of_a_photograph_is_2d(tmp_path):
    values = np.random.default_rng(0).random((1, 5, 7))
    write_probability(values, tmp_path / "p.nii.gz", {"spacing": (999, 1, 1)}, two_dimensional=True)
    image = sitk.ReadImage(str(tmp_path / "p.nii.gz"))
    assert image.GetDimension() == 2 and image.GetSpacing() == (1, 1) and image.GetSize() == (7, 5)
    np.testing.assert_allclose(sitk.GetArrayFromImage(image), values[0], atol=0.0021)
    assert [f.name for f in tmp_path.iterdir()] == ["p.nii.gz"]


def test_an_unknown_form_of_probabilities_is_refused(plans, tmp_path):
    with pytest.raises(UserError, match="Probabilities are saved as npz or nifti, not as dicom"):
        ExportJob(tmp_path, plans, "3d_fullres", LABELS, save_probabilities="dicom")


def test_maps_of_a_colourful_photograph_are_2d_with_unit_spacing(tmp_path):
    values = np.random.default_rng(0).random((1, 5, 7))
    write_map(values, tmp_path / "photo_total.nii.gz", {"spacing": (999, 1, 1)}, two_dimensional=True)
    image = sitk.ReadImage(str(tmp_path / "photo_total.nii.gz"))
    assert image.GetDimension() == 2 and image.GetSpacing() == (1, 1) and image.GetSize() == (7, 5)
    np.testing.assert_allclose(sitk.GetArrayFromImage(image), values[0], rtol=1e-6)


def prepared(plans, shape=(12, 16, 14)) -> tuple[CaseGeometry, dict]:
    manager = PlansManager({**plans, "image_reader_writer": "SimpleITKIO"})
    properties = {
        "spacing": [2.0, 1.0, 1.0],
        "sitk_stuff": {"spacing": (1.0, 1.0, 2.0), "origin": (0.0,) * 3, "direction": tuple(np.eye(3).ravel())},
    }
    image = np.random.default_rng(0).random((2, *shape)).astype(np.float32) + 1
    _, properties = preprocess(image, properties, manager, "3d_fullres", LABELS)
    return CaseGeometry(properties, manager, manager.get_configuration("3d_fullres")), properties


def test_volumes_and_agreement_of_known_boxes(plans):
    geometry, _ = prepared(plans)
    labels = np.zeros((3, 12, 16, 14), np.uint8)
    for n, width in enumerate((2, 3, 4)):
        labels[n, 2:6, 2:6, 2 : 2 + width] = 1
    labels[:, 8, 8, 8] = 2
    segmentation = labels[1]
    p = torch.zeros(3, 12, 16, 14)
    summary = case_summary(statistics_of(p, labels), segmentation, geometry, LABELS)
    shell = summary["structures"]["shell"]
    assert shell["segmentation_ml"] == pytest.approx(48 * 2 / 1000)
    assert shell["mean_ml"] == pytest.approx(48 * 2 / 1000) and shell["sd_ml"] == pytest.approx(16 * 2 / 1000)
    np.testing.assert_allclose(shell["interval_90_ml"], np.percentile([0.064, 0.096, 0.128], [5, 95]))
    np.testing.assert_allclose(shell["calibrated_interval_90_ml"], [0.064, 0.128])
    pairs = [2 * 2 / 5, 2 * 2 / 6, 2 * 3 / 7]  # boxes of widths 2, 3, 4 share the narrower one
    assert shell["agreement"] == pytest.approx(np.mean(pairs))
    assert summary["agreement"] == pytest.approx((np.mean(pairs) + 1) / 2) and summary["samples"] == 3
    assert summary["expected_dice"] == summary["agreement"] and summary["expected_dice_interval_90"] is None
    assert summary["confidence"] is None


def test_the_expected_dice_is_the_mean_of_the_folds_maps_and_its_interval_holds_theirs(plans):
    geometry, _ = prepared(plans)
    labels = np.ones((4, 12, 16, 14), np.uint8)
    maps = [DiceMap(0.1, 0.5, 0.1), DiceMap(0.2, 0.5, 0.02)]
    calibrations = tuple(Calibration(dice=m, volume_quantiles=q) for m, q in zip(maps, ((1.0, None), (2.0, 3.0)), strict=True))
    statistics = replace(
        statistics_of(torch.zeros(3, 12, 16, 14), labels), confidence=np.array([0.8, np.nan]), calibrations=calibrations
    )
    summary = case_summary(statistics, labels[0], geometry, LABELS)
    assert summary["confidence"] == pytest.approx(0.8) and summary["expected_dice"] == pytest.approx(0.55)
    assert summary["expected_dice_interval_90"] == pytest.approx([0.4, 0.62])
    promised = [s["interval_promised"] for s in summary["structures"].values()]
    assert promised == [True, False]  # the second structure has no quantile in one fold
    one = replace(statistics, calibrations=(calibrations[0], Calibration()))
    assert case_summary(one, labels[0], geometry, LABELS)["expected_dice_interval_90"] is None


def test_a_case_is_whole_or_absent(plans, tmp_path, monkeypatch):
    """Interrupted anywhere, a case is not taken for done; run again, it is whole and nothing else is left."""
    _geometry, properties = prepared(plans)
    grid = properties["shape_after_cropping_and_before_resampling"]
    shape = tuple(round(n * s) for n, s in zip(grid, (2, 1, 1), strict=True))
    statistics = random_statistics(shape)
    job = ExportJob(tmp_path, {**plans, "image_reader_writer": "SimpleITKIO"}, "3d_fullres", LABELS, True, True)
    wanted = job.files("c", 3, 1)
    replace, moves, limit = os.replace, [], [0]

    def interrupt(*args):
        moves.append(args)
        if len(moves) > limit[0] and "nndiffseg_tmp" in str(args[0]) and "partial" not in str(args[0]):
            raise KeyboardInterrupt
        replace(*args)

    monkeypatch.setattr(os, "replace", interrupt)
    for stop_after in range(1, 8, 2):
        limit[0] = stop_after
        moves.clear()
        with pytest.raises(KeyboardInterrupt):
            export_case(job, "c", statistics, properties)
        assert not (tmp_path / "c.nii.gz").exists()
        assert not any((tmp_path / STAGING).iterdir())
    monkeypatch.setattr(os, "replace", replace)
    export_case(job, "c", statistics, properties)
    assert all((tmp_path / file).is_file() for file in wanted) and wanted[-1] == Path("c.nii.gz")
    found = {f.relative_to(tmp_path) for f in tmp_path.rglob("*") if f.is_file()}
    assert found == set(wanted)


def test_a_file_that_itk_truncates_is_noticed(plans, tmp_path, monkeypatch):
    """On a full disk ITK writes what fits of a NIfTI and reports success."""
    _, properties = prepared(plans)
    write = sitk.WriteImage

    def truncate(image, file, *args):
        write(image, file, *args)
        content = Path(file).read_bytes()
        Path(file).write_bytes(content[: len(content) // 2])

    monkeypatch.setattr(sitk, "WriteImage", truncate)
    job = ExportJob(tmp_path, {**plans, "image_reader_writer": "SimpleITKIO"}, "3d_fullres", LABELS)
    with pytest.raises(UserError, match="No space left"):
        export_case(job, "c", random_statistics((24, 16, 14)), properties)
    assert not [f for f in tmp_path.rglob("*") if f.is_file()]


def test_files_of_an_earlier_run_do_not_survive(plans, tmp_path):
    _geometry, properties = prepared(plans)
    statistics = random_statistics((24, 16, 14))
    job = ExportJob(tmp_path, {**plans, "image_reader_writer": "SimpleITKIO"}, "3d_fullres", LABELS)
    for sub in ("uncertainty", "samples"):
        (tmp_path / sub).mkdir()
    stale = ["uncertainty/c_epistemic.nii.gz", "samples/c_s00.nii.gz", "samples/c_s15.nii.gz"]
    kept = ["uncertainty/c2_total.nii.gz", "samples/c_special_s00.nii.gz"]
    for name in stale + kept:
        (tmp_path / name).touch()
    export_case(job, "c", statistics, properties)
    assert not any((tmp_path / name).exists() for name in stale)
    assert all((tmp_path / name).exists() for name in kept)
