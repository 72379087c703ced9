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


def test_another_dataset_in_its_place_stays_and_is_told(tmp_path):
    old = tmp_path / "Dataset500_X"
    old.mkdir()
    (old / "a").write_text("old")
    os.utime(old / "a", (1, 1))
    for name, content, sentence in (
        ("a", "new", "exists already and its a is another; add --overwrite"),
        ("b", "old", "exists already and holds a, which this conversion does not write"),
    ):
        with pytest.raises(UserError, match=sentence), raw_dataset.new_dataset(tmp_path, "Dataset500_X") as folder:
            (folder / name).write_text(content)
            os.utime(folder / name, (1, 1))  # the same size and time do not make the same file
    with (
        pytest.raises(UserError, match="exists already and lacks b"),
        raw_dataset.new_dataset(tmp_path, "Dataset500_X") as folder,
    ):
        (folder / "a").write_text("old")
        (folder / "b").write_text("old")
    assert [p.name for p in tmp_path.iterdir()] == ["Dataset500_X"]
    assert (old / "a").read_text() == "old"


def test_the_very_same_dataset_stays_as_it_is(tmp_path):
    old = tmp_path / "Dataset500_X"
    old.mkdir()
    (old / "a").write_text("same")
    (old / ".DS_Store").write_text("of macOS")
    inode = old.stat().st_ino
    with raw_dataset.new_dataset(tmp_path, "Dataset500_X") as folder:
        (folder / "a").write_text("same")
    assert old.stat().st_ino == inode
    assert [p.name for p in tmp_path.iterdir()] == ["Dataset500_X"]


def test_taken_ids_are_refused(tmp_path):
    (tmp_path / "Dataset500_X").mkdir()
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


def test_tables_are_read_with_spaces_dropped_and_what_they_lack_is_named(tmp_path):
    table = tmp_path / "Grade.csv"
    table.write_bytes(b"\xef\xbb\xbfname,patient ID, grade (GlaS)\r\ntestA_1, 4, benign\r\n")
    assert raw_dataset.read_csv(table, ("name", "patient ID")) == [
        {"name": "testA_1", "patient ID": "4", "grade (GlaS)": "benign"}
    ]
    with pytest.raises(UserError, match="lacks the column age"):
        raw_dataset.read_csv(table, ("age",))
    table.write_bytes(b"\xff\xfe\x00name")
    with pytest.raises(UserError, match="is no table of text"):
        raw_dataset.read_csv(table, ("name",))
