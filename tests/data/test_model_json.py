"""The names of a model come from its files, and none of them can lead elsewhere."""

from __future__ import annotations

import json

import pytest
import stock_folder

from nndiffseg.data.model_json import ModelNames, read_model_json
from nndiffseg.errors import UserError

PLANS = stock_folder.PLANS | {"dataset_name": "Dataset004_X"}
DATASET = {"channel_names": {"0": "light"}, "labels": {"background": 0, "organ": 1}, "file_ending": ".png"}
CHECKPOINT = {"trainer_name": "nnUNetTrainer", "init_args": {"configuration": "2d"}}


def write(folder, plans=PLANS, dataset_json=DATASET):
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset_json))
    return folder


def test_the_names_make_nnunets_folder_whatever_the_folder_is_called(tmp_path):
    plans, dataset_json = read_model_json(write(tmp_path))
    assert (plans, dataset_json) == (PLANS, DATASET)
    assert ModelNames.of(CHECKPOINT, plans, tmp_path).folder == "Dataset004_X/nnUNetTrainer__nnUNetPlans__2d"


@pytest.mark.parametrize(
    ("checkpoint", "plans", "message"),
    [
        (CHECKPOINT | {"trainer_name": "../../x"}, PLANS, "which trainer"),
        ({"init_args": {"configuration": "2d"}}, PLANS, "which trainer"),
        (CHECKPOINT | {"init_args": None}, PLANS, "which trainer"),
        (CHECKPOINT | {"init_args": {"configuration": ["2d"]}}, PLANS, "which trainer"),
        (CHECKPOINT | {"init_args": {"configuration": "../2d"}}, PLANS, "no configuration of that checkpoint"),
        (CHECKPOINT, PLANS | {"dataset_name": "../x"}, "no dataset_name"),
        (CHECKPOINT, {k: v for k, v in PLANS.items() if k != "plans_name"}, "no plans_name"),
    ],
)
def test_names_that_are_missing_or_lead_elsewhere_are_refused(tmp_path, checkpoint, plans, message):
    with pytest.raises(UserError, match=message):
        ModelNames.of(checkpoint, plans, tmp_path / "checkpoint_final.pth")


@pytest.mark.parametrize(
    ("plans", "dataset_json", "message"),
    [
        ([], DATASET, "must hold a JSON object"),
        (PLANS | {"image_reader_writer": "subprocess.Popen"}, DATASET, "which no planner writes"),
        (PLANS, [], "that names the labels"),
        (PLANS, DATASET | {"file_ending": "/../x"}, "invalid file_ending"),
        (PLANS, DATASET | {"overwrite_image_reader_writer": "os.system"}, "unknown reader"),
    ],
)
def test_foreign_files_are_checked_before_anything_in_them_is_used(tmp_path, plans, dataset_json, message):
    with pytest.raises(UserError, match=message):
        read_model_json(write(tmp_path, plans, dataset_json))


def test_a_folder_that_is_none_and_one_without_files_are_told_apart(tmp_path):
    with pytest.raises(UserError, match="There is no model folder"):
        read_model_json(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"holds no plans\.json"):
        read_model_json(tmp_path)
    (tmp_path / "plans.json").write_text(json.dumps(PLANS))
    with pytest.raises(UserError, match=r"holds no dataset\.json"):
        read_model_json(tmp_path)
