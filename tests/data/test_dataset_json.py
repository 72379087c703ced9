"""Channels and structures as dataset.json names them."""

from __future__ import annotations

from nndiffseg.data.dataset_json import channel_names, structures_of


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
