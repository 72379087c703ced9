"""The content of a report, and its HTML from ``page.html.j2``: one page that loads nothing, with every name escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

from jinja2 import Environment, PackageLoader, StrictUndefined

from nndiffseg.data.images import PIXELS
from nndiffseg.report.charts import VolumeRow
from nndiffseg.uncertainty.means import nanmean
from nndiffseg.uncertainty.volumes import MM3_PER_ML, error_bars

MAX_VOLUME_COLUMNS = 4  # structures whose volumes fit into the table of all cases
NONE = "–"


class EvaluatedCase(TypedDict):
    """How one case compares with the truth: mean Dice over structures, and per structure its volume."""

    dice_mean: float
    volumes: dict[str, VolumeRow]


@dataclass(frozen=True)
class Picture:
    """The slices of a case; all pictures are data URIs.

    Attributes:
        frames: to scroll through, one picture each; empty if they could not be drawn.
        middle: index of the frame that is shown first.
        samples: a picture of each of the first samples.
        plane: name of the plane that these show; empty for a 2D image.
        problem: why nothing could be drawn.
        samples_drawn, samples_saved: number of samples.
    """

    frames: Sequence[str] = ()
    middle: int = 0
    samples: Sequence[str] = ()
    plane: str = ""
    problem: str = ""
    samples_drawn: int = 0
    samples_saved: int = 0


@dataclass(frozen=True)
class Case:
    """One case.

    Attributes:
        id: of the case.
        report: content of ``uncertainty/CASE.json``; empty if there is none.
        evaluation: None if the truth is unknown.
        picture: None if the case is only listed.
    """

    id: str
    report: Mapping[str, Any]
    evaluation: EvaluatedCase | None = None
    picture: Picture | None = None

    @property
    def expected_dice(self) -> float | None:
        """None with a single sample."""
        return self.report.get("expected_dice")

    @property
    def expected_dice_interval(self) -> Sequence[float] | None:
        """90 % interval of the Dice; None where none can be promised."""
        return self.report.get("expected_dice_interval_90")

    @property
    def structures(self) -> Mapping[str, Mapping[str, Any]]:
        """Volumes and agreement per structure."""
        return self.report.get("structures", {})

    @property
    def note(self) -> str:
        """A remark on the case, or nothing."""
        return self.report.get("note", "")

    @property
    def least_certain_structure(self) -> str:
        """The one whose samples agree least."""
        known = {name: s["agreement"] for name, s in self.structures.items() if s.get("agreement") is not None}
        return min(known, key=lambda name: known[name]) if known else NONE


@dataclass(frozen=True)
class Page:
    """Everything on the page. All strings are text, not HTML.

    Attributes:
        title, subtitle: at the top.
        structures: their names.
        cases: the least certain first. Those with a picture come before those without.
        several_folds: aleatoric and epistemic maps differ from the total.
        model: what one of the models is, ``fold`` or ``member`` (:func:`nndiffseg.data.folds.kind_of`).
        samples_saved: samples were kept for at least one case.
        settings: how the prediction was made, name -> value.
        summary: of the evaluation, from :func:`nndiffseg.uncertainty.evaluation.evaluate_predictions`; None if the truth
            is unknown.
        flag_below: cases with a lower expected Dice are marked; None marks none.
        charts: ``spread``, ``volume`` and ``reliability``, as far as they exist -> a PNG as a data URI.
        tables: shown before the cases: title, and rows of cells, the headings first.
    """

    title: str
    subtitle: str
    structures: Sequence[str]
    cases: Sequence[Case]
    several_folds: bool
    samples_saved: bool
    settings: Mapping[str, str] = field(default_factory=dict)
    summary: Mapping[str, Any] | None = None
    charts: Mapping[str, str] = field(default_factory=dict)
    flag_below: float | None = None
    model: str = "fold"
    tables: Sequence[tuple[str, Sequence[Sequence[str]]]] = ()

    def is_flagged(self, case: Case) -> bool:
        """Whether a case is to be looked at."""
        return is_flagged(case.expected_dice, self.flag_below)

    @property
    def volume_columns(self) -> Sequence[str]:
        """The structures whose volumes are in the table of all cases: all or none."""
        return self.structures if len(self.structures) <= MAX_VOLUME_COLUMNS else ()

    @property
    def unit(self) -> str:
        """Of volumes: ml, or pixels."""
        return PIXELS if any(case.report.get("unit") == PIXELS for case in self.cases) else "ml"

    @property
    def scale(self) -> float:
        """Of numbers in ml to that unit."""
        return MM3_PER_ML if self.unit == PIXELS else 1.0

    @property
    def scrolls(self) -> bool:
        """Some case has several frames."""
        return any(case.picture is not None and len(case.picture.frames) > 1 for case in self.cases)

    @property
    def mean_coverage(self) -> float:
        """Share of true volumes in the 90 % interval, mean over structures; NaN if unknown."""
        return nanmean(volume["coverage_90"] for volume in (self.summary or {"volumes": {}})["volumes"].values())


def is_flagged(expected_dice: float | None, below: float | None) -> bool:
    """Whether a case's expected Dice is known and too low."""
    return below is not None and expected_dice is not None and expected_dice < below


def render(page: Page) -> str:
    """The page as an HTML document."""
    return environment().get_template("page.html.j2").render(page=page, error_bars=error_bars)


def environment() -> Environment:
    """Where the templates of all reports come from; every value is escaped."""
    made = Environment(
        loader=PackageLoader("nndiffseg.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    made.filters |= {"number": number, "ml": ml, "interval": interval, "percent": percent}
    return made


def number(value: float | None, digits: int = 3) -> str:
    """With a fixed number of decimals; a dash for None and NaN, here and below."""
    return NONE if value is None or value != value else f"{value:.{digits}f}"


def percent(value: float | None) -> str:
    """A share as a whole percentage."""
    return NONE if value is None or value != value else f"{100 * value:.0f} %"


def ml(value: float | None, scale: float = 1.0) -> str:
    """A volume in ml, times ``scale``, to three significant digits."""
    if value is None or value != value:
        return NONE
    value *= scale
    digits = next((d for d, least in enumerate((100, 10, 1)) if abs(value) >= least), None)
    return f"{value:.3g}" if digits is None else f"{value:.{digits}f}"


def interval(low_high: Sequence[float] | None, scale: float = 1.0) -> str:
    """An interval in ml, times ``scale``."""
    return NONE if not low_high else f"{ml(low_high[0], scale)} to {ml(low_high[1], scale)}"
