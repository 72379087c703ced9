"""The zip file of a model: what nnU-Net packs, with the calibration, without traces of the machine."""

from __future__ import annotations

import json
import os
import shutil
import zipfile

import pytest
import torch
from nnunetv2.model_sharing.model_export import export_pretrained_model
from stock_folder import PLANS, TRAINER, write_stock_folder

from nndiffseg.data.model_json import ModelNames
from nndiffseg.errors import UserError
from nndiffseg.export.zip_file import model_entries, survey, write_zip

FINAL = ["checkpoint_final.pth"]


@pytest.fixture
def stock(tmp_path):
    return write_stock_folder(tmp_path / "results")


def pack(folder, out, folds=("0",), checkpoints=FINAL):
    found = survey(folder, PLANS, folds, checkpoints)
    write_zip(out, model_entries(folder, found.names, folds, checkpoints))
    return zipfile.ZipFile(out)


def test_the_files_are_those_of_nnunets_own_export_and_the_calibration(stock, tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    crossval = stock / "crossval_results_folds_0"
    crossval.mkdir()
    for name in ("summary.json", "postprocessing.pkl", "postprocessing.json"):
        (crossval / name).write_text("{}")
    export_pretrained_model(PLANS["dataset_name"], str(tmp_path / "theirs.zip"), ("2d",), TRAINER, folds=(0,))
    theirs = zipfile.ZipFile(tmp_path / "theirs.zip")
    ours = pack(stock, tmp_path / "ours.zip")
    packed = set(theirs.namelist())
    debug = {name for name in packed if name.endswith("debug.json")}
    assert len(debug) == 1 and set(ours.namelist()) == packed - debug
    for file in (stock / "calibration.json", stock / "fold_0/calibration.json", stock / "fold_0/validation/uncertainty.json"):
        file.write_text("{}")
    more = set(pack(stock, tmp_path / "calibrated.zip").namelist()) - set(ours.namelist())
    top = f"{PLANS['dataset_name']}/{TRAINER}__nnUNetPlans__2d"
    assert more == {
        f"{top}/calibration.json",
        f"{top}/fold_0/calibration.json",
        f"{top}/fold_0/validation/uncertainty.json",
    }


def test_weights_are_packed_as_they_are_and_no_folder_of_the_machine_is(stock, tmp_path):
    archive = pack(stock, tmp_path / "out.zip")
    checkpoint = stock / "fold_0" / FINAL[0]
    top = f"{PLANS['dataset_name']}/{TRAINER}__nnUNetPlans__2d"
    assert archive.read(f"{top}/fold_0/{FINAL[0]}") == checkpoint.read_bytes()
    assert not any(b"somebody" in archive.read(name) or b"secret" in archive.read(name) for name in archive.namelist())
    summary = json.loads(archive.read(f"{top}/fold_0/validation/summary.json"))
    assert summary["metric_per_case"][1]["reference_file"] == "case_1.nii.gz"
    assert summary["metric_per_case"][1]["prediction_file"] == "case_1.nii.gz"
    assert summary["foreground_mean"]["Dice"] == 0.75


def test_members_are_packed_where_they_lie(stock, tmp_path):
    (stock / "fold_0").rename(stock / "fold_all")
    shutil.copytree(stock / "fold_all", stock / "fold_all" / "seed_1")
    packed = {n.split("/", 2)[2] for n in pack(stock, tmp_path / "out.zip", ("all", "all/seed_1")).namelist()}
    first = {name for name in packed if name.startswith("fold_all/") and "seed" not in name}
    assert len(first) == 3 and packed > first | {name.replace("fold_all", "fold_all/seed_1") for name in first}


def test_the_place_in_the_zip_does_not_follow_the_folders_name(stock, tmp_path):
    renamed = stock.rename(tmp_path / "my model")
    assert all(n.startswith("Dataset902_Stock/nnUNet") for n in pack(renamed, tmp_path / "out.zip").namelist())


@pytest.mark.parametrize("name", ["plans.json", "fold_0/checkpoint_final.pth", "fold_0/validation/summary.json"])
def test_a_link_out_of_the_folder_is_not_followed(stock, tmp_path, name):
    elsewhere = tmp_path / "elsewhere"
    shutil.move(stock / name, elsewhere)
    (stock / name).symlink_to(elsewhere)
    with pytest.raises(UserError, match="is a link out of the model folder"):
        pack(stock, tmp_path / "out.zip")
    assert not (tmp_path / "out.zip").exists()


@pytest.mark.parametrize("name", ["plans.json", "dataset.json", "dataset_fingerprint.json", "fold_0/checkpoint_final.pth"])
def test_a_survey_finds_links_before_anything_is_packed(stock, tmp_path, name):
    elsewhere = shutil.move(stock / name, tmp_path / "elsewhere")
    (stock / name).symlink_to(elsewhere)
    with pytest.raises(UserError, match="is a link out of the model folder"):
        survey(stock, PLANS, ["0"], FINAL)


def test_a_link_within_the_folder_is_packed(stock, tmp_path):
    (stock / "fold_0").rename(stock / "first")
    (stock / "fold_0").symlink_to(stock / "first")
    assert any(name.endswith("fold_0/checkpoint_final.pth") for name in pack(stock, tmp_path / "out.zip").namelist())


@pytest.mark.parametrize(
    ("folds", "checkpoints", "message"),
    [
        ((), FINAL, "choose folds"),
        (("3",), FINAL, r"holds no fold_3/checkpoint_final\.pth; it has fold_0/checkpoint_final\.pth"),
        (("0",), ["checkpoint_final.pth", "checkpoint_best.pth"], r"holds no fold_0/checkpoint_best\.pth"),
        (("0",), ["../fold_0/checkpoint_final.pth"], "no name of a checkpoint"),
        (("0/../fold_0",), FINAL, "must be 0 to 4 or all"),
    ],
)
def test_wrong_folds_and_checkpoints_are_told(stock, folds, checkpoints, message):
    with pytest.raises(UserError, match=message):
        survey(stock, PLANS, folds, checkpoints)


def test_what_the_checkpoints_say_is_read_and_damaged_or_mixed_ones_are_refused(stock):
    found = survey(stock, PLANS, ["0"], FINAL)
    assert found.names == ModelNames("Dataset902_Stock", TRAINER, "nnUNetPlans", "2d")
    assert found.stock and found.epochs == {("0", FINAL[0]): 5}
    shutil.copytree(stock / "fold_0", stock / "fold_1")
    file = stock / "fold_1" / FINAL[0]
    content = torch.load(file, weights_only=False) | {"nndiffseg_version": "0.2.0"}
    torch.save(content, file)
    assert not survey(stock, PLANS, ["1"], FINAL).stock
    torch.save(content | {"trainer_name": "nnUNetTrainer"}, file)
    with pytest.raises(UserError, match="of another model than the folds before it"):
        survey(stock, PLANS, ["0", "1"], FINAL)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        survey(stock, PLANS, ["0", "1"], FINAL)


def test_a_zip_is_written_whole_or_not_at_all(tmp_path):
    out = tmp_path / "out.zip"
    write_zip(out, [("a", b"first")])
    before = out.read_bytes()

    def broken():
        yield "b", b"second"
        raise UserError("the third is missing")

    with pytest.raises(UserError):
        write_zip(out, broken())
    assert out.read_bytes() == before and os.listdir(tmp_path) == ["out.zip"]
