"""dataset.json of strangers is as nnU-Net's format says, or refused in one sentence."""

from __future__ import annotations

from typing import Any

import pytest

from nndiffseg.data.dataset_schema import check_dataset_json
from nndiffseg.errors import UserError

CONTENT: dict[str, Any] = {
    "channel_names": {"0": "T1", "1": "T2"},
    "labels": {"background": 0, "whole": [1, 2], "core": 2},
    "regions_class_order": [1, 2],
    "numTraining": 3,
    "file_ending": ".nii.gz",
}


def test_a_sound_one_is_given_back_unchanged():
    for content in (CONTENT, CONTENT | {"modality": CONTENT["channel_names"], "somebody": {"else's": [None]}}):
        assert check_dataset_json(content, "it") is content
    listed = {"case": {"images": ["../a.nii.gz"], "label": "b.nii.gz"}}
    check_dataset_json(CONTENT | {"dataset": listed}, "it")


def test_an_evaluation_needs_no_channels():
    content = {k: v for k, v in CONTENT.items() if k != "channel_names"}
    check_dataset_json(content, "it", channels=False)
    with pytest.raises(UserError, match="has no channel_names"):
        check_dataset_json(content, "it")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": []}, "invalid labels"),
        ({"labels": {}}, "invalid labels"),
        ({"labels": {"background": 0, "organ": "1"}}, "invalid labels"),
        ({"labels": {"background": 0, "organ": 1e9}}, "invalid labels"),
        ({"labels": {"background": 0, "organ": -1}}, "invalid labels"),
        ({"labels": {"background": 0, "organ": {}}}, "invalid labels"),
        ({"labels": {"organ": 1}, "regions_class_order": None}, "invalid labels"),
        ({"labels": {"background": 1, "organ": 0}}, "invalid labels"),
        ({"labels": {"background": 0, "organ": 60000}}, "without gaps"),
        ({"regions_class_order": None}, "invalid labels"),
        ({"regions_class_order": [1]}, "invalid labels"),
        ({"regions_class_order": "12"}, "invalid regions_class_order"),
        ({"channel_names": {"T1": "0"}}, "whose keys must be the numbers of the channels"),
        ({"channel_names": {"1": "T1"}}, "whose keys must be the numbers of the channels"),
        ({"channel_names": {"0": 3}}, "invalid channel_names"),
        ({"channel_names": ["T1"]}, "invalid channel_names"),
        ({"numTraining": "3"}, "invalid numTraining"),
        ({"numTraining": 10**12}, "invalid numTraining"),
        ({"dataset": {"case": {"images": "a.nii.gz", "label": "b"}}}, "invalid dataset.case.images"),
        ({"dataset": {"case": {"images": []}}}, "invalid dataset.case.images"),
        ({"dataset": []}, "invalid dataset"),
        ({"file_ending": "/../x"}, "invalid file_ending"),
        ({"file_ending": None}, "invalid file_ending"),
        ({"overwrite_image_reader_writer": "os.system"}, "unknown reader"),
    ],
)
def test_what_nnunets_format_does_not_say_is_refused(change, message):
    with pytest.raises(UserError, match=message) as raised:
        check_dataset_json(CONTENT | change, "dataset.json", "copy it again")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [None, [], "text", 3, {}])
def test_what_is_no_object_with_labels_is_refused(content):
    with pytest.raises(UserError, match="object that names the labels; copy it again"):
        check_dataset_json(content, "dataset.json", "copy it again")
