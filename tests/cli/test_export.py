"""``nndiffseg_export``: nnU-Net installs the zip; the head alone is predicted by an nnU-Net that cannot import nndiffseg."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from stock_folder import write_stock_folder
from tiny_model import model_folder, raw_images, results  # noqa: F401

from nndiffseg.calibration import Calibration
from nndiffseg.cli.export import main
from nndiffseg.export.stock_copy import stock_plans
from nndiffseg.ext_path import ext_path
from nndiffseg.inference.model_folder import load_model

HEAD = "nnUNetTrainer__nnDiffSegPlansS_head__3d_fullres"

#: nnU-Net's own installation and prediction; run in a process of its own, with or without nndiffseg
STOCK = """
import sys, torch
from pathlib import Path
if sys.argv[1] == "alone":
    sys.modules["nndiffseg"] = None
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.model_sharing.model_import import install_model_from_zip_file
from nnunetv2.utilities.file_path_utilities import get_output_folder
_, mode, archive, dataset, trainer, plans, images, out = sys.argv
if mode == "alone":
    try:
        import nndiffseg
    except ImportError:
        pass
    else:
        raise SystemExit("nndiffseg can be imported")
    install_model_from_zip_file(archive)
predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
predictor.initialize_from_trained_model_folder(get_output_folder(dataset, trainer, plans, "3d_fullres"), (0, 1))
cases = [[str(Path(images) / f"case_000_{c:04d}.nii.gz") for c in range(2)]]
predictor.predict_from_files_sequential(cases, [str(Path(out) / "case_000")], save_probabilities=True)
"""


def predict(mode, nnunet_results, out, archive, trainer, plans, images, **environment):
    out.mkdir()
    line = [sys.executable, "-c", STOCK, mode, archive, "Dataset901_Tiny", trainer, plans, images, out]
    variables = os.environ | {"nnUNet_results": str(nnunet_results), **environment}
    done = subprocess.run([str(word) for word in line], env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return (
        sitk.GetArrayFromImage(sitk.ReadImage(str(out / "case_000.nii.gz"))),
        np.load(out / "case_000.npz")["probabilities"],
    )


def names_in(archive: Path) -> set[str]:
    return {name.split("/", 2)[2] for name in zipfile.ZipFile(archive).namelist()}


def test_stock_nnunet_installs_and_predicts_the_head_to_the_last_bit(model_folder, results, raw_images, tmp_path, capsys):  # noqa: F811
    archive = tmp_path / "head.zip"
    assert main([str(model_folder), str(archive), "--nnunet"]) == 0
    out = capsys.readouterr().out
    assert "-d Dataset901_Tiny -c 3d_fullres -tr nnUNetTrainer -p nnDiffSegPlansS_head -f 0 1" in out
    assert f"nnUNetv2_install_pretrained_model_from_zip {archive}" in out
    installed = tmp_path / "results"
    installed.mkdir()
    alone = predict("alone", installed, tmp_path / "alone", archive, "nnUNetTrainer", "nnDiffSegPlansS_head", raw_images)
    ours = predict(
        "with",
        results,
        tmp_path / "with",
        "",
        "nnDiffSegTrainer",
        "nnDiffSegPlansS",
        raw_images,
        nnUNet_extTrainer=str(ext_path()),
    )
    for stock, head in zip(alone, ours, strict=True):
        assert np.array_equal(stock, head)
    assert len(np.unique(alone[0])) > 1 and {p.name for p in (installed / "Dataset901_Tiny").iterdir()} == {HEAD}


def test_the_installed_zip_is_the_model_with_its_calibration(model_folder, tmp_path, monkeypatch, capsys):  # noqa: F811
    from nnunetv2.model_sharing.model_import import install_model_from_zip_file

    folder, archive = tmp_path / "calibrated", tmp_path / "out.zip"
    shutil.copytree(model_folder, folder)
    for place, weight in (("fold_0", 0.25), ("fold_1", 0.75), (".", 0.5)):
        Calibration(weight, groups=4).write(folder / place)
    assert main([str(folder), str(archive)]) == 0
    out = capsys.readouterr().out
    assert "3 of them a calibration" in out and "nndiffseg_predict -i in/ -o out/ -d Dataset901_Tiny" in out
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    install_model_from_zip_file(str(archive))
    installed = tmp_path / "results" / "Dataset901_Tiny" / model_folder.name
    assert [fold.name for fold in load_model(installed).folds] == ["0", "1"]
    for file in ("calibration.json", "fold_0/calibration.json", "fold_1/calibration.json", "fold_1/checkpoint_final.pth"):
        assert (installed / file).read_bytes() == (folder / file).read_bytes()


@pytest.fixture
def rich(model_folder, tmp_path):  # noqa: F811
    """A copy of the model with all that can be packed: a second checkpoint of other weights, raw weights, calibrations ..."""
    folder = tmp_path / "rich"
    shutil.copytree(model_folder, folder)
    for number, fold in enumerate((folder / "fold_0", folder / "fold_1")):
        content = torch.load(fold / "checkpoint_final.pth", weights_only=True) | {"current_epoch": 20 + number}
        content["network_weights_raw"] = {name: torch.zeros_like(w) for name, w in content["network_weights"].items()}
        torch.save(content, fold / "checkpoint_final.pth")
        best = {name: w + 0.125 if w.is_floating_point() else w for name, w in content["network_weights"].items()}
        best_axes = {"current_epoch": 10 + number, "inference_allowed_mirroring_axes": (0, 2)}
        torch.save(content | {"network_weights": best} | best_axes, fold / "checkpoint_best.pth")
        Calibration(0.25, groups=4 + number).write(fold)
    Calibration(0.5, groups=9, folds=("0", "1")).write(folder)
    (folder / "dataset_fingerprint.json").write_text('{"shapes": []}')
    for folds in ("0", "0_1"):
        (folder / f"crossval_results_folds_{folds}").mkdir()
        (folder / f"crossval_results_folds_{folds}" / "postprocessing.json").write_text(json.dumps({"of": folds}))
    return folder


def test_what_is_packed_are_the_chosen_files_to_the_last_byte(rich, tmp_path):
    assert main([str(rich), str(tmp_path / "all.zip"), "-chk", "checkpoint_final.pth", "checkpoint_best.pth"]) == 0
    archive = zipfile.ZipFile(tmp_path / "all.zip")
    packed = {name.split("/", 2)[2]: archive.read(name) for name in archive.namelist()}
    there = {f.relative_to(rich).as_posix(): f.read_bytes() for f in rich.rglob("*") if f.is_file()}
    assert packed == {name: content for name, content in there.items() if not name.startswith("crossval_results_folds_0/")}
    assert main([str(rich), str(tmp_path / "one.zip"), "-f", "1", "1", "-chk", "checkpoint_best.pth"]) == 0
    archive = zipfile.ZipFile(tmp_path / "one.zip")
    assert sorted(name.split("/", 2)[2] for name in archive.namelist()) == [  # no name twice
        *("calibration.json", "dataset.json", "dataset_fingerprint.json", "fold_1/calibration.json"),
        *("fold_1/checkpoint_best.pth", "plans.json"),
    ]
    (checkpoint,) = [name for name in archive.namelist() if name.endswith(".pth")]
    assert archive.read(checkpoint) == there["fold_1/checkpoint_best.pth"]


def test_the_head_alone_is_of_the_chosen_fold_and_checkpoint_with_its_averaged_weights(rich, tmp_path):
    assert main([str(rich), str(tmp_path / "head.zip"), "--nnunet", "-f", "0", "1", "-chk", "checkpoint_best.pth"]) == 0
    archive, top = zipfile.ZipFile(tmp_path / "head.zip"), f"Dataset901_Tiny/{HEAD}"
    model = {"plans.json", "dataset.json", "dataset_fingerprint.json"}
    assert names_in(tmp_path / "head.zip") == model | {"fold_0/checkpoint_best.pth", "fold_1/checkpoint_best.pth"}
    head = torch.load(io.BytesIO(archive.read(f"{top}/fold_1/checkpoint_best.pth")), weights_only=True)
    whole = torch.load(rich / "fold_1" / "checkpoint_best.pth", weights_only=True)["network_weights"]
    prefix = "image_network.unet."
    assert head["network_weights"].keys() == {name.removeprefix(prefix) for name in whole if name.startswith(prefix)}
    assert all(torch.equal(weight, whole[prefix + name]) for name, weight in head["network_weights"].items())
    assert (head["current_epoch"], head["inference_allowed_mirroring_axes"]) == (11, (0, 2))
    plans, dataset_json = (json.loads(archive.read(f"{top}/{name}.json")) for name in ("plans", "dataset"))
    assert plans == stock_plans(json.loads((rich / "plans.json").read_text()))
    assert dataset_json == json.loads((rich / "dataset.json").read_text())
    arguments = {"plans": plans, "configuration": "3d_fullres", "fold": 1, "dataset_json": dataset_json}
    assert head["init_args"] == arguments
    assert archive.read(f"{top}/dataset_fingerprint.json") == b'{"shapes": []}'


@pytest.mark.parametrize("flags", [(), ("--nnunet",)])
def test_an_error_while_packing_leaves_no_file_and_keeps_the_old_one(rich, tmp_path, monkeypatch, capsys, flags):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "out.zip")

    for name in ("write", "writestr"):
        monkeypatch.setattr(zipfile.ZipFile, name, full)
    before = sorted(tmp_path.iterdir())
    assert main([str(rich), str(tmp_path / "out.zip"), *flags]) == 2
    assert "No space left" in capsys.readouterr().err and sorted(tmp_path.iterdir()) == before
    (tmp_path / "out.zip").write_text("of yesterday")
    assert main([str(rich), str(tmp_path / "out.zip"), "--overwrite", *flags]) == 2
    assert (tmp_path / "out.zip").read_text() == "of yesterday" and len(list(tmp_path.iterdir())) == len(before) + 1


@pytest.mark.parametrize(
    ("key", "name"), [("dataset_name", "../Dataset901_Tiny"), ("plans_name", "a/b"), ("dataset_name", "..")]
)
def test_foreign_names_put_nothing_beside_the_models_place(rich, tmp_path, capsys, key, name):
    """nnU-Net unpacks a zip file below its results, wherever the names in it lead."""
    plans = json.loads((rich / "plans.json").read_text()) | {key: name}
    (rich / "plans.json").write_text(json.dumps(plans))
    for flags in ((), ("--nnunet",)):
        assert main([str(rich), str(tmp_path / "out.zip"), *flags]) == 2
        error = capsys.readouterr().err
        assert f"must not have '{name}' as {key}" in error and error.count("\n") == 1
        assert not (tmp_path / "out.zip").exists()


def test_folds_and_checkpoints_are_chosen(model_folder, tmp_path):  # noqa: F811
    assert main([str(model_folder), str(tmp_path / "one.zip"), "-f", "1", "1"]) == 0
    assert names_in(tmp_path / "one.zip") == {"plans.json", "dataset.json", "fold_1/checkpoint_final.pth"}
    assert main([str(model_folder), str(tmp_path / "head.zip"), "-f", "1", "--nnunet"]) == 0
    assert names_in(tmp_path / "head.zip") == {"plans.json", "dataset.json", "fold_1/checkpoint_final.pth"}


def test_a_calibrated_stock_model_is_packed_with_its_calibration_and_its_own_checkpoint(tmp_path, capsys):
    folder = write_stock_folder(tmp_path)
    Calibration(0.5, groups=3).write(folder / "fold_0")
    assert main([str(folder), str(tmp_path / "out.zip")]) == 0
    flags = "-i in/ -o out/ -d Dataset902_Stock -c 2d -tr nnUNetTrainer_5epochs -p nnUNetPlans -f 0\n"
    out = capsys.readouterr().out
    assert f"Predict: nndiffseg_predict {flags}" in out  # nnU-Net's own command would leave the calibration unused
    assert f"the same segmentation alone: nnUNetv2_predict {flags}" in out
    archive = zipfile.ZipFile(tmp_path / "out.zip")
    top = f"Dataset902_Stock/{folder.name}"
    assert archive.read(f"{top}/fold_0/checkpoint_final.pth") == (folder / "fold_0/checkpoint_final.pth").read_bytes()
    assert json.loads(archive.read(f"{top}/fold_0/calibration.json"))["groups"] == 3
    assert main([str(folder), str(tmp_path / "head.zip"), "--nnunet"]) == 2
    assert "a model of stock nnU-Net already" in capsys.readouterr().err and not (tmp_path / "head.zip").exists()


def test_who_receives_a_stock_model_is_told_what_predicts_it(tmp_path, capsys):
    """nndiffseg predicts calibrated folds only."""
    folder = write_stock_folder(tmp_path)
    assert main([str(folder), str(tmp_path / "plain.zip")]) == 0
    out = capsys.readouterr().out
    assert "Predict: nnUNetv2_predict -i in/" in out and "nndiffseg_predict" not in out
    shutil.copytree(folder / "fold_0", folder / "fold_1")
    Calibration(0.5, groups=3, folds=("0",)).write(folder)
    assert main([str(folder), str(tmp_path / "both.zip")]) == 0
    assert "nndiffseg_predict" not in capsys.readouterr().out
    (folder / "fold_0" / "checkpoint_final.pth").rename(folder / "fold_0" / "checkpoint_best.pth")
    assert main([str(folder), str(tmp_path / "one.zip"), "-f", "0", "-chk", "checkpoint_best.pth"]) == 0
    assert "Predict: nndiffseg_predict -i in/" in (out := capsys.readouterr().out)
    assert out.count("-f 0 -chk checkpoint_best.pth\n") == 2


def test_members_are_packed_but_not_for_stock_nnunet(model_folder, tmp_path, capsys):  # noqa: F811
    folder = tmp_path / "members"
    shutil.copytree(model_folder, folder)
    (folder / "fold_0").rename(folder / "fold_all")
    (folder / "fold_1").rename(folder / "fold_all" / "seed_1")
    assert main([str(folder), str(tmp_path / "out.zip")]) == 0
    assert "-p nnDiffSegPlansS -f all all/seed_1\n" in capsys.readouterr().out
    members = {"fold_all/checkpoint_final.pth", "fold_all/seed_1/checkpoint_final.pth"}
    assert names_in(tmp_path / "out.zip") == {"plans.json", "dataset.json", *members}
    assert main([str(folder), str(tmp_path / "head.zip"), "--nnunet"]) == 2
    assert "Stock nnU-Net finds no members such as all/seed_1" in capsys.readouterr().err
    assert main([str(folder), str(tmp_path / "head.zip"), "--nnunet", "-f", "all"]) == 0
    assert names_in(tmp_path / "head.zip") == {"plans.json", "dataset.json", "fold_all/checkpoint_final.pth"}


def test_an_existing_file_is_replaced_only_on_request(model_folder, tmp_path, capsys):  # noqa: F811
    out = tmp_path / "out.zip"
    out.write_text("precious")
    assert main([str(model_folder), str(out)]) == 2
    err = capsys.readouterr().err
    assert "exists already" in err and "--overwrite" in err and out.read_text() == "precious"
    assert main([str(model_folder), str(out), "--overwrite"]) == 0
    assert zipfile.is_zipfile(out)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["nowhere", "out.zip"], "There is no model folder nowhere"),
        (["MODEL", "missing/out.zip"], "There is no folder missing; make it first"),
        (["MODEL", "."], "is a folder"),
        (["MODEL", "out.zip", "-f", "4"], "holds no fold_4/checkpoint_final.pth; it has fold_0/checkpoint_final.pth"),
        (["MODEL", "out.zip", "-chk", "checkpoint_best.pth"], "holds no checkpoint_best.pth"),
        (["MODEL", "out.zip", "--nnUNet"], "nknown flag --nnUNet, did you mean --nnunet?"),
    ],
)
def test_wrong_calls_end_with_one_sentence(model_folder, tmp_path, monkeypatch, capsys, flags, message):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    assert main([str(model_folder) if flag == "MODEL" else flag for flag in flags]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1 and "Traceback" not in err
    assert not list(tmp_path.iterdir())
