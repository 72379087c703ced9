"""TN3K: the publishers' folds are taken where all is there, and only there."""

from __future__ import annotations

import json

import pytest
from dataset_replicas import tn3k

from nndiffseg.dataset_conversion.Dataset507_TN3K import FILES, published_folds
from nndiffseg.errors import UserError


@pytest.fixture
def source(tmp_path):
    tn3k(tmp_path)
    for k, name in enumerate(FILES):
        numbers = list(range(2879))
        (tmp_path / name).write_text(json.dumps({"train": [n for n in numbers if n % 5 != k], "val": numbers[k::5]}))
    return tmp_path


NAMES = [f"trainval_{n:04d}" for n in range(2879)]


def test_numbers_of_the_lists_become_names(source):
    folds = published_folds(source, NAMES)
    assert len(folds) == 5
    assert folds[2]["val"][:3] == ["trainval_0002", "trainval_0007", "trainval_0012"]
    assert sorted(folds[2]["train"] + folds[2]["val"]) == NAMES


def test_without_all_images_or_files_there_are_none(source):
    assert published_folds(source, NAMES[:100]) is None
    (source / FILES[3]).unlink()
    assert published_folds(source, NAMES) is None


@pytest.mark.parametrize("text", ['{"train": [1, 9999], "val": []}', '{"train": 3, "val": []}', "[1]", '{"val": []}'])
def test_broken_lists_are_refused(source, text):
    (source / FILES[0]).write_text(text)
    with pytest.raises(UserError, match=r"fold0\.json does not list the cases of a fold"):
        published_folds(source, NAMES)
