"""Which configuration predicts best: nnU-Net's comparison of cross-validations, on the segmentations that will be predicted.

nnU-Net puts the validations' segmentations together, and those of nndiffseg are the fused ones that its predictor writes.
Postprocessing and ensembles are nnU-Net's own; the commands that it would print predict the deterministic head alone, so they
are replaced.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.evaluation.find_best_configuration import find_best_configuration

from nndiffseg.data.files import read_json, write_atomically
from nndiffseg.errors import UserError
from nndiffseg.training.fold_state import VALIDATED
from nndiffseg.uncertainty.evaluation_table import number
from nndiffseg.uncertainty.means import nanmean


def _probability(key: str) -> Callable[[dict[str, Any]], float | None]:
    return lambda validation: (validation["calibration"] or {}).get(key)


#: columns beside the Dice: heading, digits, and where it stands in a validation's ``uncertainty.json``
SCORES: tuple[tuple[str, int, Callable[[dict[str, Any]], float | None]], ...] = (
    ("NLL", 3, _probability("nll")),
    ("Brier", 3, _probability("brier")),
    ("ECE", 3, _probability("ece")),
    ("error AUROC", 3, lambda validation: validation["error_auroc"]),
    ("90 % coverage", 2, lambda validation: nanmean(v["coverage_90"] for v in validation["volumes"].values())),
)


@dataclass(frozen=True)
class Candidate:
    """A trained model that may be the best; ``dataset`` is the dataset's folder in the results."""

    dataset: Path
    trainer: str
    plans: str
    configuration: str

    @property
    def name(self) -> str:
        return f"{self.trainer}__{self.plans}__{self.configuration}"

    @property
    def folder(self) -> Path:
        return self.dataset / self.name

    def check(self, folds: Sequence[int]) -> None:
        """Raises UserError where a fold is not validated."""
        missing = [fold for fold in folds if not (self.validation(fold) / "summary.json").is_file()]
        if missing:
            raise UserError(
                f"{self.name} is not validated on fold {', '.join(map(str, missing))}; train it with nndiffseg_cross_validate, "
                "choose folds with -f, or other models with -c, -tr and -p."
            )

    def validation(self, fold: int) -> Path:
        return self.folder / f"fold_{fold}" / "validation"

    def scores(self, folds: Sequence[int]) -> list[str]:
        """:data:`SCORES` of the validations, each fold weighted by its cases."""
        files = [self.folder / f"fold_{fold}" / VALIDATED for fold in folds]
        found = [read_json(file, "validate the fold again") for file in files if file.is_file()]  # a stock nnU-Net has none
        return [number(_weighted([(one["cases"], get(one)) for one in found]), digits) for _, digits, get in SCORES]


def _weighted(values: Sequence[tuple[int, float | None]]) -> float | None:
    """Mean over cases of what is known: number of cases and value of each fold."""
    known = [(n, value) for n, value in values if value is not None and value == value]
    return sum(n * value for n, value in known) / sum(n for n, _ in known) if known else None


def without_probabilities(candidates: Sequence[Candidate], folds: Sequence[int]) -> str:
    """The first fold whose validation kept no probabilities, in words; empty where all did."""
    for candidate in candidates:
        for fold in folds:
            if not any(candidate.validation(fold).glob("*.npz")):
                return f"fold {fold} of {candidate.name}"
    return ""


@dataclass(frozen=True)
class Best:
    """What :func:`find_best` found.

    Attributes:
        name: of the model, or of the ensemble as nnU-Net calls it.
        dice, postprocessed: of its cross-validation, before and after postprocessing.
        table: a row for each model and ensemble, the best first.
        instructions: commands that predict with it.
    """

    name: str
    dice: float
    postprocessed: float
    table: list[list[str]]
    instructions: str


def find_best(
    dataset: str, candidates: Sequence[Candidate], folds: Sequence[int], *, ensembling: bool, processes: int, overwrite: bool
) -> Best:
    """Runs nnU-Net's comparison, and writes its files with nndiffseg's commands.

    Args:
        dataset: full name.
        candidates: all validated on all folds.
        folds: that are put together.
        ensembling: also compare the ensembles of any two; all validations have probabilities.
        processes: nnU-Net's workers.
        overwrite: put everything together anew.
    """
    models = [{"trainer": c.trainer, "plans": c.plans, "configuration": c.configuration} for c in candidates]
    with redirect_stdout(io.StringIO()):  # commands of nnU-Net's that would predict something else
        found = find_best_configuration(dataset, models, ensembling, processes, overwrite, tuple(folds), strict=True)
    best, ranked = found["best_model_or_ensemble"], sorted(found["all_results"].items(), key=lambda item: -item[1])
    scores = {candidate.name: candidate.scores(folds) for candidate in candidates}
    table = [["model", "Dice", *(heading for heading, *_ in SCORES)]]
    table += [[name, number(dice, 4), *scores.get(name, ["-"] * len(SCORES))] for name, dice in ranked]
    text = instructions(dataset, best, folds, processes)
    with write_atomically(candidates[0].dataset / "inference_instructions.txt") as temporary:
        temporary.write_text(f"{text}\n", encoding="utf8")
    return Best(ranked[0][0], best["result_on_crossval_pre_pp"], best["result_on_crossval_post_pp"], table, text)


def instructions(dataset: str, best: dict[str, Any], folds: Sequence[int], processes: int) -> str:
    """The commands, as nnU-Net lays them out; ``best`` is nnU-Net's ``best_model_or_ensemble``."""
    models = best["selected_model_or_models"]
    ensemble = len(models) > 1
    outputs = [f"OUTPUT_FOLDER_MODEL_{n}" for n in range(1, len(models) + 1)] if ensemble else ["OUTPUT_FOLDER"]
    lines = ["***Run inference like this:***", ""]
    if ensemble:
        lines += ["An ensemble is best. Predict with each of its members:", ""]
    for model, output in zip(models, outputs, strict=True):
        lines.append(
            f"nndiffseg_predict -d {dataset} -i INPUT_FOLDER -o {output} -f {' '.join(map(str, folds))} -tr {model['trainer']} "
            f"-c {model['configuration']} -p {model['plans_identifier']}{' --save_probabilities' if ensemble else ''}"
        )
    if ensemble:
        lines += ["", "Then put them together:", ""]
        lines.append(f"nnUNetv2_ensemble -i {' '.join(outputs)} -o OUTPUT_FOLDER -np {processes}")
    lines += ["", "***Once inference is completed, run postprocessing like this:***", ""]
    lines.append(
        f"nnUNetv2_apply_postprocessing -i OUTPUT_FOLDER -o OUTPUT_FOLDER_PP -pp_pkl_file {best['postprocessing_file']} "
        f"-np {processes} -plans_json {best['some_plans_file']}"
    )
    return "\n".join(lines)
