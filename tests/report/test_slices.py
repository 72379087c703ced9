"""Slices are upright, cut what matters, and hold what the files hold."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from PIL import Image

from nndiffseg.errors import UserError
from nndiffseg.report.slices import find_planes, full_scale, max_samples_drawn, read_views, report_reader, sample_files


@pytest.mark.parametrize("reader", [SimpleITKIO, NibabelIO])
@pytest.mark.parametrize("orientation", ["LPS", "RAS", "RAI", "PIR", "SAL"])
def test_planes_are_anatomical_however_the_file_stores_its_axes(tmp_path, reader, orientation):
    volume = np.zeros((12, 16, 20), np.float32)  # (superior, posterior, left)
    volume[9, 4, 14] = 1
    blob = np.zeros(volume.shape, np.uint8)
    blob[7:10, 4:8, 10:16] = 1
    files = []
    for name, array in (("image", volume), ("label", blob)):
        image = sitk.GetImageFromArray(array)
        image.SetSpacing((1.0, 2.0, 3.0))  # left, posterior, superior
        sitk.WriteImage(sitk.DICOMOrient(image, orientation), str(tmp_path / f"{name}.nii.gz"))
        files.append(str(tmp_path / f"{name}.nii.gz"))
    image_array, properties = reader().read_images(files[:1])
    labels = reader().read_seg(files[1])[0][0]
    planes = find_planes(labels, np.zeros_like(image_array[0]), None, properties, 1.0)
    assert planes.names == ("axial", "coronal", "sagittal")
    np.testing.assert_allclose([planes.pixel_spacing(i) for i in range(3)], [(2, 1), (3, 1), (3, 2)], rtol=1e-5)
    # superior is up in coronal and sagittal slices, posterior down in axial and right in sagittal ones, left is right
    upright = volume[::-1]
    assert planes.position == (12 - 1 - 8, 5, 12)
    for axis, cut in enumerate(planes.cut(labels)):
        expected = blob[::-1].take(planes.position[axis], axis)
        window = [b for i, b in enumerate(planes.box) if i != axis]
        np.testing.assert_array_equal(cut, expected[tuple(window)])
    z, y, x = (int(i[0]) for i in np.nonzero(upright))
    through = type(planes)(
        planes.names, planes.order, planes.flipped, planes.spacing, (z, y, x), tuple(slice(0, n) for n in volume.shape)
    )
    assert [np.argwhere(c).tolist() for c in through.cut(image_array[0])] == [[[y, x]], [[z, x]], [[z, y]]]


def planes_of(segmentation, total=None, reference=None):
    total = np.zeros(segmentation.shape) if total is None else total
    return find_planes(segmentation, total, reference, {"spacing": (1.0, 1.0, 1.0)}, 1.0)


def test_each_slice_cuts_the_foreground_even_of_a_hollow_structure():
    z, y, x = np.indices((40, 40, 40)) - 20
    shell = (np.abs(np.sqrt(z**2 + y**2 + x**2) - 12) < 1).astype(np.uint8)
    assert all(cut.any() for cut in planes_of(shell).cut(shell))


def test_without_foreground_the_most_uncertain_voxel_is_shown_else_the_middle():
    empty, total = np.zeros((10, 12, 14), np.uint8), np.zeros((10, 12, 14))
    assert planes_of(empty).position == (4, 5, 6)
    total[2, 7, 11] = 0.3
    assert planes_of(empty, total).position == (2, 7, 11)
    truth = np.zeros_like(empty)
    truth[5, 6, 7] = 1
    assert planes_of(empty, total, truth).position == (5, 6, 7)


def test_field_of_view_holds_structure_truth_and_doubt_and_stays_inside():
    segmentation, total = np.zeros((100, 100, 100), np.uint8), np.zeros((100, 100, 100))
    segmentation[2:12, 40:60, 40:60] = 1
    total[50, 50, 70] = 0.9
    box = planes_of(segmentation, total).box
    assert all(0 <= b.start < b.stop <= 100 for b in box)
    assert box[0].start == 0
    assert box[0].stop > 50
    assert box[2].stop > 70
    assert box[1].stop - box[1].start < 100  # a cut-out, not the whole image


def test_field_of_view_of_a_thin_structure_is_not_thin():
    segmentation = np.zeros((100, 100, 100), np.uint8)
    segmentation[20:80, 50, 50] = 1
    lengths = [b.stop - b.start for b in planes_of(segmentation).box]
    assert lengths == [90, 63, 63]  # half as much again, and 0.7 of that


@pytest.mark.parametrize(("labels", "scale"), [
    ({"background": 0, "a": 1}, 1.0),
    ({"background": 0, "a": 1, "b": 2, "c": 3}, 0.5),
    ({"background": 0, "whole": [1, 2], "core": 2}, 0.5),
    ({"background": 0, "a": 1, "ignore": 2}, 1.0),
])  # fmt: skip
def test_colour_scale_ends_where_two_labels_are_equally_likely(labels, scale):
    assert full_scale({"labels": labels}) == pytest.approx(scale)


def test_large_volumes_show_fewer_samples():
    assert (max_samples_drawn(31 * 40 * 24), max_samples_drawn(182 * 218 * 182), max_samples_drawn(512**3)) == (16, 8, 4)


def test_slices_hold_what_the_files_hold(predictions, image_files, phantom_dataset):
    case, dataset_json = "phantom_008", json.loads((predictions / "dataset.json").read_text())
    reference = phantom_dataset / "labelsTs" / f"{case}.nii.gz"
    views = read_views(predictions, case, image_files[case][0], dataset_json, reference)
    label_file = predictions / f"{case}.nii.gz"
    labels, properties = SimpleITKIO().read_seg(str(label_file))
    read = {
        "image": image_files[case][0],
        "reference": reference,
        "total": predictions / "uncertainty" / f"{case}_total.nii.gz",
        "epistemic": predictions / "uncertainty" / f"{case}_epistemic.nii.gz",
    }
    volumes = {name: SimpleITKIO().read_images([str(file)])[0][0] for name, file in read.items()}
    planes = find_planes(labels[0], volumes["total"], volumes["reference"], properties, full_scale(dataset_json))
    for i, view in enumerate(views):
        np.testing.assert_array_equal(view.segmentation, planes.cut(labels[0])[i])
        np.testing.assert_array_equal(view.image, planes.cut(volumes["image"])[i])
        np.testing.assert_array_equal(view.reference, planes.cut(volumes["reference"])[i])
        np.testing.assert_array_equal(view.maps["total"], planes.cut(volumes["total"])[i])
        np.testing.assert_array_equal(view.maps["epistemic"], planes.cut(volumes["epistemic"])[i])
        assert list(view.maps) == ["total", "aleatoric", "epistemic"]
        assert len(view.samples) == 4
    last = SimpleITKIO().read_seg(str(predictions / "samples" / f"{case}_s03.nii.gz"))[0][0]
    np.testing.assert_array_equal(views[1].samples[3], planes.cut(last)[1])


def test_with_one_fold_the_aleatoric_map_is_not_read_again(predictions, image_files):
    (predictions / "uncertainty" / "phantom_008_epistemic.nii.gz").unlink()
    dataset_json = json.loads((predictions / "dataset.json").read_text())
    views = read_views(predictions, "phantom_008", image_files["phantom_008"][0], dataset_json)
    assert [list(view.maps) for view in views] == [["total"]] * 3
    assert views[0].reference is None


def test_files_other_than_the_samples_of_a_case_are_not_taken(tmp_path):
    (tmp_path / "samples").mkdir()
    for name in ("a_s01", "a_s00", "ab_s00", "a_s00_s00", "a_sx"):
        (tmp_path / "samples" / f"{name}.nii.gz").touch()
    (tmp_path / "samples" / "a_s02.nii.gz.tmp").touch()
    assert [f.name for f in sample_files(tmp_path, "a", ".nii.gz")] == ["a_s00.nii.gz", "a_s01.nii.gz"]


def test_a_colour_photograph_is_shown_as_the_mean_of_its_colours(photograph):
    out, image = photograph(".png")
    colours = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(colours).save(image)
    (view,) = read_views(out, "case_000", image, json.loads((out / "dataset.json").read_text()))
    np.testing.assert_allclose(view.image, colours.mean(-1), rtol=1e-5)


@pytest.mark.parametrize("file_ending", [".png", ".tif"])
def test_a_photograph_gives_one_slice_of_all_of_it(photograph, file_ending):
    out, image = photograph(file_ending)
    views = read_views(out, "case_000", image, json.loads((out / "dataset.json").read_text()))
    assert [(v.name, v.image.shape, sorted(v.maps)) for v in views] == [("", (48, 64), ["aleatoric", "epistemic", "total"])]
    total = sitk.ReadImage(str(out / "uncertainty" / "case_000_total.nii.gz"))
    np.testing.assert_allclose(views[0].maps["total"], sitk.GetArrayFromImage(total))


@pytest.mark.parametrize(("named", "reader"), [("NibabelIO", NibabelIO), ("SimpleITKIO", SimpleITKIO), (None, SimpleITKIO)])
def test_the_reader_is_the_one_of_the_plans_else_the_first_of_nnunet(predictions, image_files, named, reader):
    plans = {"configurations": {}} | ({"image_reader_writer": named} if named else {})
    (predictions / "plans.json").write_text(json.dumps(plans))
    dataset_json = json.loads((predictions / "dataset.json").read_text())
    assert type(report_reader(predictions, dataset_json, image_files["phantom_008"][0])) is reader


def test_a_reader_that_is_none_of_nnunets_is_refused(predictions, image_files):
    (predictions / "plans.json").write_text(json.dumps({"configurations": {}, "image_reader_writer": "os.system"}))
    with pytest.raises(UserError, match="image_reader_writer"):
        report_reader(predictions, {"file_ending": ".nii.gz"}, image_files["phantom_008"][0])
