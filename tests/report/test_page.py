"""The page shows every number once formatted and every name as it is."""

from __future__ import annotations

import re
from typing import Any

import pytest
from report_page import ParsedPage

from nndiffseg.report.charts import VolumeRow
from nndiffseg.report.page import Case, EvaluatedCase, Page, Picture, interval, ml, number, percent, render

PICTURE = Picture(["data:image/webp;base64,AAAA"])
SCROLLING = Picture(["data:1", "data:2", "data:3"], 1, ["data:s1", "data:s2"], "coronal", samples_drawn=2, samples_saved=9)
STRUCTURE = {
    "segmentation_ml": 12.34,
    "mean_ml": 23.45,
    "sd_ml": 99.9,
    "interval_90_ml": [88.8, 99.9],
    "calibrated_sd_ml": 1.567,
    "calibrated_interval_90_ml": [20.25, 26.75],
    "agreement": 0.777,
}
VOLUME: VolumeRow = {
    "reference_ml": 22.2,
    "mean_ml": 23.45,
    "sd_ml": 1.567,
    "interval_90_ml": [20.25, 26.75],
    "known_sd_ml": 1.234,
}
SUMMARY = {
    "dice_mean": 0.876,
    "error_auroc": 0.954,
    "volumes": {"a": {"spread_ratio": 1.234, "coverage_90": 0.9}, "b": {"spread_ratio": None, "coverage_90": float("nan")}},
}


def parsed(cases: list[Case], **changes: Any) -> ParsedPage:
    content: dict[str, Any] = {
        "title": "title",
        "subtitle": "subtitle",
        "structures": ["a"],
        "several_folds": True,
        "samples_saved": True,
    }
    return ParsedPage(render(Page(cases=cases, **(content | changes))))


def case(name: str = "case", evaluation: EvaluatedCase | None = None, picture: Picture | None = PICTURE, **report) -> Case:
    return Case(name, report, evaluation, picture)


def test_page_loads_nothing_and_closes_every_tag():
    html = render(Page("t", "s", ["a"], [case(structures={"a": STRUCTURE})], True, True, {"k": "v"}, None, {"spread": "data:"}))
    page = ParsedPage(html)
    assert page.open == []
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert not re.search(r"https?://|url\(|@import", html)


@pytest.mark.parametrize(("unit", "words"), [({}, "3.78 ml"), ({"unit": "pixels"}, "3777 pixels")])
def test_photographs_have_areas_in_pixels(unit: dict[str, str], words: str):  # third table
    number, name = words.split()
    html = render(Page("t", "s", ["a"], [case(structures={"a": {**STRUCTURE, "segmentation_ml": 3.777}}, **unit)], True, True))
    assert f"<td>{number}</td>" in html and f"a, {name} (90 %)" in html and f" in {name}</th>" in html


def test_slices_can_be_scrolled_by_a_script_in_the_page_and_without_one_the_middle_is_shown():
    html = render(Page("t", "s", ["a"], [case("x", picture=SCROLLING), case("y")], True, True))
    page = ParsedPage(html)
    assert page.open == []
    assert [(a["type"], a["min"], a["max"], a["value"]) for tag, a in page.tags if tag == "input"] == [("range", "1", "3", "2")]
    assert [attrs for tag, attrs in page.tags if tag == "label"] == [
        {"class": "slider", "hidden": None}
    ]  # until the script runs
    assert "2 of 3" in page.words
    assert [(a["src"], "hidden" in a, a.get("class")) for tag, a in page.tags if tag == "img"][:3] == [
        ("data:1", True, None),
        ("data:2", False, "middle"),
        ("data:3", True, None),
    ]
    assert [attrs for tag, attrs in page.tags if tag == "script"] == [{}]  # inline, and once for all cases
    assert not re.search(r"https?://|url\(|@import|innerHTML|eval", html)


def test_samples_stand_in_a_row_below_the_slices():
    page = parsed([case("x", picture=SCROLLING), case("y")])
    assert page.samples() == ["Sample 1 of x", "Sample 2 of x"]
    assert page.attributes("img", "src") == ["data:1", "data:2", "data:3", "data:s1", "data:s2", PICTURE.frames[0]]
    assert page.words.count("of 9 samples") == 2  # how many outlines are drawn, and how many samples are shown
    assert "The first 2 of 9 samplescoronal, where the model is least certain" in page.words
    assert "The first" not in parsed([case("y")]).words


def test_page_fits_a_phone():
    viewport = [attrs["content"] for tag, attrs in parsed([case()]).tags if tag == "meta" and attrs.get("name") == "viewport"]
    assert viewport == ["width=device-width, initial-scale=1"]


def test_every_colour_of_the_light_scheme_has_a_dark_one():
    style = re.search("<style>(.*)</style>", render(Page("t", "s", [], [], True, True)), re.DOTALL)
    assert style is not None
    light, dark = re.findall(r":root \{(.*?)\}", style[1], re.DOTALL)
    assert "prefers-color-scheme: dark" in style[1]
    names = set(re.findall("(--[a-z]+): #", light))
    assert set(re.findall("(--[a-z]+): #", dark)) == names
    assert set(re.findall(r"var\((--[a-z]+)\)", style[1])) == names


def test_links_lead_to_the_cases():
    page = parsed([case("x"), case("y"), case("z", picture=None)])
    assert page.attributes("a", "href") == ["#case-1", "#case-2"]
    assert page.attributes("section", "id") == ["case-1", "case-2"]
    assert [row[0] for row in page.rows] == ["case", "x", "y", "z"]


def test_cases_without_pictures_are_counted():
    assert "Below are pictures of" not in parsed([case("x")]).words
    page = parsed([case("x"), case("y"), case("z", picture=None)])
    assert "pictures of the 2 least certain of 3 cases. The maps of all cases are in the folder uncertainty." in page.words


def test_table_of_all_cases():
    structures = {"a": STRUCTURE, "b": {"segmentation_ml": 3.0, "agreement": 0.5}}
    head, row = parsed([case("x", expected_dice=0.6, structures=structures, picture=None)], structures=["a", "b"]).rows
    assert head == ["case", "expected Dice", "least certain structure", "a, ml (90 %)", "b, ml (90 %)"]
    assert row == ["x", "0.600", "b", "12.3 (20.2 to 26.8)", "3.00"]


def test_bar_shows_the_expected_dice():
    page = parsed([case(expected_dice=0.456), case()])
    assert page.attributes("i", "style") == ["width:46%"]


@pytest.mark.parametrize(("number_of_structures", "columns"), [(4, 4), (5, 0)])
def test_many_structures_have_no_column_each(number_of_structures, columns):
    page = parsed([case(picture=None)], structures=[f"s{i}" for i in range(number_of_structures)])
    assert [len(row) for row in page.rows] == [3 + columns] * 2


def test_table_of_a_case_shows_its_calibrated_volumes():
    page = parsed([case(structures={"a": STRUCTURE})])
    assert page.rows[2:] == [
        ["volumes in ml", "segmentation", "mean", "sd", "90 % interval", "agreement"],
        ["a", "12.3", "23.4", "1.57", "20.2 to 26.8", "0.777"],
    ]


def test_one_sample_gives_dashes():
    one = {"segmentation_ml": 1.0, "mean_ml": 1.0, "calibrated_sd_ml": None, "calibrated_interval_90_ml": None}
    page = parsed([case(expected_dice=None, structures={"a": one | {"agreement": None}})])
    assert page.rows[1] == ["case", "–", "–", "1.00"]
    assert page.rows[3] == ["a", "1.00", "1.00", "–", "–", "–"]
    assert "expected Dice –" in page.words


def test_case_without_report_has_no_table():
    assert len(parsed([case()]).rows) == 2


def test_truth_adds_its_columns():
    evaluation: EvaluatedCase = {"dice_mean": 0.812, "volumes": {"a": VOLUME}}
    page = parsed([case(evaluation=evaluation, expected_dice=0.9, structures={"a": STRUCTURE})], summary=SUMMARY)
    assert page.rows[1][:3] == ["case", "0.900", "0.812"]
    assert page.rows[2][-2:] == ["true volume", "true sd"]
    assert page.rows[3][-2:] == ["22.2", "1.23"]
    assert "expected Dice 0.900, true Dice 0.812" in page.words


def test_where_the_true_spread_is_unknown_it_has_no_column():
    evaluation: EvaluatedCase = {"dice_mean": float("nan"), "volumes": {"a": {**VOLUME, "known_sd_ml": None}}}
    page = parsed([case(evaluation=evaluation, structures={"a": STRUCTURE})], summary=SUMMARY)
    assert page.rows[2][-1] == "true volume"
    assert "true Dice –" in page.words


def cards(page: ParsedPage) -> int:
    return page.attributes("div", "class").count("card")


def test_headlines_show_the_spread_of_each_structure():
    page = parsed([], summary=SUMMARY)
    assert "Accuracy: mean Dice 0.88" in page.words.replace("Dice0", "Dice 0")
    assert "AUROC0.95" in page.words
    assert "Volume spread: a1.23" in page.words
    assert "coverage" not in page.words
    assert cards(page) == 3


def test_without_known_spread_the_headline_is_coverage():
    volumes = {"a": {"spread_ratio": None, "coverage_90": 0.8}, "b": {"spread_ratio": None, "coverage_90": 0.9}}
    page = parsed([], summary=SUMMARY | {"volumes": volumes | {"c": {"spread_ratio": None, "coverage_90": float("nan")}}})
    assert "Volumes: coverage85 %" in page.words
    assert "Volume spread" not in page.words
    assert cards(page) == 3


def test_charts_are_shown_as_far_as_they_exist():
    page = parsed([], summary=SUMMARY, charts={"volume": "data:1", "reliability": "data:2"})
    assert page.attributes("img", "src") == ["data:1", "data:2"]
    assert page.attributes("img", "alt") == ["Volumes", "Probabilities"]
    assert "Measured against the truth" in page.text
    assert "Measured against the truth" not in parsed([], summary=SUMMARY).text


def test_maps_are_explained_with_the_caveat_on_annotators():
    text = parsed([]).words
    assert "model’s uncertainty about the label, not the variability between annotators" in text
    assert "Epistemic" in text
    assert "One fold was used" not in text


def test_with_one_fold_the_page_says_why_there_is_only_one_map():
    text = parsed([], several_folds=False).words
    assert "One fold was used" in text
    assert "the aleatoric map equals the total and is not drawn twice" in text
    assert "Epistemic" not in text


def test_disagreement_is_that_of_folds_or_of_members():
    """Folds were trained on different cases, so they are no deep ensemble."""
    assert "between the folds’ models" in parsed([]).words and "deep ensemble" not in parsed([]).words
    members = parsed([], model="member").words
    assert "between the members of a deep ensemble" in members and "folds’ models" not in members
    assert "One member was used" in parsed([], model="member", several_folds=False).words


def test_samples_are_explained_or_their_flag_is_named():
    assert "The thin outlines are samples" in parsed([]).words
    assert "--save_samples" not in parsed([]).words
    assert "--save_samples" in parsed([], samples_saved=False).words


def test_true_outline_is_explained_where_there_is_one():
    assert "dashed white outline" in parsed([], summary=SUMMARY).words
    assert "dashed white outline" not in parsed([]).words


@pytest.mark.parametrize(("drawn", "saved", "told"), [(4, 16, True), (16, 16, False), (0, 0, False)])
def test_page_tells_how_many_samples_are_drawn(drawn, saved, told):
    page = parsed([case(picture=Picture(["data:"], samples_drawn=drawn, samples_saved=saved))])
    assert (f"Outlines of {drawn} of {saved} samples are drawn." in page.words) == told


def test_without_a_picture_the_page_says_why():
    page = parsed([case(picture=Picture(problem="no <file>"))])
    assert "No picture: no <file>" in page.words
    assert page.attributes("img", "src") == []


def test_names_are_escaped():
    evil = '<script>alert("x")</script>&amp;$\\frac\' onerror="y"'
    evaluation: EvaluatedCase = {"dice_mean": 0.5, "volumes": {evil: VOLUME}}
    page = parsed(
        [
            case(evil, evaluation, Picture(["data:"]), note=evil, structures={evil: STRUCTURE}),
            case("x", evaluation, Picture(problem=evil)),
        ],
        title=evil,
        subtitle=evil,
        structures=[evil],
        settings={evil: evil},
        summary=SUMMARY | {"volumes": {evil: {"spread_ratio": 1.0, "coverage_90": 0.9}}},
    )
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.attributes("img", "onerror") == []
    assert page.attributes("img", "alt") == [f"Slices of {evil}"]
    # title twice, subtitle, settings twice, headline, head of the overview; of the case its link, least certain
    # structure, heading, table and note; and the other's problem
    assert page.text.count(evil) == 13


def test_settings_are_shown_if_there_are_any():
    page = parsed([], settings={"trainer": "nnDiffSegTrainer"})
    assert page.rows[-1] == ["trainer", "nnDiffSegTrainer"]
    assert "How this was made" in page.text
    assert "How this was made" not in parsed([]).text


def test_volumes_keep_three_significant_digits():
    values = (None, float("nan"), 0.0, 0.012345, 1.2345, 12.345, 1234.5, -12.345)
    assert [ml(v) for v in values] == ["–", "–", "0", "0.0123", "1.23", "12.3", "1234", "-12.3"]
    assert interval([0.5, 12.0]) == "0.5 to 12.0"
    assert interval(None) == "–"


def test_numbers_and_percentages_that_are_missing_are_dashes():
    assert [number(v) for v in (None, float("nan"), 0.12345)] == ["–", "–", "0.123"]
    assert [percent(v) for v in (None, float("nan"), 0.914)] == ["–", "–", "91 %"]
