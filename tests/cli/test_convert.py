"""``nndiffseg_convert``: names, list, remarks, exit codes, and that a second call changes nothing."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil

import pytest
from dataset_replicas import REPLICAS
from replica_files import colours, picture, square

from nndiffseg.cli import convert, plan_and_preprocess
from nndiffseg.dataset_conversion.catalogue import BY_NNUNET, converters


@pytest.fixture(scope="module")
def kidneys(tmp_path_factory):
    source = tmp_path_factory.mktemp("qubiq")
    REPLICAS["QUBIQ-kidney"].make(source)
    return source


def test_the_list_names_every_dataset_with_task_licence_and_place(capsys):
    assert convert.main(["--list"]) == 0
    text = capsys.readouterr().out
    for entry in (*converters().values(), *BY_NNUNET):
        assert all(part in text for part in (entry.name, entry.task, entry.licence, entry.get))


def test_names_and_numbers_are_unique():
    names = [c.casefold() for c in (*converters(), *(e.name for e in BY_NNUNET))]
    assert len(set(names)) == len(names) == len(converters()) + len(BY_NNUNET)
    numbers = [c.number for c in converters().values()]
    assert len(set(numbers)) == len(numbers)
    assert all(0 < n < 1000 for n in numbers)


def test_a_dataset_is_written_to_the_raw_folder_and_a_second_call_says_so(kidneys, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("nnUNet_raw", raising=False)
    words = ["qubiq-kidney", str(kidneys), "-d", "77", "--no_pbar"]
    assert convert.main(words) == 0
    target = tmp_path / "nndiffseg_data" / "raw" / "Dataset077_QUBIQ-kidney"
    assert json.loads((target / "dataset.json").read_text())["numTraining"] == 6
    out = capsys.readouterr().out
    assert "Note: QUBIQ-kidney has here 2 training cases (published: 20) and 1 validation cases (published: 4)" in out
    assert "Wrote nndiffseg_data/raw/Dataset077_QUBIQ-kidney. Next: nndiffseg_plan_and_preprocess -d 77" in out
    inode = target.stat().st_ino
    assert convert.main(words) == 0
    assert "is there already, with the very same files" in capsys.readouterr().out
    assert target.stat().st_ino == inode


def test_other_files_do_not_replace_a_dataset_unless_asked_to(kidneys, tmp_path, capsys):
    source = shutil.copytree(kidneys, tmp_path / "source")
    words = ["QUBIQ-kidney", str(source), "--raw", str(tmp_path / "raw"), "--no_pbar"]
    assert convert.main(words) == 0
    case = source / "training_data_v3_QC/kidney/Training/case02"
    shutil.copy(case / "task01_seg01.nii.gz", case / "task01_seg02.nii.gz")
    capsys.readouterr()
    assert convert.main(words) == 2
    error = capsys.readouterr().err
    assert "exists already and its" in error
    assert error.count("\n") == 1
    assert convert.main([*words, "--overwrite"]) == 0
    assert "Wrote" in capsys.readouterr().out


def test_names_of_foreign_files_cannot_control_the_terminal(tmp_path, capsys):
    REPLICAS["DDTI"].make(tmp_path / "source")
    for name in (b"\x1b[2J\nerror.PNG", b"\xff\xfe.PNG"):
        with open(os.path.join(os.fsencode(tmp_path / "source" / "1_or_data" / "image"), name), "wb"):
            pass
    assert convert.main(["DDTI", str(tmp_path / "source"), "--raw", str(tmp_path / "raw"), "--no_pbar"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert out.count("\n") == 3  # two notes and where it was written
    assert "Left out, since their names are none of the dataset's: " in out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["GlaS", "nowhere"], "nowhere is not a folder; give the folder of the downloaded and unpacked dataset."),
        (["GlaS", "."], "holds no training images of GlaS, such as train_1.bmp; give the folder that holds them."),
        (["MoNuSg", "."], "Unknown dataset MoNuSg (did you mean MoNuSeg?)"),
        (["GlaS", ".", "-d", "0"], "-d is the number of a dataset; give one from 1 to 999."),
        (["GlaS", ".", "--size", "64"], "The images of GlaS keep their size; leave out --size."),
        (["MultiraterCells", ".", "--size", "2"], "--size is in pixels; give 8 or more."),
        (["MultiraterCells", "."], "crops.csv is missing"),
        (["GlaS"], "Give the folder of GlaS too; it comes from https://warwick.ac.uk"),
        ([], "Give the NAME of a dataset and its folder; nndiffseg_convert --list shows all."),
        (["KiTS23", "there"], "type python -m nnunetv2.dataset_conversion.Dataset220_KiTS2023 there."),
        (["msd"], "type nnUNetv2_convert_MSD_dataset -i SOURCE."),
        (["BraTS21"], "write its folder into brats_data_dir of nnunetv2/dataset_conversion/Dataset137_BraTS21.py, then python"),
    ],
)
def test_wrong_calls_end_with_one_sentence(words, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert convert.main([*words, "--raw", "raw"]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert not (tmp_path / "raw").exists()


def test_nnunets_converters_are_where_the_sentences_say():
    for module in re.findall(r"nnunetv2\.dataset_conversion\.([\w-]+)", " ".join(e.how for e in BY_NNUNET)):
        assert importlib.util.find_spec(f"nnunetv2.dataset_conversion.{module}") is not None


def test_the_older_conversions_have_names_and_a_size(chase_source, tmp_path, capsys):
    words = ["CHASEDB1", str(chase_source), "--size", "20", "-d", "113", "--raw", str(tmp_path), "--no_pbar"]
    assert convert.main(words) == 0
    assert (tmp_path / "Dataset113_CHASEDB1_20px" / "dataset.json").is_file()
    assert convert.main(words) == 0
    assert "is there already, with the very same files" in capsys.readouterr().out


@pytest.fixture
def chase_source(tmp_path):
    """Both eyes of five children as CHASE_DB1 is published."""
    for child in range(1, 6):
        for eye in "LR":
            picture(tmp_path / f"source/Image_{child:02d}{eye}.jpg", colours(child, 32))
            for observer in ("1stHO", "2ndHO"):
                picture(tmp_path / f"source/Image_{child:02d}{eye}_{observer}.png", square(255, side=32))
    return tmp_path / "source"


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(REPLICAS))
def test_every_result_can_be_planned_and_preprocessed(name, tmp_path):
    REPLICAS[name].make(tmp_path / "source")
    raw = tmp_path / "raw"
    assert convert.main([name, str(tmp_path / "source"), "--raw", str(raw), "--no_pbar"]) == 0
    (dataset,) = raw.iterdir()
    dimensions = "3d_fullres" if "3D" in converters()[name].task else "2d"
    words = (
        f"-d {converters()[name].number} -c {dimensions} -pl DiffSegPlannerS --verify_dataset_integrity --no_pbar -np 1 "
        f"--raw {raw} --preprocessed {tmp_path / 'preprocessed'} --results {tmp_path / 'results'}"
    )
    assert plan_and_preprocess.main(words.split()) == 0
    number = json.loads((dataset / "dataset.json").read_text())["numTraining"]
    assert len(list((tmp_path / "preprocessed").glob(f"{dataset.name}/*/*.pkl"))) == number
