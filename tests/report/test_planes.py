"""Planes are upright and cut what matters."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nndiffseg.report.planes import find_planes


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


def planes_of(segmentation, total=None, reference=None, frames=1, spacing=(1.0, 1.0, 1.0)):
    total = np.zeros(segmentation.shape) if total is None else total
    return find_planes(segmentation, total, reference, {"spacing": spacing}, 1.0, frames)


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


def test_frames_spread_over_the_foreground_around_its_median():
    block = np.zeros((60, 60, 60), np.uint8)
    block[10:45, 10:45, 10:45] = 1
    block[10:17, 20:45, 20:45] = 0  # the median along the first axis moves up
    planes = planes_of(block, frames=7)
    assert planes.frames[3] == planes.position == planes_of(block).position
    assert [len({frame[axis] for frame in planes.frames}) for axis in range(3)] == [7, 7, 7]
    gaps = np.diff(planes.frames, axis=0)
    assert (gaps > 0).all()
    assert (np.ptp(gaps[:3], axis=0) <= 1).all() and (np.ptp(gaps[3:], axis=0) <= 1).all()  # even on both sides
    first, last = np.array(planes.frames[0]), np.array(planes.frames[-1])
    assert (first > 10).all() and (first < 15).all() and (last < 44).all() and (last > 39).all()


def test_no_frame_lies_in_the_gap_between_two_structures():
    apart = np.zeros((90, 20, 20), np.uint8)
    apart[5:15, 5:15, 5:15] = 1
    apart[75:85, 5:15, 5:15] = 1
    places = [frame[0] for frame in planes_of(apart, frames=7).frames]
    assert len(set(places)) == 7
    assert all(5 <= p < 15 or 75 <= p < 85 for p in places)


@pytest.mark.parametrize(("thickness", "frames"), [(1, 1), (3, 3), (40, 7)])
def test_a_small_structure_has_fewer_frames(thickness, frames):
    block = np.zeros((60, 60, 60), np.uint8)
    block[10 : 10 + thickness, 10 : 10 + thickness, 10 : 10 + thickness] = 1
    planes = planes_of(block, frames=7)
    assert len(planes.frames) == frames
    assert planes.frames[frames // 2] == planes.position


@pytest.mark.parametrize(("spacing", "plane"), [((1.0, 1.0, 1.0), 0), ((9.0, 1.0, 1.0), 1), ((1.0, 1.0, 9.0), 0)])
def test_the_doubtful_slice_has_the_largest_undecided_area(spacing, plane):
    total = np.zeros((30, 30, 30))
    total[7, 5:15, 5:20] = 0.9
    total[5:8, 9, 9] = 0.8
    total[20, :, :] = 0.1  # background, however large
    planes = planes_of(np.zeros((30, 30, 30), np.uint8), total, spacing=spacing)
    assert planes.doubtful == (7, 9, 9)
    assert planes.doubtful_plane == plane


def test_without_doubt_the_samples_are_shown_where_the_structure_is_largest():
    block = np.zeros((30, 30, 30), np.uint8)
    block[4:9, 10:20, 10:20] = 1
    block[6, 8:22, 8:22] = 1
    planes = planes_of(block)
    assert (planes.doubtful[0], planes.doubtful_plane) == (6, 0)
