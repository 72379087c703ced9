"""XML of somebody else cannot grow in memory, read other files, or end in a traceback."""

from __future__ import annotations

import pytest

from nndiffseg.dataset_conversion import xml_file
from nndiffseg.dataset_conversion.xml_file import read_xml
from nndiffseg.errors import UserError

LAUGHS = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 12))


def test_elements_are_read_without_their_namespace(tmp_path):
    file = tmp_path / "a.xml"
    file.write_text('<a xmlns="http://x" xmlns:y="http://y"><y:b k="1">text</y:b></a>')
    root = read_xml(file)
    assert root.tag == "a"
    assert root.find("b").get("k") == "1"
    assert root.findtext("b") == "text"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (f'<!DOCTYPE a [<!ENTITY l0 "ha">{LAUGHS}]><a>&l11;</a>', "declares entities"),
        ('<!DOCTYPE a [<!ENTITY x SYSTEM "secret.txt">]><a>&x;</a>', "declares entities"),
        ('<!DOCTYPE a [<!ENTITY % p SYSTEM "p.dtd"> %p;]><a/>', "declares entities"),
        ("<a><b></a>", "cannot be read as XML"),
        ("", "cannot be read as XML"),
        ("no xml", "cannot be read as XML"),
        ('<?xml version="1.0" encoding="x-nonsense"?><a/>', "cannot be read as XML"),
    ],
)
def test_attacks_and_damage_are_refused_in_one_sentence(text, sentence, tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "a.xml").write_text(text)
    with pytest.raises(UserError, match=sentence) as caught:
        read_xml(tmp_path / "a.xml")
    assert "secret\n" not in str(caught.value)


def test_missing_and_huge_files_are_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"b\.xml is missing"):
        read_xml(tmp_path / "b.xml")
    monkeypatch.setattr(xml_file, "LARGEST", 3)
    (tmp_path / "a.xml").write_text("<a/>")
    with pytest.raises(UserError, match="far more than any annotation"):
        read_xml(tmp_path / "a.xml")


def test_deep_nesting_is_no_danger(tmp_path):
    (tmp_path / "a.xml").write_text("<a>" * 50_000 + "</a>" * 50_000)
    assert sum(1 for _ in read_xml(tmp_path / "a.xml").iter("a")) == 50_000
