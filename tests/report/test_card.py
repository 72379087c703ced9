"""The model card says what the description says, marks the rest, and shows every foreign name as it stands."""

from __future__ import annotations

import copy
import re

import pytest

from nndiffseg.report.card import NONE, TO_FILL_IN, as_text, escaped, model_card, shown

DESCRIPTION = {
    "model": {
        "dataset": "Dataset004_Hippocampus",
        "trainer": "nnDiffSegTrainer",
        "plans": "nnDiffSegPlansS",
        "configuration": "3d_fullres",
        "planner": "DiffSegPlannerS",
        "method": "latent",
        "options": {"width": 8},
    },
    "plan": {
        "patch_size": [40, 56, 40],
        "spacing": [1.0, 0.5, 0.5],
        "batch_size": 2,
        "normalization_schemes": ["ZScoreNormalization"],
        "network": "ResidualEncoderUNet",
        "features_per_stage": [16, 32],
        "latent": {"latent_stage": 2, "latent_stride": [4, 4, 4], "latent_channels": 8, "steps": 2, "samples": 16},
    },
    "data": {
        "channels": ["MRI"],
        "labels": {"background": 0, "whole": [1, 2]},
        "training_cases": 203,
        "file_ending": ".nii.gz",
        "origin": {"licence": "CC BY-SA 4.0"},
    },
    "parameters": {"total": 3_320_000, "parts": {"image_network": 2_400_000, "guide_norm": 8}},
    "folds": {
        "0": {
            "checkpoints": {"checkpoint_final.pth": {"epochs": 8, "bytes": 53_800_000}},
            "validation": {"cases": 42, "dice_mean": 0.87, "dice": {"whole": 0.8623}},
            "uncertainty": {"error_auroc": 0.9032, "coverage_90": {"whole": 0.81}},
            "calibration": {"fusion_weight": 0.5, "folds": ["0"]},
        },
        "1": {
            "checkpoints": {"checkpoint_best.pth": {"epochs": None, "bytes": 10**6}},
            **dict.fromkeys(("validation", "uncertainty", "calibration")),
        },
    },
    "calibration": {"fusion_weight": 0.25},
    "versions": {"nndiffseg": "0.2.0"},
}


def test_a_stage_of_a_cascade_is_told():
    content = copy.deepcopy(DESCRIPTION)
    assert "cascade" not in as_text(content) + model_card(content)
    content["plan"]["previous_stage"] = "3d_lowres"
    assert "stage of a cascade, after 3d_lowres" in as_text(content)
    assert "| cascade | stage of a cascade, after 3d\\_lowres |" in model_card(content)


def stock():
    content = copy.deepcopy(DESCRIPTION)
    content["model"] |= {"method": None, "options": None, "trainer": "nnUNetTrainer"}
    content["plan"]["latent"] = content["calibration"] = None
    content["folds"] = {"all": content["folds"]["1"]}
    content["versions"] = {}
    return content


def test_the_text_says_everything_in_few_lines():
    text = as_text(DESCRIPTION)
    for part in (
        "Dataset004_Hippocampus, 3d_fullres",
        "patch 40x56x40, spacing 1x0.500x0.500, batch size 2",
        "latent of stride 4x4x4 with 8 channels, 16 samples",
        "203 training cases, .nii.gz; channels MRI",
        "3.32 M; image_network 2.40 M, guide_norm 8",
        "fold 0        checkpoint_final.pth (8 epochs, 53.8 MB)",
        "validation, 42 cases: Dice 0.870; whole 0.862",
        "error_auroc 0.903, coverage_90 (whole 0.810)",
        "calibration fusion_weight 0.500, folds 0",
        f"fold 1        checkpoint_best.pth ({NONE} epochs, 1.0 MB)",
        "calibration none",
        "all folds     calibration fusion_weight 0.250",
    ):
        assert part in text
    assert len(text.splitlines()) < 22 and not any(line.isspace() for line in text.splitlines())
    assert "latent" not in as_text(stock()) and "method not recorded" in as_text(stock())


def test_the_card_has_the_figures_and_marks_what_only_a_person_knows():
    card = model_card(DESCRIPTION)
    for part in (
        "| 0 | 42 | 0.870 | 0.862 |",
        f"| 1 | {NONE} | {NONE} | {NONE} |",
        "| training cases | 203 |",
        "- nndiffseg\n",
    ):
        assert part in card
    for place in (
        "Intended purpose",
        "Uses out of scope",
        "Population, sites and scanners",
        "Known failures",
        "Risks and biases",
    ):
        assert f"{place}: {TO_FILL_IN}" in card
    assert card.count("[") == card.count(TO_FILL_IN)
    headings = re.findall(r"^## (.*)", card, re.M)
    assert headings[:2] == ["Model details", "Intended use"] and {"Data", "Training", "Evaluation", "Limitations"} <= set(
        headings
    )
    assert "None" not in card and "\n\n\n" not in card and card.startswith("---\n")


def test_tables_have_rows_without_gaps():
    for card in (model_card(DESCRIPTION), model_card(stock())):
        for table in re.findall(r"(?:^\|.*\n)+", card, re.M):
            rows = table.splitlines()
            assert len(rows) >= 2 and len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1, table


def test_a_stock_model_gets_a_card_of_its_own():
    card = model_card(stock())
    assert "nnUNetv2_predict -d Dataset004_Hippocampus" in card and "- nndiffseg\n" not in card
    assert "Nothing was fitted after the training." in card and f"| versions | {NONE} |" in card
    assert "trained on all cases" in card and "trained on all cases" not in model_card(DESCRIPTION)


def test_members_are_listed_and_not_taken_for_evaluated_ones():
    content = copy.deepcopy(DESCRIPTION)
    content["folds"] = {"all/seed_1": content["folds"]["1"]}
    assert f"\nall/seed_1    checkpoint_best.pth ({NONE} epochs" in as_text(content)
    card = model_card(content)
    assert "| all/seed\\_1 | checkpoint" in card and "trained on all cases" in card


@pytest.mark.parametrize("name", ["<script>x</script>", "a | b", "[x](http://y)", "line\nbreak # head", "`code`", "![i](u)"])
def test_foreign_names_are_text(name):
    content = copy.deepcopy(DESCRIPTION)
    content["data"] |= {"channels": [name], "labels": {name: 1}, "origin": {"description": name}}
    content["folds"]["0"]["validation"]["dice"] = {name: 0.5}
    card = model_card(content)
    assert card.count(escaped(shown(name))) == 4 and name not in card
    assert len(card.splitlines()) == len(model_card(DESCRIPTION).splitlines())
    assert "\n" not in shown(name) and "\x1b" not in shown("\x1b[2J")
