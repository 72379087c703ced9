"""Slices hold what the files hold."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from PIL import Image

from nndiffseg.data.images import read_image
from nndiffseg.errors import UserError
from nndiffseg.report.planes import find_planes
from nndiffseg.report.slices import full_scale, max_samples_drawn, read_views, report_reader, sample_files


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
    shown = read_views(predictions, case, image_files[case][0], dataset_json, reference, frames=5)
    assert (len(shown.frames), shown.middle) == (5, 2)
    views = shown.frames[shown.middle]
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
    doubtful = replace(planes, position=planes.doubtful)
    np.testing.assert_array_equal(shown.doubtful.segmentation, doubtful.cut(labels[0])[planes.doubtful_plane])
    np.testing.assert_array_equal(shown.doubtful.maps["total"], doubtful.cut(volumes["total"])[planes.doubtful_plane])
    last = SimpleITKIO().read_seg(str(predictions / "samples" / f"{case}_s03.nii.gz"))[0][0]
    np.testing.assert_array_equal(views[1].samples[3], planes.cut(last)[1])


def test_frames_cut_the_structures_at_different_places_with_equal_grey_values(predictions, image_files):
    dataset_json = json.loads((predictions / "dataset.json").read_text())
    read = [read_views(predictions, "phantom_008", image_files["phantom_008"][0], dataset_json, frames=n) for n in (1, 7)]
    (alone,), frames = read[0].frames, read[1].frames
    assert read[1].middle == 3
    for i, view in enumerate(alone):
        np.testing.assert_array_equal(frames[3][i].image, view.image)
        np.testing.assert_array_equal(frames[3][i].samples, view.samples)
        assert all(frame[i].segmentation.any() for frame in frames)
        assert len({frame[i].image.tobytes() for frame in frames}) == 7
        assert len({frame[i].window for frame in frames}) == 1


def test_each_file_is_read_once_however_many_frames_there_are(predictions, image_files, monkeypatch):
    read = []
    monkeypatch.setattr(
        "nndiffseg.report.slices.read_image",
        lambda reader, file, **how: read.append(file.name) or read_image(reader, file, **how),
    )
    dataset_json = json.loads((predictions / "dataset.json").read_text())
    read_views(predictions, "phantom_008", image_files["phantom_008"][0], dataset_json, frames=7)
    samples = [f"phantom_008_s{i:02d}.nii.gz" for i in range(4)]
    assert sorted(read) == sorted(["phantom_008.nii.gz", "phantom_008_0000.nii.gz", *samples])


def test_with_one_fold_the_aleatoric_map_is_not_read_again(predictions, image_files):
    (predictions / "uncertainty" / "phantom_008_epistemic.nii.gz").unlink()
    dataset_json = json.loads((predictions / "dataset.json").read_text())
    (views,) = read_views(predictions, "phantom_008", image_files["phantom_008"][0], dataset_json).frames
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
    ((view,),) = read_views(out, "case_000", image, json.loads((out / "dataset.json").read_text())).frames
    np.testing.assert_allclose(view.image, colours.mean(-1), rtol=1e-5)


@pytest.mark.parametrize("file_ending", [".png", ".tif"])
def test_a_photograph_gives_one_slice_of_all_of_it(photograph, file_ending):
    out, image = photograph(file_ending)
    (views,) = read_views(out, "case_000", image, json.loads((out / "dataset.json").read_text()), frames=7).frames
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
