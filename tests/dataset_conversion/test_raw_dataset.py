"""A converted dataset appears whole or not at all."""

from __future__ import annotations

import errno
import os

import pytest

from nndiffseg.dataset_conversion import raw_dataset
from nndiffseg.errors import UserError


def test_a_failed_conversion_leaves_nothing_and_keeps_the_old_dataset(tmp_path):
    old = tmp_path / "Dataset500_X"
    old.mkdir()
    (old / "file").write_text("old")
    with pytest.raises(RuntimeError), raw_dataset.new_dataset(tmp_path, "Dataset500_X", overwrite=True) as folder:
        (folder / "file").write_text("new")
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["Dataset500_X"]
    assert (old / "file").read_text() == "old"


def test_overwriting_replaces_the_old_dataset_as_a_whole(tmp_path):
    (tmp_path / "Dataset500_X").mkdir()
    (tmp_path / "Dataset500_X" / "old").write_text("old")
    with raw_dataset.new_dataset(tmp_path, "Dataset500_X", overwrite=True) as folder:
        (folder / "new").write_text("new")
    assert [p.name for p in tmp_path.iterdir()] == ["Dataset500_X"]
    assert [p.name for p in (tmp_path / "Dataset500_X").iterdir()] == ["new"]


def test_existing_datasets_and_taken_ids_are_refused(tmp_path):
    (tmp_path / "Dataset500_X").mkdir()
    with pytest.raises(UserError, match="exists already; add --overwrite"), raw_dataset.new_dataset(tmp_path, "Dataset500_X"):
        pass
    with pytest.raises(UserError, match="id 500 belongs to Dataset500_X"), raw_dataset.new_dataset(tmp_path, "Dataset500_Y"):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["Dataset500_X"]


def test_links_become_copies_where_the_file_system_has_none(tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError(errno.EPERM, "no hard links here")

    (tmp_path / "a").write_text("content")
    monkeypatch.setattr(os, "link", no_links)
    raw_dataset.link(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "content"
