"""Channels and structures as dataset.json names them."""

from __future__ import annotations

import numpy as np
import pytest
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nndiffseg.data.dataset_json import channel_names, check_region_order, structures_of
from nndiffseg.errors import UserError


def test_channels_come_in_the_order_of_their_numbers():
    names = {str(i): f"channel {i}" for i in (10, 2, 0, 1, 3, 4, 5, 6, 7, 8, 9)}
    assert channel_names({"channel_names": names}) == [f"channel {i}" for i in range(11)]


def test_the_old_key_is_read_where_the_new_one_is_missing():
    assert channel_names({"modality": {"1": "T2", "0": "T1"}}) == ["T1", "T2"]
    assert channel_names({"channel_names": {"0": "CT"}, "modality": {"0": "MRI"}}) == ["CT"]


def test_structures_leave_out_background_and_ignore_label_and_keep_regions():
    labels = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    assert structures_of({"labels": labels}) == {"whole": (1, 2), "core": (2,)}


def test_structures_keep_the_order_of_dataset_json():
    assert list(structures_of({"labels": {"background": 0, "b": 2, "a": 1}})) == ["b", "a"]


@pytest.mark.parametrize(  # row 01
    ("names", "words"),
    [
        ({"R": 0, "G": 1, "B": 2}, 'write {"0": "R", "1": "G", "2": "B"}'),
        ({"T1": "a", "T2": "b"}, 'write {"0": "a", "1": "b"}'),
        ({"0": "a", "2": "b"}, 'write {"0": "a", "1": "b"}'),
        ({"": "a"}, 'write {"0": "a"}'),
        ({"0": 0}, "give each channel a name"),
        ({"0": ""}, "give each channel a name"),
        (["CT"], "has no channel_names"),
    ],
)
def test_channels_that_are_not_numbered_are_told(names, words):
    with pytest.raises(UserError) as error:
        channel_names({"channel_names": names})
    assert words in str(error.value) and "\n" not in str(error.value)


WHOLE, CORE, ENHANCING = [1, 2, 3, 4], [1, 2, 3], 1


def painted(regions: dict, order: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and what nnU-Net writes for a perfect prediction of voxels of each label."""
    truth = np.arange(max(np.max(r) for r in regions.values()) + 1)
    probabilities = np.stack([np.isin(truth, r) for r in regions.values() if r != 0]).astype(float)
    manager = LabelManager(regions, order)
    return truth, np.asarray(manager.convert_probabilities_to_segmentation(probabilities[:, None]))[0]


@pytest.mark.parametrize(  # row 10
    ("regions", "order", "proposal"),
    [
        ({"whole": WHOLE, "core": CORE, "enhancing": ENHANCING}, [1, 2, 3], "write [4, 3, 1]"),
        ({"whole": WHOLE, "core": CORE, "enhancing": ENHANCING}, [4, 3, 1], None),
        ({"whole": WHOLE, "core": CORE, "enhancing": ENHANCING}, [4, 2, 1], None),
        ({"whole": [1, 2], "core": [2]}, [1, 2], None),
        ({"whole": [1, 2], "core": [2]}, [2, 1], "write [1, 2]"),
        ({"core": [2], "whole": [1, 2]}, [2, 1], "from the largest to the smallest"),
        ({"a": [1, 2], "b": [2, 3]}, [1, 3], "from the largest to the smallest"),
        ({"a": [1, 2], "b": [3, 4]}, [1, 4], None),
        ({"a": [1, 2], "b": [3]}, [3, 1], "write [2, 3]"),
    ],
)
def test_an_order_must_give_every_region_back(regions, order, proposal):
    labels = {"background": 0, **regions}
    truth, written = painted(labels, order)
    right = all((np.isin(truth, r) == np.isin(written, r)).all() for r in regions.values())
    assert right == (proposal is None)
    content = {"labels": labels, "regions_class_order": order}
    if right:
        check_region_order(content, "dataset.json")
        return
    with pytest.raises(UserError) as error:
        check_region_order(content, "dataset.json")
    assert proposal in str(error.value) and "does not give the regions back" in str(error.value)


@pytest.mark.parametrize("order", [None, [], [1], [1, 2, 3], "12", [1, "2"], [True, 2]])
def test_regions_need_an_order(order):
    with pytest.raises(UserError, match="must list 2 labels, one for each region; write"):
        check_region_order({"labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": order}, "x")
    check_region_order({"labels": {"background": 0, "a": 1, "b": 2}, "regions_class_order": order}, "x")
