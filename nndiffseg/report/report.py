"""Writes ``report.html``: pictures and numbers of a prediction, or of the demo, in one self-contained file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nndiffseg.data.dataset_json import structures_of
from nndiffseg.data.dataset_schema import check_dataset_json
from nndiffseg.data.files import read_json, write_atomically
from nndiffseg.data.folds import kind_of
from nndiffseg.errors import UserError
from nndiffseg.report.charts import reliability_figure, spread_figure, volume_figure
from nndiffseg.report.page import Case, EvaluatedCase, Page, Picture, render
from nndiffseg.report.pictures import as_data_uri, as_small_data_uri, case_figure, sample_figures
from nndiffseg.report.slices import full_scale, read_views, sample_files
from nndiffseg.uncertainty.prediction_folder import case_report, uncertainty_map

MAX_PICTURED_CASES = 20
MAX_SAMPLE_PICTURES = 6
#: What a report tells of ``predict_from_raw_data_args.json``: no folders, so that it can be passed on.
SETTINGS = (
    *("trainer", "plans", "configuration", "folds", "checkpoint", "samples", "steps", "sampler", "seed"),
    *("step_size", "mirror_axes", "precision", "device"),
)


def write_prediction_report(
    output: Path, images: Mapping[str, Sequence[Path]], flag_below: float | None = None, *, progress: bool = False
) -> Path:
    """Writes the report of a prediction, with the least certain cases first.

    Args:
        output: folder written by ``nndiffseg_predict``; the report becomes its ``report.html``.
        images: case -> its image files, one per channel; the first is shown.
        flag_below: mark cases with a lower expected Dice.
        progress: show a progress bar.

    Returns:
        The report.

    Raises:
        UserError: ``output`` holds no ``dataset.json``.
    """
    first_files = {case: Path(files[0]) for case, files in images.items()}
    source = _Source(output, first_files, _read_dataset_json(output), progress=progress)
    name = str(source.dataset_json.get("name", "")) or "Prediction"
    settings = _read_settings(output)
    page = source.page(f"{name}: segmentations and their uncertainty", _counts(len(images), settings))
    return _write(output, replace(page, settings=settings, flag_below=flag_below))


def write_demo_report(
    output: Path,
    predictions: Path,
    images: Path,
    references: Path,
    evaluation: Mapping[str, Any],
    dataset_json: Mapping[str, Any],
) -> Path:
    """Writes the report of the demo: the quality of segmentations, uncertainty and volumes where the truth is known.

    Args:
        output: the report becomes its ``report.html``.
        predictions: folder written by ``nndiffseg_predict``.
        images: folder with ``CASE_0000<file_ending>``.
        references: folder with the true labels, ``CASE<file_ending>``.
        evaluation: from :func:`nndiffseg.uncertainty.evaluation.evaluate_predictions`; its cases are shown.
        dataset_json: of the dataset.

    Returns:
        The report.
    """
    ending, cases = dataset_json["file_ending"], evaluation["cases"]
    source = _Source(
        predictions,
        {case: images / f"{case}_0000{ending}" for case in cases},
        dataset_json,
        {case: references / f"{case}{ending}" for case in cases},
        cases,
    )
    subtitle = f"{_counts(len(cases), _read_settings(predictions))}, none of which the model saw in training"
    page = source.page("nndiffseg demo: how much to trust a segmentation", subtitle)
    return _write(output, replace(page, summary=evaluation["summary"], charts=_charts(evaluation, page.structures)))


def write_cross_validation_report(
    output: Path,
    title: str,
    predictions: Path,
    images: Mapping[str, Path],
    references: Path,
    evaluation: Mapping[str, Any],
    tables: Sequence[tuple[str, Sequence[Sequence[str]]]],
) -> Path:
    """Writes the report of a cross-validation: every case as the fold that had not seen it predicts it.

    Args:
        output: the report becomes its ``report.html``.
        title: of the page.
        predictions: of all folds, in one folder with ``dataset.json``.
        images: case -> its first image file.
        references: folder with the true labels, ``CASE<file_ending>``.
        evaluation: from :func:`nndiffseg.uncertainty.evaluation.evaluate_predictions`; its cases are shown.
        tables: see :class:`nndiffseg.report.page.Page`.

    Returns:
        The report.
    """
    dataset_json, cases = _read_dataset_json(predictions), evaluation["cases"]
    labels = {case: references / f"{case}{dataset_json['file_ending']}" for case in cases}
    source = _Source(predictions, images, dataset_json, labels, cases)
    page = source.page(title, f"{_counts(len(cases), {})}, each predicted by the fold that had not seen it")
    charts = _charts(evaluation, page.structures)
    return _write(output, replace(page, summary=evaluation["summary"], charts=charts, tables=tables))


@dataclass(frozen=True)
class _Source:
    """The files behind a report.

    Attributes:
        predictions: folder written by ``nndiffseg_predict``.
        images: case -> its first image file.
        dataset_json: of the dataset.
        references: case -> its true labels, if there are any.
        evaluations: case -> how it compares with the truth, if that is known.
        progress: show a progress bar.
    """

    predictions: Path
    images: Mapping[str, Path]
    dataset_json: Mapping[str, Any]
    references: Mapping[str, Path] = field(default_factory=dict)
    evaluations: Mapping[str, EvaluatedCase] = field(default_factory=dict)
    progress: bool = False

    def page(self, title: str, subtitle: str) -> Page:
        """The part of the page that both reports share."""
        return Page(
            title,
            subtitle,
            list(structures_of(self.dataset_json)),
            self._cases(),
            several_folds=any(uncertainty_map(self.predictions, case, "epistemic") for case in self.images),
            samples_saved=any(self._sample_files(case) for case in self.images),
            model=kind_of(_recorded(self.predictions).get("folds") or ()),
        )

    def _cases(self) -> list[Case]:
        """By expected Dice, those without one (a single sample) last; the first ones with pictures."""
        cases = [Case(case, case_report(self.predictions, case), self.evaluations.get(case)) for case in self.images]
        cases.sort(key=lambda case: (case.expected_dice is None, case.expected_dice or 0.0, case.id))
        chosen = cases[:MAX_PICTURED_CASES]
        frames = frames_per_case(len(chosen))
        with tqdm(chosen, desc="report", disable=not self.progress, dynamic_ncols=True) as bar:
            return [replace(case, picture=self._picture(case.id, frames)) for case in bar] + cases[MAX_PICTURED_CASES:]

    def _picture(self, case: str, frames: int) -> Picture:
        reference, structures = self.references.get(case), structures_of(self.dataset_json)
        try:
            views = read_views(self.predictions, case, self.images[case], self.dataset_json, reference, frames)
            figures = [case_figure(frame, structures, scale=full_scale(self.dataset_json)) for frame in views.frames]
        except (UserError, FileNotFoundError) as error:  # a finished prediction gets its report without this picture
            return Picture(problem=self._without_folders(str(error)))
        doubtful = views.doubtful
        return Picture(
            [as_small_data_uri(figure) for figure in figures],
            views.middle,
            [as_small_data_uri(figure) for figure in sample_figures(doubtful, structures, MAX_SAMPLE_PICTURES)],
            doubtful.name,
            samples_drawn=len(doubtful.samples),
            samples_saved=len(self._sample_files(case)),
        )

    def _without_folders(self, message: str) -> str:
        """A report is passed on: files are named without the folders of this machine."""
        files = [*self.images.values(), *self.references.values()]
        for folder in sorted({self.predictions, *(file.parent for file in files)}, key=lambda f: -len(str(f))):
            message = message.replace(f"{folder}{os.sep}", "")
        return message

    def _sample_files(self, case: str) -> list[Path]:
        return sample_files(self.predictions, case, self.dataset_json["file_ending"])


def frames_per_case(cases: int) -> int:
    """Positions at which the planes cut each case; fewer for many cases, to keep the page small and quickly drawn."""
    return 7 if cases <= 10 else 5


def _charts(evaluation: Mapping[str, Any], structures: Sequence[str]) -> dict[str, str]:
    """See :class:`nndiffseg.report.page.Page`."""
    volumes = {name: [case["volumes"][name] for case in evaluation["cases"].values()] for name in structures}
    calibration, unit = evaluation["summary"]["calibration"], evaluation["summary"].get("unit", "ml")
    figures = {
        "spread": spread_figure(volumes, unit),
        "volume": volume_figure(volumes, unit),
        "reliability": reliability_figure(calibration["bins"]) if calibration else None,
    }
    return {name: as_data_uri(figure) for name, figure in figures.items() if figure is not None}


def _read_dataset_json(folder: Path) -> dict[str, Any]:
    file = folder / "dataset.json"
    if not file.is_file():
        raise UserError(f"{folder} holds no dataset.json; give a folder that nndiffseg_predict wrote.")
    return check_dataset_json(read_json(file, "predict again"), str(file), "predict again")


def _recorded(folder: Path) -> dict[str, Any]:
    """What ``nndiffseg_predict`` wrote about its run; empty where it did not."""
    file = folder / "predict_from_raw_data_args.json"
    content = read_json(file, "predict again") if file.is_file() else {}
    return content if isinstance(content, dict) else {}


def _read_settings(folder: Path) -> dict[str, str]:
    """How the prediction was made, as far as it was recorded: :data:`SETTINGS` and versions."""
    recorded = _recorded(folder)
    settings = {name.replace("_", " "): recorded[name] for name in SETTINGS if recorded.get(name) is not None}
    versions = recorded.get("versions")
    settings |= versions if isinstance(versions, dict) else {}
    return {name: ", ".join(map(str, v)) if isinstance(v, list) else str(v) for name, v in settings.items()}


def _counts(cases: int, settings: Mapping[str, str]) -> str:
    samples = f", {settings['samples']} samples of each" if "samples" in settings else ""
    return f"{cases} case{'s' * (cases != 1)}{samples}"


def _write(folder: Path, page: Page) -> Path:
    file = folder / "report.html"
    with write_atomically(file) as temporary:
        temporary.write_text(render(page), encoding="utf8")
    return file
