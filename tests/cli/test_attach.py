"""``nndiffseg_attach`` on untrained stock models: the contract, exact continuation, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
    nnUNetPlannerResEncM,
)
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from stock_model import DATA, KINDS, MODEL, environment, preprocess, stock, write_stock_model  # noqa: F401

from nndiffseg.cli.attach import main
from nndiffseg.data.checkpoint import load_any_checkpoint, load_checkpoint
from nndiffseg.inference.model_folder import load_model
from nndiffseg.trainers import nnDiffSegTrainerAttached

SHORT = ("-device", "cpu", "--iterations_per_epoch", "2", "--disable_progress_bar")


def attach(base: Path, model: Path, *more: str) -> int:
    with environment(base):
        return main([str(model), *SHORT, *(f"--{kind}={base / kind}" for kind in KINDS), *more])


def stock_network(model: Path, configuration: str, heads: int, fold: int = 0) -> torch.nn.Module:
    """As nnU-Net builds it for a prediction."""
    architecture = json.loads((model / "plans.json").read_text())["configurations"][configuration]["architecture"]
    network = get_network_from_plans(
        architecture["network_class_name"],
        architecture["arch_kwargs"],
        architecture["_kw_requires_import"],
        1,
        heads,
        deep_supervision=False,
    )
    network.load_state_dict(load_any_checkpoint(model / f"fold_{fold}" / "checkpoint_final.pth")["network_weights"])
    return network.eval()


def assert_contract(model: Path, folder: Path, configuration: str, heads: int) -> None:
    """The head's logits are nnU-Net's, bit for bit, and so are all weights of its network in the checkpoint."""
    loaded = load_model(folder, ["0"])
    patch = loaded.plans.get_configuration(configuration).patch_size
    image = torch.randn(2, 1, *patch, generator=torch.Generator().manual_seed(7))
    nnunet = stock_network(model, configuration, heads)
    with torch.no_grad():
        assert torch.equal(loaded.folds[0].network(image), nnunet(image))
        assert torch.equal(loaded.folds[0].network.encode(image)[0], nnunet(image))
    checkpoint = load_checkpoint(folder / "fold_0" / "checkpoint_final.pth")
    for kind in ("network_weights", "network_weights_raw"):
        for name, value in nnunet.state_dict().items():
            assert torch.equal(checkpoint[kind][f"image_network.unet.{name}"], value), (kind, name)


def files(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(f.relative_to(folder)): (f.stat().st_mtime_ns, f.stat().st_size) for f in folder.rglob("*") if f.is_file()}


def assert_attached_and_going_on(base: Path, model: Path, plans: str, configuration: str, heads: int) -> None:
    preprocessed = base / DATA
    before, stock_before = files(preprocessed), files(model)
    assert attach(base, model, "--folds", "0", "--epochs", "1") == 0
    folder = base / "results" / "Dataset901_Tiny" / f"nnDiffSegTrainerAttached__{plans}Attached__{configuration}"
    assert_contract(model, folder, configuration, heads)
    first = load_checkpoint(folder / "fold_0" / "checkpoint_final.pth")
    trained = {k for k, v in first["network_weights"].items() if not torch.equal(v, first["network_weights_raw"][k])}
    parts = ("label_encoder.", "denoiser.", "label_decoder.", "to_condition.", "to_guides.", "prior_to_condition.")
    assert all(any(k.startswith(part) for k in trained) for part in parts), "everything but the image network is trained"
    assert first["iteration"] == 2 and json.loads((folder / "fold_0" / "calibration.json").read_text())["groups"] == 2
    assert (folder / "fold_0" / "validation" / "summary.json").is_file()
    now = files(preprocessed)
    assert now.keys() - before.keys() == {f"{plans}Attached.json"} and before.items() <= now.items(), "nothing is preprocessed"
    assert files(model) == stock_before

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nnDiffSegTrainerAttached, "perform_actual_validation", lambda *_: None)  # once is enough
        assert attach(base, model, "--folds", "0", "--epochs", "2", "--c") == 0
    assert_contract(model, folder, configuration, heads)
    assert load_checkpoint(folder / "fold_0" / "checkpoint_final.pth")["iteration"] == 4
    assert not (folder / "fold_1").exists()


def test_a_plain_2d_network_stays_bit_for_bit_also_when_the_training_goes_on(stock):  # noqa: F811
    assert_attached_and_going_on(stock, stock / MODEL, "nnUNetPlans", "2d", heads=3)


def test_a_residual_3d_network_of_regions_stays_bit_for_bit_too(tmp_path, make_dataset):
    data, plans = preprocess(tmp_path, "3d_fullres", nnUNetPlannerResEncM, make_dataset, regions=True)
    model = write_stock_model(tmp_path, data, plans, "3d_fullres")
    assert_attached_and_going_on(tmp_path, model, plans, "3d_fullres", heads=2)


# ---- what is refused --------------------------------------------------------------------------------------------------


def change(file: Path, **values: Any) -> None:
    """Changes the 2d configuration of plans, or the top of another JSON file."""
    content = json.loads(file.read_text())
    content["configurations"]["2d"].update(values) if "configurations" in content else content.update(values)
    file.write_text(json.dumps(content))


def change_architecture(model: Path, **values: Any) -> None:
    architecture = json.loads((model / "plans.json").read_text())["configurations"]["2d"]["architecture"]
    architecture["arch_kwargs"].update(values)
    change(model / "plans.json", architecture=architecture)


def follow_another(file):
    """Makes the configuration the second stage of a cascade."""
    plans = json.loads(file.read_text())
    plans["configurations"]["low"] = dict(plans["configurations"]["2d"])
    file.write_text(json.dumps(plans))
    change(file, previous_stage="low")


LABELS = {"background": 0, "shell": 1, "core": 2}
REFUSED = {
    "no plans.json": lambda base: (base / MODEL / "plans.json").unlink(),
    "holds no fold_0/checkpoint_final.pth": lambda base: (base / MODEL / "fold_0" / "checkpoint_final.pth").unlink(),
    "cannot be read": lambda base: (base / MODEL / "fold_0" / "checkpoint_final.pth").write_bytes(b"text"),
    "not those of the network in the plans": lambda base: change_architecture(base / MODEL, features_per_stage=[4] * 3),
    "4 instead of 3 stages": lambda base: change_architecture(base / MODEL, features_per_stage=[4] * 4),
    "invalid labels": lambda base: change(base / MODEL / "dataset.json", labels=["shell"]),
    "a previous_stage that leads back": lambda base: change(base / MODEL / "plans.json", previous_stage="2d"),
    "second stage of a cascade": lambda base: follow_another(base / MODEL / "plans.json"),
    "not those of the model": lambda base: change(base / DATA / "dataset.json", labels=LABELS | {"rim": 3}),
    "preprocesses 2d otherwise": lambda base: change(base / DATA / "nnUNetPlans.json", spacing=[2.0, 2.0]),
    "holds no nnUNetPlans_2d": lambda base: shutil.rmtree(base / DATA / "nnUNetPlans_2d"),
    "not made by nndiffseg_attach": lambda base: shutil.copy(
        base / DATA / "nnUNetPlans.json", base / DATA / "nnUNetPlansAttached.json"
    ),
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_a_model_that_does_not_fit_is_one_sentence_and_leaves_nothing(stock, capsys, sentence):  # noqa: F811
    REFUSED[sentence](stock)
    before = files(stock)
    assert attach(stock, stock / MODEL, "--folds", "0") == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1 and "Traceback" not in error
    assert files(stock) == before


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--folds", "7"], "choose --folds from 0 1"),
        (["--folds", "first"], "The fold must be"),
        (["-chk", "checkpoint_best.pth"], "finish its training first"),
        (["--minutes", "0"], "must be positive"),
        (["-overwrite_plans_name", "nnUNetPlansX"], "belongs to nnU-Net"),
    ],
)
def test_bad_flags_are_one_sentence(stock, capsys, flags, sentence):  # noqa: F811
    assert attach(stock, stock / MODEL, *flags) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1


def test_no_code_is_run_from_plans_or_from_a_checkpoint(stock, tmp_path, capsys):  # noqa: F811
    mark, model = tmp_path / "mark", stock / MODEL

    class Command:
        def __reduce__(self) -> tuple:
            return Path.touch, (mark,)

    file = model / "fold_0" / "checkpoint_final.pth"
    torch.save({"network_weights": {}, "trainer_name": Command()}, file)
    assert attach(stock, model, "--folds", "0") == 2
    assert "cannot be read as a checkpoint" in capsys.readouterr().err
    change_architecture(model, nonlin="subprocess.Popen", nonlin_kwargs={"args": ["touch", str(mark)]})
    assert attach(stock, model, "--folds", "0") == 2
    assert "must not have 'subprocess.Popen' as nonlin" in capsys.readouterr().err
    assert not mark.exists()


def test_a_folder_that_is_not_there_is_one_sentence(stock, capsys):  # noqa: F811
    assert attach(stock, stock / "absent") == 2
    assert "There is no model folder" in capsys.readouterr().err


@pytest.mark.slow
def test_members_of_an_ensemble_go_into_folders_of_their_own(stock, monkeypatch, capsys):  # noqa: F811
    shutil.copytree(stock / MODEL / "fold_0", stock / MODEL / "fold_all")
    monkeypatch.setattr(nnDiffSegTrainerAttached, "run_training", lambda self: print("folder", self.output_folder, self.seed))
    monkeypatch.setattr(nnDiffSegTrainerAttached, "perform_actual_validation", lambda *_: None)
    assert attach(stock, stock / MODEL, "--folds", "all") == 0
    assert attach(stock, stock / MODEL, "--folds", "all", "--seed", "2") == 0
    found = [line.split("__2d/")[1] for line in capsys.readouterr().out.splitlines() if line.startswith("folder ")]
    assert found == ["fold_all 0", "fold_all/seed_2 2"]
