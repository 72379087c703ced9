"""What holds for every conversion of a public dataset, on small copies of the publishers' layouts."""

from __future__ import annotations

import csv
import json
import pickle
import shutil
from functools import partial

import pytest
from dataset_replicas import REPLICAS

from nndiffseg.data.check import check_dataset
from nndiffseg.dataset_conversion.catalogue import converters
from nndiffseg.dataset_conversion.Dataset508_DDTI import DDTI
from nndiffseg.dataset_conversion.raw_dataset import first_difference
from nndiffseg.errors import UserError

NAMES = sorted(REPLICAS)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Name -> source, each made once."""
    made = {}

    def source(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            REPLICAS[name].make(made[name])
        return made[name]

    return source


@pytest.fixture(scope="module")
def converted(sources, tmp_path_factory):
    """Name -> dataset, each converted once."""
    made = {}

    def folder(name):
        if name not in made:
            made[name] = convert(name, sources(name), tmp_path_factory.mktemp("raw"))
        return made[name]

    return folder


def convert(name, source, raw):
    return converters()[name].convert(source, raw, progress=False)


def content_of(folder):
    return json.loads((folder / "dataset.json").read_text())


@pytest.mark.parametrize("name", NAMES)
def test_every_case_is_there_and_passes_the_check(name, converted):
    replica, folder = REPLICAS[name], converted(name)
    assert check_dataset(folder, progress=False) == []
    content = content_of(folder)
    assert content["numTraining"] == replica.training
    assert all(content[key] for key in ("name", "licence", "reference", "release"))
    assert folder.name == f"Dataset{converters()[name].number:03d}_{name}"
    several = (folder / "ratersTr").is_dir()
    images = {p.name[: -len(f"_0000{content['file_ending']}")] for p in folder.glob("imagesTs/*_0000.*")}
    assert len(images) == replica.test
    labels = {p.name if several else p.name[: -len(content["file_ending"])] for p in folder.glob("labelsTs/*")}
    assert labels <= images


@pytest.mark.parametrize("name", NAMES)
def test_no_fold_divides_a_group(name, converted):
    folder, groups = converted(name), REPLICAS[name].groups
    if groups is None:
        assert not (folder / "cases.csv").exists()
        return
    with (folder / "cases.csv").open(newline="") as stream:
        group = {row["case"]: row["group"] for row in csv.DictReader(stream)}
    assert len(set(group.values())) == groups
    folds = json.loads((folder / "splits_final.json").read_text())
    assert len(folds) == min(5, groups)
    for fold in folds:
        assert fold["val"]
        assert not {group[c] for c in fold["train"]} & {group[c] for c in fold["val"]}


@pytest.mark.parametrize("name", NAMES)
def test_an_incomplete_download_is_converted_and_said_so(name, converted):
    (first, *_) = content_of(converted(name))["remarks"]
    assert first.startswith(name)
    assert "(published: " in first


@pytest.mark.parametrize("name", NAMES)
def test_half_a_case_is_refused_and_nothing_written(name, sources, tmp_path):
    for kind in ("image", "label"):
        source = shutil.copytree(sources(name), tmp_path / kind)
        gone = sorted(source.glob(getattr(REPLICAS[name], kind)))
        assert gone
        for file in gone:
            file.unlink()
        with pytest.raises(UserError, match=r"has no label|has no image|has 1 of the 2 files of a label"):
            convert(name, source, tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_strange_file_changes_nothing_but_is_named(name, sources, converted, tmp_path):
    replica, first = REPLICAS[name], converted(name)
    source = shutil.copytree(sources(name), tmp_path / "source")
    shutil.copy(source / replica.image, source / replica.extra)
    (source / "notes.txt").write_text("of the user")
    folder = convert(name, source, tmp_path)
    remarks = content_of(folder)["remarks"]
    assert any(replica.extra in remark for remark in remarks)
    assert not any("notes.txt" in remark for remark in remarks)
    shutil.copy(first / "dataset.json", folder)
    assert first_difference(first, folder) is None


def test_the_same_files_give_the_same_dataset_and_others_do_not(sources, tmp_path):
    source = shutil.copytree(sources("TN3K"), tmp_path / "source")
    inode = convert("TN3K", source, tmp_path / "raw").stat().st_ino
    assert convert("TN3K", source, tmp_path / "raw").stat().st_ino == inode
    shutil.copy(source / "trainval-mask/0000.jpg", source / "trainval-mask/0001.jpg")
    shutil.copy(source / "trainval-image/0000.jpg", source / "trainval-image/0001.jpg")
    with pytest.raises(UserError, match=r"exists already and its imagesTr/trainval_0001_0000\.png is another; add --overwrite"):
        convert("TN3K", source, tmp_path / "raw")
    assert converters()["TN3K"].convert(source, tmp_path / "raw", overwrite=True, progress=False).stat().st_ino != inode


@pytest.mark.parametrize("name", NAMES)
def test_another_folder_is_refused_with_what_is_missing(name, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=rf"empty holds no .* of {name}, such as .*; give the folder"):
        convert(name, tmp_path / "empty", tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


def test_worker_processes_can_be_given_every_dataset():
    for converter in converters().values():
        if isinstance(converter.convert, partial):
            dataset = converter.convert.func.__self__
            assert pickle.loads(pickle.dumps(dataset)) == dataset


@pytest.mark.slow
def test_worker_processes_write_the_same(sources, converted, tmp_path):
    folder = DDTI.convert(sources("DDTI"), tmp_path, progress=False, processes=2)
    assert first_difference(folder, converted("DDTI")) is None
