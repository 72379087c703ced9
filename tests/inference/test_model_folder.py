"""Finding and loading models: the only one is found, several are listed, wrong ones are told apart."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from tiny_model import write_model

from nndiffseg.calibration import Calibration
from nndiffseg.errors import UserError
from nndiffseg.inference.model_folder import available_folds, choose_model, load_model, trained_models, trainer_by_name


@pytest.fixture
def copy_of_model(model_folder, tmp_path):
    folder = tmp_path / "results" / "Dataset901_Tiny" / model_folder.name
    shutil.copytree(model_folder, folder)
    return folder


def test_the_only_model_is_found(results, model_folder):
    assert choose_model(results).folder == model_folder
    assert choose_model(results, dataset="Dataset901_Tiny", configuration="3d_fullres").folder == model_folder


def test_several_models_are_listed_with_what_to_type(copy_of_model):
    other = copy_of_model.with_name("nnDiffSegTrainer__nnDiffSegPlansS__2d")
    shutil.copytree(copy_of_model, other)
    results = copy_of_model.parents[1]
    with pytest.raises(UserError, match=r"several.*-d 901 -c 2d .*; -d 901 -c 3d_fullres -tr nnDiffSegTrainer"):
        choose_model(results)
    assert choose_model(results, configuration="2d").folder == other
    with pytest.raises(UserError, match="no trained nndiffseg model with configuration 3d_lowres"):
        choose_model(results, configuration="3d_lowres")


def test_models_of_others_and_untrained_ones_are_not_found(copy_of_model):
    results = copy_of_model.parents[1]
    stock = copy_of_model.with_name("nnUNetTrainer__nnUNetPlans__3d_fullres")
    shutil.copytree(copy_of_model, stock)
    plans = json.loads((stock / "plans.json").read_text())
    for configuration in plans["configurations"].values():
        configuration.pop("diffusion", None)
    (stock / "plans.json").write_text(json.dumps(plans))
    assert [m.folder for m in trained_models(results)] == [copy_of_model]
    for file in copy_of_model.glob("fold_*/*.pth"):
        file.unlink()
    with pytest.raises(UserError, match="no trained nndiffseg model"):
        choose_model(results)


def test_folds_default_to_the_trained_ones(copy_of_model):
    assert available_folds(copy_of_model, "checkpoint_final.pth") == ["0", "1"]
    shutil.copytree(copy_of_model / "fold_0", copy_of_model / "fold_all")
    assert [f.name for f in load_model(copy_of_model).folds] == ["0", "1"]
    assert [f.name for f in load_model(copy_of_model, ["all"]).folds] == ["all"]
    shutil.rmtree(copy_of_model / "fold_0")
    shutil.rmtree(copy_of_model / "fold_1")
    assert [f.name for f in load_model(copy_of_model).folds] == ["all"]


def test_members_are_pooled_where_there_are_no_numbered_folds_and_only_on_request_beside_them(copy_of_model):
    shutil.move(copy_of_model / "fold_0", copy_of_model / "fold_all")
    shutil.copytree(copy_of_model / "fold_1", copy_of_model / "fold_all" / "seed_1")
    assert available_folds(copy_of_model, "checkpoint_final.pth") == ["1"]
    model = load_model(copy_of_model, ["all", "all/seed_1"])
    assert [f.name for f in model.folds] == ["all", "all/seed_1"]
    first, second = (f.network.state_dict() for f in model.folds)
    assert not torch.equal(first["denoiser.head.weight"], second["denoiser.head.weight"])
    shutil.rmtree(copy_of_model / "fold_1")
    assert available_folds(copy_of_model, "checkpoint_final.pth") == ["all", "all/seed_1"]
    with pytest.raises(UserError, match=r"no fold_all/seed_2/.*; it has fold_all/.*, fold_all/seed_1/checkpoint_final.pth"):
        load_model(copy_of_model, ["all/seed_2"])
    (copy_of_model / "fold_all" / "checkpoint_final.pth").unlink()  # the member alone is a model too
    assert trained_models(copy_of_model.parents[1])[0].folder == copy_of_model


def test_a_name_that_is_no_fold_is_not_joined_to_a_path(copy_of_model):
    with pytest.raises(UserError, match=r"must be 0 to 4 or all .*, not '0/\.\./fold_1'"):
        load_model(copy_of_model, ["0/../fold_1"])


def test_every_fold_has_its_own_weights_and_calibration(make_dataset, tmp_path):
    folder = write_model(make_dataset, tmp_path, calibrations=[Calibration(0.25), Calibration(0.75, volume_scale=2.0)])
    first, second = load_model(folder).folds
    key = "image_network.unet.encoder.stem.convs.0.conv.weight"
    assert not torch.equal(first.network.state_dict()[key], second.network.state_dict()[key])
    assert (first.calibration, second.calibration) == (Calibration(0.25), Calibration(0.75, volume_scale=2.0))
    assert not first.network.training


def test_folds_with_other_options_are_not_pooled(copy_of_model):
    file = copy_of_model / "fold_1" / "checkpoint_final.pth"
    torch.save({**torch.load(file, weights_only=True), "options": {"steps": 3}}, file)
    with pytest.raises(UserError, match=r"other options .* choose folds that belong together"):
        load_model(copy_of_model)


def test_missing_parts_are_told(copy_of_model, tmp_path):
    with pytest.raises(UserError, match="no model folder"):
        load_model(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"no fold_3/checkpoint_final.pth; it has fold_0/checkpoint_final.pth"):
        load_model(copy_of_model, [3])
    with pytest.raises(UserError, match=r"no checkpoint_best.pth.*-chk"):
        load_model(copy_of_model, checkpoint="checkpoint_best.pth")
    (copy_of_model / "dataset.json").unlink()
    with pytest.raises(UserError, match=r"holds no dataset.json, so it is not a model folder"):
        load_model(copy_of_model)
    (copy_of_model / "dataset.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        load_model(copy_of_model)


def test_damaged_and_foreign_checkpoints_are_told(copy_of_model):
    file = copy_of_model / "fold_0" / "checkpoint_final.pth"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="damaged"):
        load_model(copy_of_model, [0])
    torch.save({"network_weights": {}, "trainer_name": "nnUNetTrainer", "init_args": {}}, file)
    with pytest.raises(UserError, match="not written by an nndiffseg trainer"):
        load_model(copy_of_model, [0])
    checkpoint = torch.load(copy_of_model / "fold_1" / "checkpoint_final.pth", weights_only=True)
    torch.save({**checkpoint, "trainer_name": "nnNoSuchTrainer"}, file)
    with pytest.raises(UserError, match="nnNoSuchTrainer, which is not installed"):
        load_model(copy_of_model, [0])
    torch.save({**checkpoint, "trainer_name": "nnUNetTrainer"}, file)
    with pytest.raises(UserError, match="draws no samples"):
        load_model(copy_of_model, [0])
    weights = dict(list(checkpoint["network_weights"].items())[3:])
    torch.save({**checkpoint, "network_weights": weights}, file)
    with pytest.raises(UserError, match="do not fit"):
        load_model(copy_of_model, [0])


@pytest.mark.parametrize(
    "name", ["os", "Path", "annotations", "Union", "__builtins__", "subprocess.Popen", "../x", "a b", "", None, 3]
)
def test_only_a_trainer_is_found_by_the_name_of_a_trainer(name):
    assert trainer_by_name(name) is None


def test_trainers_of_nndiffseg_and_nnunet_are_found_by_name():
    assert trainer_by_name("nnDiffSegTrainer").__name__ == "nnDiffSegTrainer"
    assert trainer_by_name("nnUNetTrainer").__name__ == "nnUNetTrainer"
