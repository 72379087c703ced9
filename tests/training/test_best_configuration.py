"""What is shown beside the Dice, and the commands that predict with the best model or ensemble."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nndiffseg.errors import UserError
from nndiffseg.training.best_configuration import Candidate, instructions, without_probabilities

PICKLES = {"postprocessing_file": "pp.pkl", "some_plans_file": "plans.json"}


def candidate(folder: Path) -> Candidate:
    return Candidate(folder, "T", "P", "2d")


def validate(one: Candidate, fold: int, cases: int, nll: float | None, coverage: float | None) -> Path:
    folder = one.validation(fold)
    folder.mkdir(parents=True)
    content = {
        "cases": cases,
        "calibration": None if nll is None else {"nll": nll, "brier": nll / 2, "ece": nll / 10},
        "error_auroc": 0.9,
        "volumes": {"a": {"coverage_90": coverage}, "b": {"coverage_90": 0.5}},
    }
    (folder / "uncertainty.json").write_text(json.dumps(content))
    (folder / "summary.json").write_text("{}")
    return folder


def test_scores_are_means_over_cases_of_what_is_known(tmp_path: Path) -> None:
    one = candidate(tmp_path)
    validate(one, 0, 3, 0.1, 0.9)
    validate(one, 1, 1, 0.5, None)
    validate(one, 2, 7, None, 0.9)
    assert one.scores([0, 1]) == ["0.200", "0.100", "0.020", "0.900", "0.65"]
    assert one.scores([0, 1, 2])[0] == "0.200" and one.scores([2])[:3] == ["-"] * 3
    assert candidate(tmp_path / "stock").scores([0]) == ["-"] * 5


def test_a_fold_without_validation_or_probabilities_is_named(tmp_path: Path) -> None:
    one = candidate(tmp_path)
    (validate(one, 0, 1, None, None) / "case.npz").touch()
    with pytest.raises(UserError, match="T__P__2d is not validated on fold 1, 2"):
        one.check([0, 1, 2])
    validate(one, 1, 1, None, None)
    one.check([0, 1])
    assert without_probabilities([one], [0]) == "" and without_probabilities([one], [0, 1]) == "fold 1 of T__P__2d"


def test_an_ensemble_is_predicted_by_its_members_with_probabilities() -> None:
    models = [{"trainer": "T", "plans_identifier": "P", "configuration": c} for c in ("2d", "3d_fullres")]
    text = instructions("Dataset004_X", {"selected_model_or_models": models, **PICKLES}, (0, 1), 3)
    commands = [line for line in text.splitlines() if line.startswith(("nnd", "nnU"))]
    predict = "nndiffseg_predict -d Dataset004_X -i INPUT_FOLDER -o OUTPUT_FOLDER_MODEL"
    assert commands == [
        f"{predict}_1 -f 0 1 -tr T -c 2d -p P --save_probabilities",
        f"{predict}_2 -f 0 1 -tr T -c 3d_fullres -p P --save_probabilities",
        "nnUNetv2_ensemble -i OUTPUT_FOLDER_MODEL_1 OUTPUT_FOLDER_MODEL_2 -o OUTPUT_FOLDER -np 3",
        "nnUNetv2_apply_postprocessing -i OUTPUT_FOLDER -o OUTPUT_FOLDER_PP -pp_pkl_file pp.pkl -np 3 -plans_json plans.json",
    ]
    single = instructions("Dataset004_X", {"selected_model_or_models": models[:1], **PICKLES}, (0,), 3)
    assert "--save_probabilities" not in single and "-o OUTPUT_FOLDER -f 0 -tr" in single
