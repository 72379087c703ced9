"""Plans onto a finished nnU-Net: what stays of its plans, and what lies in the folder already."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from stock_model import DATA, MODEL, TRAINERS, stock, write_stock_model  # noqa: F401

from nndiffseg.data.files import write_json
from nndiffseg.errors import UserError
from nndiffseg.methods.latent.source import KEY, Source
from nndiffseg.planners import DiffSegPlannerS
from nndiffseg.planning.attach import attached_plans, check_data, read_model

NAME = "nnUNetPlansAttached"
CHECKPOINT = "checkpoint_final.pth"


def plan(base: Path, folds: list[str] | None = None, *, resume: bool = False, model: Path = MODEL) -> dict:
    """Reads the model, plans, and writes the plans."""
    finished = read_model(base / model, folds, CHECKPOINT)
    check_data(finished, base / DATA)
    plans, report = attached_plans(finished, base / DATA, NAME, DiffSegPlannerS.size, resume=resume)
    assert report.startswith("2d: patch ") and "GB" not in report
    write_json(plans, base / DATA / f"{NAME}.json", strict=False)
    return plans


def test_all_but_the_section_and_the_name_stays_and_folds_add_up(stock):  # noqa: F811
    first = plan(stock, ["0"])
    section = first["configurations"]["2d"].pop("diffusion")
    before = json.loads((stock / MODEL / "plans.json").read_text())
    assert first | {"plans_name": "nnUNetPlans"} == before
    assert section["regions"] is False and "training_memory_gb" not in section["cost"]
    record = Source.from_configuration({"diffusion": section})
    assert (record.trainer, record.plans, record.mirror_axes, set(record.sha256)) == (
        "nnUNetTrainer",
        "nnUNetPlans",
        (0, 1),
        {"0"},
    )

    # Another configuration that is attached, and a fold more.
    file = stock / DATA / f"{NAME}.json"
    plans = json.loads(file.read_text())
    other = plans["configurations"]["2d"] | {"batch_size": 7}
    plans["configurations"]["other"] = other
    file.write_text(json.dumps(plans))
    second = plan(stock, ["1"])
    assert second["configurations"]["other"] == other
    both = Source.from_configuration(second["configurations"]["2d"])
    assert set(both.sha256) == {"0", "1"} and both.sha256["0"] == record.sha256["0"] != both.sha256["1"]

    # Weights that have changed: a training cannot go on with them, but may begin anew.
    (stock / MODEL / "fold_1" / CHECKPOINT).rename(stock / MODEL / "fold_0" / CHECKPOINT)
    with pytest.raises(UserError, match="have changed since fold 0 was attached; leave out --c"):
        plan(stock, ["0"], resume=True)
    again = Source.from_configuration(plan(stock, ["0"])["configurations"]["2d"])
    assert again.sha256["0"] == both.sha256["1"]


def test_a_configuration_that_inherits_stands_alone(stock):  # noqa: F811
    file = stock / MODEL / "plans.json"
    plans = json.loads(file.read_text())
    plans["configurations"]["base"] = plans["configurations"].pop("2d")
    plans["configurations"]["2d"] = {"inherits_from": "base", "batch_size": 5}
    file.write_text(json.dumps(plans))
    configuration = plan(stock, ["0"])["configurations"]["2d"]
    assert configuration["batch_size"] == 5 and "inherits_from" not in configuration
    assert configuration["data_identifier"] == "nnUNetPlans_2d" and KEY in configuration["diffusion"]


def test_plans_of_a_model_of_another_trainer_are_not_overwritten(stock):  # noqa: F811
    plan(stock, ["0"])
    trainer = "nnUNetTrainerNoMirroring"
    model = write_stock_model(stock, stock / DATA, "nnUNetPlans", "2d", trainer=trainer)
    assert trainer in TRAINERS and read_model(model, None, CHECKPOINT).source.mirror_axes == ()
    with pytest.raises(UserError, match="attached to a model of nnUNetTrainer; choose another name"):
        plan(stock, None, model=model)


def test_folds_of_different_trainers_do_not_belong_together(stock):  # noqa: F811
    model = write_stock_model(stock, stock / DATA, "nnUNetPlans", "2d", trainer="nnUNetTrainerNoMirroring")
    (model / "fold_0" / CHECKPOINT).rename(stock / MODEL / "fold_1" / CHECKPOINT)
    with pytest.raises(UserError, match="another trainer than fold 0"):
        read_model(stock / MODEL, None, CHECKPOINT)
    assert replace(read_model(stock / MODEL, ["0"], CHECKPOINT).source, sha256={}).trainer == "nnUNetTrainer"
