"""Label maps of a case: where it is measured, and what is ignored."""

from __future__ import annotations

import numpy as np
import pytest
from prediction_files import write_labels

from nndiffseg.data.images import find_reader
from nndiffseg.errors import UserError
from nndiffseg.uncertainty.case_labels import DILATION, CaseLabels, Setting, read_labels


def labels_of(segmentation: np.ndarray, reference: np.ndarray, ignored: np.ndarray) -> CaseLabels:
    none = np.zeros((0, *segmentation.shape), np.uint8)
    return CaseLabels(segmentation, reference[None], none, ignored, (1.0, 1.0, 1.0), "")


def test_the_region_reaches_exactly_so_many_voxels_and_leaves_out_ignored_ones():
    reference, segmentation, ignored = (np.zeros((1, 21, 21), dtype) for dtype in (np.uint8, np.uint8, bool))
    reference[0, 10, 10] = 1
    region = labels_of(segmentation, reference, ignored).region
    assert region[0, 10, 10 + DILATION] and not region[0, 10, 11 + DILATION]
    segmentation[0, 10, 14] = 2
    assert labels_of(segmentation, reference, ignored).region[0, 10, 14 + DILATION]
    ignored[0, 10, 12] = True
    assert not labels_of(segmentation, reference, ignored).region[0, 10, 12]


def test_what_one_annotator_leaves_open_is_background_for_all(tmp_path):
    content = {"labels": {"background": 0, "a": 1, "ignore": 2}, "file_ending": ".nii.gz"}
    maps = {"x": [1, 1, 0, 1], "first": [1, 2, 0, 0], "second": [1, 1, 2, 0], "samples/x_s00": [0, 1, 1, 1]}
    for name, values in maps.items():
        write_labels(np.array([[values]], np.uint8), tmp_path / f"{name}.nii.gz")
    reader = find_reader(content, tmp_path / "x.nii.gz")
    found = read_labels(Setting(tmp_path, content, reader), "x", [tmp_path / f"{n}.nii.gz" for n in ("first", "second")])
    assert found.ignored.ravel().tolist() == [False, True, True, False]
    assert found.segmentation.ravel().tolist() == [1, 0, 0, 1]
    assert found.references.reshape(2, 4).tolist() == [[1, 0, 0, 0], [1, 0, 0, 0]]
    assert found.samples.ravel().tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("values", [[0.0, 0.5], [0.0, -1.0], [0.0, 300.0]])
def test_values_that_are_no_label_are_refused(tmp_path, values):
    content = {"labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz"}
    write_labels(np.array([[values]], np.float32), tmp_path / "x.nii.gz")
    with pytest.raises(UserError, match="holds the label"):
        read_labels(Setting(tmp_path, content, find_reader(content, tmp_path / "x.nii.gz")), "x", [tmp_path / "x.nii.gz"])


def test_probabilities_are_in_the_order_of_labels_and_of_regions_as_listed(tmp_path):
    labels = {"background": 0, "b": 2, "a": 1}
    setting = Setting(tmp_path, {"labels": labels}, type(None))
    assert (setting.heads, setting.channels) == ([(0,), (1,), (2,)], [2, 1])
    regions = Setting(tmp_path, {"labels": {"background": 0, "core": [2], "whole": [1, 2]}}, type(None))
    assert (regions.heads, regions.channels) == ([(2,), (1, 2)], [0, 1])
