"""``nndiffseg_export``: nnU-Net installs the zip; the head alone is predicted by an nnU-Net that cannot import nndiffseg."""

from __future__ import annotations

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
from stock_folder import write_stock_folder
from tiny_model import model_folder, raw_images, results  # noqa: F401

from nndiffseg.calibration import Calibration
from nndiffseg.cli.export import main
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
