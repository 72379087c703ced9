"""The trainer on a finished nnU-Net: no other image network, no other mirroring, nothing frozen in the optimiser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from stock_model import DATA, MODEL, environment, stock  # noqa: F401

from nndiffseg.cli.predict import main as predict
from nndiffseg.errors import UserError
from nndiffseg.inference.model_folder import load_model
from nndiffseg.methods.latent.source import KEY
from nndiffseg.planners import DiffSegPlannerS
from nndiffseg.planning.attach import FinishedModel, attached_plans, read_model
from nndiffseg.trainers import nnDiffSegTrainerAttached
from nndiffseg.training.budget import Budget


@pytest.fixture
def planned(stock: Path) -> Iterator[tuple[FinishedModel, dict[str, Any]]]:  # noqa: F811
    model = read_model(stock / MODEL, None, "checkpoint_final.pth")
    with environment(stock):
        yield model, attached_plans(model, stock / DATA, "nnUNetPlansAttached", DiffSegPlannerS.size, resume=False)[0]


def trainer(planned: tuple[FinishedModel, dict[str, Any]], fold: int = 0) -> nnDiffSegTrainerAttached:
    model, plans = planned
    plans = plans | {"continue_training": False}
    made = nnDiffSegTrainerAttached(plans, "2d", fold, model.dataset_json, torch.device("cpu"))
    made.budget = Budget(1, 10)
    return made


def test_only_the_recorded_weights_of_the_fold_are_trained_on(planned, tmp_path):
    made = trainer(planned)
    with pytest.raises(UserError, match="not that of nnUNetTrainer which the plans name"):
        made.run_training()  # nobody loaded any weights
    with pytest.raises(UserError, match="fold 0 is not that"):
        made.load_pretrained_weights(str(planned[0].weights("1")))
    made.load_pretrained_weights(str(planned[0].weights("0")))
    made.save_checkpoint(str(tmp_path / "c.pth"))
    trainer(planned).load_checkpoint(str(tmp_path / "c.pth"))
    with pytest.raises(UserError, match="fold 1 is not that"):
        trainer(planned, 1).load_checkpoint(str(tmp_path / "c.pth"))


def test_a_prediction_refuses_another_image_network_and_takes_any_other_part(planned, stock, capsys):  # noqa: F811
    made, name = trainer(planned), "checkpoint_final.pth"
    made.load_pretrained_weights(str(planned[0].weights("0")))
    folder = Path(made.output_folder).parent
    for file in ("plans", "dataset"):
        content = planned[1] if file == "plans" else planned[0].dataset_json
        (folder / f"{file}.json").write_text(json.dumps(content))
    made.save_checkpoint(str(folder / "fold_0" / name))
    content = torch.load(folder / "fold_0" / name, weights_only=True)
    content["network_weights"]["label_decoder.head.weight"] += 1
    torch.save(content, folder / "fold_0" / name)
    assert [fold.name for fold in load_model(folder).folds] == ["0"]
    content["network_weights"]["image_network.unet.encoder.stages.0.0.convs.0.conv.weight"].view(-1)[3] += 1e-6
    torch.save(content, folder / "fold_0" / name)
    capsys.readouterr()
    folders = [f"--{kind}={stock / kind}" for kind in ("raw", "preprocessed", "results")]
    assert predict(["-m", str(folder), "-i", str(stock), "-o", str(stock / "out"), "-device", "cpu", *folders]) == 2
    error = capsys.readouterr().err
    assert "image network of fold 0 is not that of nnUNetTrainer which the plans name" in error and error.count("\n") == 1
    assert not (stock / "out").exists()


def test_a_step_moves_all_but_the_frozen_network_which_the_optimiser_does_not_know(planned):
    made = trainer(planned)
    made.load_pretrained_weights(str(planned[0].weights("0")))
    network = made.network.train()
    known = {id(p) for group in made.optimizer.param_groups for p in group["params"]}
    assert known == {id(p) for name, p in network.named_parameters() if not name.startswith("image_network.")}
    before = {k: v.clone() for k, v in network.state_dict().items()}
    terms = made.train_step(next(made.validation_batches()))
    assert "deterministic" not in terms and terms["reconstruction"] > 0
    for weights in (network.state_dict(), made.average.network.state_dict()):
        frozen = {k: torch.equal(v, before[k]) for k, v in weights.items() if k.startswith("image_network.")}
        assert frozen and all(frozen.values())
        assert not torch.equal(weights["label_decoder.head.weight"], before["label_decoder.head.weight"])


@pytest.mark.parametrize(("recorded", "axes"), [([], None), ([1], (1,)), ([0, 1], (0, 1))])
def test_patches_are_mirrored_as_for_the_finished_network(planned, recorded, axes):
    planned[1]["configurations"]["2d"]["diffusion"][KEY]["mirror_axes"] = recorded
    made = trainer(planned)
    assert made.configure_rotation_dummyDA_mirroring_and_inital_patch_size()[-1] == axes
    assert made.inference_allowed_mirroring_axes == axes
