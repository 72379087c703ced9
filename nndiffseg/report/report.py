"""``report.html``: pictures and numbers of a prediction, or of the demo, in one self-contained file."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from nndiffseg.errors import UserError
from nndiffseg.report import page as html
from nndiffseg.report.charts import reliability_figure, spread_figure, volume_figure
from nndiffseg.report.pictures import as_data_uri, case_figure
from nndiffseg.report.slices import full_scale, read_views, sample_files
from nndiffseg.uncertainty.evaluation import case_report, structures_of, uncertainty_map
from nndiffseg.uncertainty.volumes import error_bars

PICTURED = 20  # cases with pictures
COLUMNS = 4  # structures whose volumes fit into the overview


def write_prediction_report(output: Path, images: Mapping[str, Sequence[Path]]) -> Path:
    """Writes the report of a prediction folder: its least certain cases first.

    Args:
        output: folder that ``nndiffseg_predict`` wrote; the report becomes its ``report.html``.
        images: case -> its image files, one per channel; the first is shown.

    Returns:
        The report.

    Raises:
        UserError: ``output`` holds no ``dataset.json``.
    """
    report = _Report(output, {case: Path(files[0]) for case, files in images.items()}, _dataset_json(output))
    cases = report.by_certainty()
    settings = _settings(output)
    name = str(report.dataset_json.get("name", "")) or "Prediction"
    title = f"{name}: segmentations and their uncertainty"
    body = [report.overview(cases), report.explanation(), *report.case_sections(cases)]
    if settings:
        body.append(html.settings_box(settings))
    return _write(output / "report.html", html.page(title, _counts(len(cases), settings), body))


def write_demo_report(
    output: Path,
    predictions: Path,
    images: Path,
    references: Path,
    evaluation: Mapping[str, Any],
    dataset_json: Mapping[str, Any],
) -> Path:
    """Writes the report of the demo: how good segmentations, uncertainty and volumes are where the truth is known.

    Args:
        output: the report becomes its ``report.html``.
        predictions: folder that ``nndiffseg_predict`` wrote.
        images: folder with ``CASE_0000<file_ending>``.
        references: folder with the true labels, ``CASE<file_ending>``.
        evaluation: from :func:`nndiffseg.uncertainty.evaluation.evaluate_predictions`; its cases are shown.
        dataset_json: of the dataset.

    Returns:
        The report.
    """
    ending = dataset_json["file_ending"]
    files = {case: images / f"{case}_0000{ending}" for case in evaluation["cases"]}
    truth = {case: references / f"{case}{ending}" for case in evaluation["cases"]}
    report = _Report(predictions, files, dataset_json, truth, evaluation["cases"])
    cases = report.by_certainty()
    body = [
        _cards(evaluation["summary"]),
        _charts(evaluation, list(report.structures)),
        report.overview(cases),
        report.explanation(),
        *report.case_sections(cases),
    ]
    subtitle = _counts(len(cases), _settings(predictions)) + ", none of which the model saw in training"
    return _write(output / "report.html", html.page("nndiffseg demo: how much to trust a segmentation", subtitle, body))


@dataclass
class _Report:
    """The parts that both reports share.

    Attributes:
        predictions: folder that ``nndiffseg_predict`` wrote.
        images: case -> its first image file.
        dataset_json: of the dataset.
        references: case -> its true label, where there is one.
        evaluated: ``cases`` of an evaluation, or nothing.
    """

    predictions: Path
    images: Mapping[str, Path]
    dataset_json: Mapping[str, Any]
    references: Mapping[str, Path] = field(default_factory=dict)
    evaluated: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.structures = structures_of(dict(self.dataset_json))
        self.reports = {case: case_report(self.predictions, case) for case in self.images}

    def by_certainty(self) -> list[str]:
        """Cases by their expected Dice, the least certain first, those without one (one sample) last."""

        def key(case: str) -> tuple[bool, float, str]:
            expected = self.reports[case].get("expected_dice")
            return expected is None, expected or 0.0, case

        return sorted(self.images, key=key)

    def overview(self, cases: Sequence[str]) -> str:
        """The table of all cases."""
        columns = list(self.structures) if len(self.structures) <= COLUMNS else []
        head = [
            "case",
            "expected Dice",
            *(["true Dice"] if self.evaluated else []),
            "least certain structure",
            *(f"{name}, ml (90 %)" for name in columns),
        ]
        rows = []
        for i, case in enumerate(cases):
            report = self.reports[case]
            found = report.get("structures", {})
            link = f'<a href="#case-{i + 1}">{escape(case)}</a>' if i < PICTURED else escape(case)
            true = [html.number(self.evaluated[case]["dice_mean"])] if self.evaluated else []
            volumes = [_volume(found.get(name, {})) for name in columns]
            rows.append([link, html.dice_cell(report.get("expected_dice")), *true, escape(_least_certain(found)), *volumes])
        note = []
        if (left := len(cases) - PICTURED) > 0:
            note = [
                f'<p class="quiet">Below are pictures of the {PICTURED} least certain of {len(cases)} cases. The other '
                f"{left} {'is' if left == 1 else 'are'} left out; their maps are in the folder <code>uncertainty"
                "</code>.</p>"
            ]
        return html.section("Cases, least certain first", [html.table(head, rows, wide=True), *note])

    def explanation(self) -> str:
        """What pictures and numbers mean, for what was written."""
        ending = self.dataset_json["file_ending"]
        return html.explanation(
            several_folds=any(uncertainty_map(self.predictions, c, "epistemic") for c in self.images),
            samples_saved=any(sample_files(self.predictions, c, ending) for c in self.images),
            with_reference=bool(self.references),
        )

    def case_sections(self, cases: Sequence[str]) -> list[str]:
        """A block per case with pictures and volumes."""
        return [self._case_section(case, i + 1) for i, case in enumerate(cases[:PICTURED])]

    def _case_section(self, case: str, number: int) -> str:
        report = self.reports[case]
        known = self.evaluated[case]["volumes"] if self.evaluated else None
        aside = f"expected Dice {html.number(report.get('expected_dice'))}"
        if self.evaluated:
            aside += f", true Dice {html.number(self.evaluated[case]['dice_mean'])}"
        content = [html.volume_table(report["structures"], known)] if "structures" in report else []
        if "note" in report:
            content.append(f'<p class="quiet">{escape(report["note"])}</p>')
        try:
            content.append(html.picture(as_data_uri(self._figure(case, content)), f"Slices of {case}"))
        except (UserError, FileNotFoundError) as error:  # a picture must not cost a finished prediction its report
            content.append(f'<p class="note">No picture: {escape(str(error))}</p>')
        return html.section(case, content, aside=aside, anchor=f"case-{number}")

    def _figure(self, case: str, content: list[str]) -> Figure:
        views = read_views(self.predictions, case, self.images[case], self.dataset_json, self.references.get(case))
        saved = len(sample_files(self.predictions, case, self.dataset_json["file_ending"]))
        if 0 < len(views[0].samples) < saved:
            content.append(f'<p class="quiet">Outlines of {len(views[0].samples)} of {saved} samples are drawn.</p>')
        return case_figure(views, self.structures, scale=full_scale(self.dataset_json))


def _volume(structure: Mapping[str, Any]) -> str:
    _, low_high = error_bars(structure)
    inside = f' <span class="quiet">({html.interval(low_high)})</span>' if low_high else ""
    return html.ml(structure.get("segmentation_ml")) + inside


def _least_certain(structures: Mapping[str, Any]) -> str:
    known = {name: s["expected_dice"] for name, s in structures.items() if s.get("expected_dice") is not None}
    return min(known, key=lambda name: known[name]) if known else "–"


def _cards(summary: Mapping[str, Any]) -> str:
    """The headline numbers, each with a sentence."""
    dice, auroc = summary["dice_mean"], summary["error_auroc"]
    cards = [
        html.card(
            html.number(dice, 2),
            "Accuracy: mean Dice",
            "Overlap of the segmentations with the true labels: 1 is perfect, 0 is none.",
        ),
        html.card(
            html.number(auroc, 2),
            "Errors are flagged: AUROC",
            "How often a wrong voxel is more uncertain than a right one, near the structures: 0.5 is guessing, 1 is perfect.",
        ),
    ]
    ratios = {k: v for k, v in (summary["volume_spread_ratio"] or {}).items() if k != "mean" and v is not None}
    for name, ratio in ratios.items():
        cards.append(
            html.card(
                html.number(ratio, 2),
                f"Volume spread: {name}",
                "Calibrated spread of the samples’ volumes, divided by the true spread: 1 is right, less is "
                "over-confident, more is over-cautious.",
            )
        )
    if not ratios:
        covered = [v["coverage_90"] for v in summary["volumes"].values() if html.number(v["coverage_90"]) != "–"]
        share = f"{100 * sum(covered) / len(covered):.0f} %" if covered else "–"
        cards.append(
            html.card(
                share, "Volumes: coverage", "So many true volumes lie within the calibrated 90 % interval; 90 % would be right."
            )
        )
    return f'<div class="cards">{"".join(cards)}</div>'


def _charts(evaluation: Mapping[str, Any], structures: Sequence[str]) -> str:
    cases, calibration = evaluation["cases"], evaluation["summary"]["calibration"]
    charts = [
        (
            spread_figure(cases, structures),
            "Spread of the volumes",
            "Each point is one structure of one case. On the dashed line, the samples’ volumes spread exactly as much as the "
            "true volumes do.",
        ),
        (
            volume_figure(cases, structures),
            "Volumes",
            "Each bar is the 90 % interval of one structure of one case. About nine of ten bars should cross the dashed "
            "line, where measured and true volume are equal.",
        ),
        (
            reliability_figure(calibration),
            "Probabilities",
            "Of the voxels to which the model gives a label with 70 % probability, 70 % should truly carry it: on the "
            "dashed line they do. Larger marks stand for more voxels.",
        ),
    ]
    shown = "".join(html.chart(as_data_uri(figure), title, text) for figure, title, text in charts if figure is not None)
    return html.section("Measured against the truth", [f'<div class="charts">{shown}</div>']) if shown else ""


def _dataset_json(folder: Path) -> dict[str, Any]:
    file = folder / "dataset.json"
    if not file.is_file():
        raise UserError(f"{folder} holds no dataset.json; give a folder that nndiffseg_predict wrote.")
    return json.loads(file.read_text(encoding="utf8"))


def _settings(folder: Path) -> dict[str, str]:
    """How the prediction was made, as far as it was recorded; without folders, so that a report can be passed on."""
    file = folder / "predict_from_raw_data_args.json"
    recorded = json.loads(file.read_text(encoding="utf8")) if file.is_file() else {}
    kept = (
        "trainer",
        "plans",
        "configuration",
        "folds",
        "checkpoint",
        "samples",
        "steps",
        "sampler",
        "seed",
        "step_size",
        "mirror_axes",
        "precision",
        "device",
    )
    settings = {key.replace("_", " "): recorded[key] for key in kept if recorded.get(key) is not None}
    settings |= recorded.get("versions", {})
    return {k: ", ".join(map(str, v)) if isinstance(v, list) else str(v) for k, v in settings.items()}


def _counts(cases: int, settings: Mapping[str, str]) -> str:
    samples = f", {settings['samples']} samples of each" if "samples" in settings else ""
    return f"{cases} case{'s' * (cases != 1)}{samples}"


def _write(file: Path, content: str) -> Path:
    """Whole or not at all; the temporary name is unique, since several parts of a prediction may finish together."""
    partial = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    try:
        partial.write_text(content, encoding="utf8")
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)
    return file
