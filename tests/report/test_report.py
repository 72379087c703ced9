from __future__ import annotations

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from matplotlib import colormaps
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from PIL import Image

from nndiffseg.data.phantom import STRUCTURES
from nndiffseg.errors import UserError
from nndiffseg.report.charts import reliability_figure, spread_figure, volume_figure
from nndiffseg.report.page import interval, ml
from nndiffseg.report.pictures import as_data_uri, case_figure
from nndiffseg.report.report import write_demo_report, write_prediction_report
from nndiffseg.report.slices import View, find_planes, full_scale, read_views, samples_shown
from nndiffseg.uncertainty.evaluation import evaluate_predictions

CASES = ("phantom_008", "phantom_009", "phantom_010")


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(file.read_text(encoding="utf8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def attributes(self, tag: str, name: str) -> list[str | None]:
        return [attrs[name] for t, attrs in self.tags if t == tag and name in attrs]

    def pictures(self) -> list[Image.Image]:
        sources = [s or "" for s in self.attributes("img", "src")]
        assert all(s.startswith("data:image/png;base64,") for s in sources)
        return [Image.open(io.BytesIO(base64.b64decode(s.split(",")[1]))) for s in sources]


def image_files(dataset: Path) -> dict[str, list[Path]]:
    return {case: [dataset / "imagesTs" / f"{case}_0000.nii.gz"] for case in CASES}


@pytest.fixture
def predictions(oracle_predictions, tmp_path) -> Path:
    return Path(shutil.copytree(oracle_predictions, tmp_path / "out"))


def edit_report(predictions: Path, case: str, **changes) -> None:
    file = predictions / "uncertainty" / f"{case}.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_report_is_one_file_that_loads_nothing_and_leaves_nothing_beside_it(predictions, phantom_dataset):
    before = set(predictions.rglob("*"))
    report = write_prediction_report(predictions, image_files(phantom_dataset))
    assert report == predictions / "report.html"
    assert set(predictions.rglob("*")) - before == {report}
    page = Page(report)
    assert page.open == []  # every tag is closed
    assert all(h and h.startswith("#") for h in page.attributes("a", "href"))
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert not re.search(r"https?://|url\(|@import", report.read_text(encoding="utf8"))
    assert len(page.pictures()) == len(CASES)


def test_least_certain_case_comes_first_and_links_lead_to_the_cases(predictions, phantom_dataset):
    for case, dice in zip(CASES, (0.9, 0.5, None), strict=True):
        edit_report(predictions, case, expected_dice=dice)
    page = Page(write_prediction_report(predictions, image_files(phantom_dataset)))
    order = [CASES[1], CASES[0], CASES[2]]
    overview = page.text[page.text.index("least certain first") : page.text.index("How to read")]
    assert sorted(order, key=overview.index) == order
    assert page.attributes("a", "href") == ["#case-1", "#case-2", "#case-3"]
    assert [a for a in page.attributes("section", "id") if a] == ["case-1", "case-2", "case-3"]


def test_maps_are_explained_with_the_caveat_on_annotators(predictions, phantom_dataset):
    text = Page(write_prediction_report(predictions, image_files(phantom_dataset))).text
    assert "model’s uncertainty about the label, not the variability between annotators" in text
    assert "Epistemic" in text
    assert "One fold was used" not in text


def test_with_one_fold_the_report_says_that_aleatoric_is_total_and_draws_it_once(predictions, phantom_dataset):
    images = image_files(phantom_dataset)
    several = Page(write_prediction_report(predictions, images)).pictures()[0]
    for case in CASES:
        (predictions / "uncertainty" / f"{case}_epistemic.nii.gz").unlink()
    page = Page(write_prediction_report(predictions, images))
    assert "One fold was used" in page.text
    assert "the aleatoric map equals the total and is not drawn twice" in page.text
    assert page.pictures()[0].height < 0.6 * several.height  # two rows instead of four


def test_volumes_of_every_structure_are_in_the_case_table(predictions, phantom_dataset):
    edit_report(
        predictions,
        CASES[0],
        structures={
            "a": {
                "segmentation_ml": 12.34,
                "mean_ml": 23.45,
                "calibrated_sd_ml": 1.567,
                "calibrated_interval_90_ml": [20.25, 26.75],
                "expected_dice": 0.777,
            }
        },
    )
    text = Page(write_prediction_report(predictions, image_files(phantom_dataset))).text
    for shown in ("12.3", "23.4", "1.57", "20.2 to 26.8", "0.777"):
        assert shown in text


def test_one_sample_gives_dashes_and_no_crash(predictions, phantom_dataset):
    one = {"segmentation_ml": 1.0, "mean_ml": 1.0, "sd_ml": None, "interval_90_ml": None, "expected_dice": None, "samples": 1}
    for case in CASES:
        edit_report(predictions, case, expected_dice=None, structures={"core": one, "shell": one})
    assert Page(write_prediction_report(predictions, image_files(phantom_dataset))).text.count("–") >= 3 * len(CASES)


def test_names_are_escaped(predictions, phantom_dataset):
    evil = 'x<img src=y onerror="z">&amp;$\\frac'
    for file in [*predictions.rglob(f"{CASES[0]}*")]:
        file.rename(file.with_name(file.name.replace(CASES[0], "a<b>&c")))
    dataset_json = json.loads((predictions / "dataset.json").read_text())
    dataset_json["labels"] = {"background": 0, evil: 1, "_<script>": 2}
    dataset_json["name"] = "<h6>"
    (predictions / "dataset.json").write_text(json.dumps(dataset_json))
    edit_report(predictions, "a<b>&c", structures={evil: {"mean_ml": 1.0}, "_<script>": {"mean_ml": 1.0}}, note="<u>")
    page = Page(write_prediction_report(predictions, {"a<b>&c": image_files(phantom_dataset)[CASES[0]]}))
    assert not {"b", "script", "h6", "u"} & {tag for tag, _ in page.tags}
    assert len(page.pictures()) == 1
    assert evil in page.text
    assert "a<b>&c" in page.text


def test_more_than_twenty_cases_are_listed_but_only_twenty_drawn(predictions, phantom_dataset, monkeypatch):
    monkeypatch.setattr("nndiffseg.report.report.PICTURED", 2)
    page = Page(write_prediction_report(predictions, image_files(phantom_dataset)))
    assert len(page.pictures()) == 2
    assert "pictures of the 2 least certain of 3 cases. The other 1 is left out" in page.text
    assert all(case in page.text for case in CASES)


def test_a_broken_file_costs_its_picture_not_the_report(predictions, phantom_dataset):
    (predictions / "uncertainty" / f"{CASES[1]}_total.nii.gz").unlink()
    (predictions / f"{CASES[0]}.nii.gz").write_bytes(b"nothing")
    page = Page(write_prediction_report(predictions, image_files(phantom_dataset)))
    assert len(page.pictures()) == 2
    assert "No picture:" in page.text


def test_a_folder_without_dataset_json_is_no_prediction(tmp_path):
    with pytest.raises(UserError, match=r"holds no dataset\.json"):
        write_prediction_report(tmp_path, {})
    assert not list(tmp_path.iterdir())


def test_settings_are_shown_without_folders(predictions, phantom_dataset):
    (predictions / "predict_from_raw_data_args.json").write_text(
        json.dumps(
            {
                "input_folder": "/home/someone/in",
                "model": "/home/someone/model",
                "trainer": "nnDiffSegTrainer",
                "samples": 16,
                "folds": ["0", "1"],
                "versions": {"nndiffseg": "9.9"},
            }
        )
    )
    text = Page(write_prediction_report(predictions, image_files(phantom_dataset))).text
    assert "3 cases, 16 samples of each" in text
    assert "nnDiffSegTrainer" in text
    assert "0, 1" in text
    assert "9.9" in text
    assert "someone" not in text


def test_demo_report_shows_headlines_charts_and_the_truth(oracle_predictions, phantom_dataset, tmp_path):
    dataset_json = json.loads((phantom_dataset / "dataset.json").read_text())
    evaluation = evaluate_predictions(
        oracle_predictions, phantom_dataset / "labelsTs", dataset_json=dataset_json, truth=phantom_dataset / "truth.json"
    )
    report = write_demo_report(
        tmp_path, oracle_predictions, phantom_dataset / "imagesTs", phantom_dataset / "labelsTs", evaluation, dataset_json
    )
    assert list(tmp_path.iterdir()) == [report]
    page, summary = Page(report), evaluation["summary"]
    assert page.open == []
    for value in (summary["dice_mean"], summary["error_auroc"], *(summary["volume_spread_ratio"][s] for s in STRUCTURES)):
        assert f"{value:.2f}" in page.text
    assert len(page.pictures()) == 3 + len(CASES)
    assert "true outline" in page.text.lower()
    assert "true sd" in page.text


def test_demo_report_on_own_data_has_coverage_instead_of_spread(oracle_predictions, phantom_dataset, tmp_path):
    dataset_json = json.loads((phantom_dataset / "dataset.json").read_text())
    evaluation = evaluate_predictions(oracle_predictions, phantom_dataset / "labelsTs", dataset_json=dataset_json)
    evaluation["summary"]["calibration"] = None
    page = Page(
        write_demo_report(
            tmp_path, oracle_predictions, phantom_dataset / "imagesTs", phantom_dataset / "labelsTs", evaluation, dataset_json
        )
    )
    assert "Volume spread" not in page.text
    assert "Volumes: coverage" in page.text
    assert "true sd" not in page.text
    assert len(page.pictures()) == 1 + len(CASES)  # of the charts, the volumes alone


def test_charts_hold_the_numbers():
    row = {"known_sd_ml": 2.0, "sd_ml": 3.0, "reference_ml": 10.0, "mean_ml": 11.0, "interval_90_ml": [8.0, 14.0]}
    cases = {"a": {"volumes": {"s": row}}, "b": {"volumes": {"s": row | {"sd_ml": None, "interval_90_ml": None}}}}
    spread, volume = spread_figure(cases, ["s"]), volume_figure(cases, ["s"])
    assert spread is not None
    assert volume is not None
    points = [c for c in spread.axes[0].collections if len(c.get_offsets()) and c.get_label() == "s"]
    np.testing.assert_array_equal(points[0].get_offsets(), [[2.0, 3.0]])
    bars = volume.axes[0].collections[0].get_segments()
    np.testing.assert_array_equal(bars, [[[10.0, 8.0], [10.0, 14.0]]])
    bins = {"voxels": [5, 1], "probability": [0.1, 0.8], "frequency": [0.2, 0.7]}
    reliability = reliability_figure({"bins": bins})
    assert reliability is not None
    np.testing.assert_allclose(reliability.axes[0].lines[0].get_xydata(), [[0.1, 0.2], [0.8, 0.7]])
    unknown = {"a": {"volumes": {"s": row | {"known_sd_ml": None}}}}
    assert spread_figure(unknown, ["s"]) is None
    assert reliability_figure(None) is None


@pytest.mark.parametrize("reader", [SimpleITKIO, NibabelIO])
@pytest.mark.parametrize("orientation", ["LPS", "RAS", "RAI", "PIR", "SAL"])
def test_planes_are_anatomical_however_the_file_stores_its_axes(tmp_path, reader, orientation):
    volume = np.zeros((12, 16, 20), np.float32)  # (superior, posterior, left)
    volume[9, 4, 14] = 1
    blob = np.zeros(volume.shape, np.uint8)
    blob[7:10, 4:8, 10:16] = 1
    files = []
    for name, array in (("image", volume), ("label", blob)):
        image = sitk.GetImageFromArray(array)
        image.SetSpacing((1.0, 2.0, 3.0))  # left, posterior, superior
        sitk.WriteImage(sitk.DICOMOrient(image, orientation), str(tmp_path / f"{name}.nii.gz"))
        files.append(str(tmp_path / f"{name}.nii.gz"))
    image_array, properties = reader().read_images(files[:1])
    labels = reader().read_seg(files[1])[0][0]
    planes = find_planes(labels, np.zeros_like(image_array[0]), None, properties, 1.0)
    assert planes.names == ("axial", "coronal", "sagittal")
    np.testing.assert_allclose([planes.pixel(i) for i in range(3)], [(2, 1), (3, 1), (3, 2)], rtol=1e-5)
    # superior is up in coronal and sagittal slices, posterior down in axial and right in sagittal ones, left is right
    upright = volume[::-1]
    assert planes.position == (12 - 1 - 8, 5, 12)
    for axis, cut in enumerate(planes.cut(labels)):
        expected = blob[::-1].take(planes.position[axis], axis)
        window = [b for i, b in enumerate(planes.box) if i != axis]
        np.testing.assert_array_equal(cut, expected[tuple(window)])
    z, y, x = (int(i[0]) for i in np.nonzero(upright))
    through = type(planes)(
        planes.names, planes.order, planes.flipped, planes.spacing, (z, y, x), tuple(slice(0, n) for n in volume.shape)
    )
    assert [np.argwhere(c).tolist() for c in through.cut(image_array[0])] == [[[y, x]], [[z, x]], [[z, y]]]


def planes_of(segmentation, total=None, reference=None):
    total = np.zeros(segmentation.shape) if total is None else total
    return find_planes(segmentation, total, reference, {"spacing": (1.0, 1.0, 1.0)}, 1.0)


def test_each_slice_cuts_the_foreground_even_of_a_hollow_structure():
    z, y, x = np.indices((40, 40, 40)) - 20
    shell = (np.abs(np.sqrt(z**2 + y**2 + x**2) - 12) < 1).astype(np.uint8)
    assert all(cut.any() for cut in planes_of(shell).cut(shell))


def test_without_foreground_the_most_uncertain_voxel_is_shown_else_the_middle():
    empty, total = np.zeros((10, 12, 14), np.uint8), np.zeros((10, 12, 14))
    assert planes_of(empty).position == (4, 5, 6)
    total[2, 7, 11] = 0.3
    assert planes_of(empty, total).position == (2, 7, 11)
    truth = np.zeros_like(empty)
    truth[5, 6, 7] = 1
    assert planes_of(empty, total, truth).position == (5, 6, 7)


def test_field_of_view_holds_structure_truth_and_doubt_and_stays_inside():
    segmentation, total = np.zeros((100, 100, 100), np.uint8), np.zeros((100, 100, 100))
    segmentation[2:12, 40:60, 40:60] = 1
    total[50, 50, 70] = 0.9
    box = planes_of(segmentation, total).box
    assert all(0 <= b.start < b.stop <= 100 for b in box)
    assert box[0].start == 0
    assert box[0].stop > 50
    assert box[2].stop > 70
    assert box[1].stop - box[1].start < 100  # a cut-out, not the whole image


@pytest.mark.parametrize(("labels", "scale"), [
    ({"background": 0, "a": 1}, 1.0),
    ({"background": 0, "a": 1, "b": 2, "c": 3}, 0.5),
    ({"background": 0, "whole": [1, 2], "core": 2}, 0.5),
    ({"background": 0, "a": 1, "ignore": 2}, 1.0),
])  # fmt: skip
def test_colour_scale_ends_where_two_labels_are_equally_likely(labels, scale):
    assert full_scale({"labels": labels}) == pytest.approx(scale)


def test_large_volumes_show_fewer_samples():
    assert (samples_shown(31 * 40 * 24), samples_shown(182 * 218 * 182), samples_shown(512**3)) == (16, 8, 4)


def pixels(figure) -> np.ndarray:
    picture = Image.open(io.BytesIO(base64.b64decode(as_data_uri(figure).split(",")[1])))
    return np.asarray(picture).astype(int)


def square_view(**changes) -> View:
    shape = (40, 40)
    label = np.zeros(shape, np.uint8)
    label[10:30, 10:30] = 1
    return View("", (1.0, 1.0), changes.pop("image", np.zeros(shape)), changes.pop("segmentation", label), **changes)


def test_spacing_decides_the_proportions():
    flat = View("", (1.0, 3.0), np.zeros((40, 40)), np.zeros((40, 40)), {"total": np.zeros((40, 40))})
    ax = case_figure([flat], {"a": (1,)}).axes[0]
    box = ax.get_window_extent()
    assert box.width / box.height == pytest.approx(3, rel=1e-3)
    assert ax.get_aspect() == 1.0
    assert (ax.get_xlim(), ax.get_ylim()) == ((0, 120), (40, 0))


def test_errors_are_red_where_the_label_is_wrong_and_nowhere_else():
    truth = np.zeros((40, 40), np.uint8)
    truth[10:30, 10:20] = 1
    truth[0:5, 0:5] = 9  # ignored: no structure
    view = square_view(reference=truth)
    figure = case_figure([view], {"a": (1,)})
    ax = figure.axes[1]
    wrong = ax.images[1].get_array()[..., 3] > 0
    expected = np.zeros((40, 40), bool)
    expected[10:30, 20:30] = True
    np.testing.assert_array_equal(wrong, expected)
    red = pixels(figure)
    assert ((red[..., 0] > 200) & (red[..., 1] < 80) & (red[..., 2] < 80)).sum() > 1000


def test_certain_voxels_show_the_image_and_undecided_ones_the_bright_end():
    total = np.zeros((40, 40))
    total[20:] = 0.5
    figure = case_figure([square_view(maps={"total": total}, segmentation=np.zeros((40, 40)))], {"a": (1,)}, scale=0.5)
    overlay = figure.axes[1].images[1].get_array()
    assert overlay[5, 5, 3] == 0
    np.testing.assert_allclose(overlay[35, 5, :3], colormaps["inferno"](0.97)[:3], atol=0.01)


def test_contours_enclose_the_structure_in_mm_and_close_at_the_border():
    label = np.zeros((40, 40), np.uint8)
    label[0:20, 10:30] = 1
    view = View("", (2.0, 0.5), np.zeros((40, 40)), label)
    lines = case_figure([view], {"a": (1,)}).axes[0].collections[0].get_segments()
    assert len(lines) == 1
    np.testing.assert_allclose(lines[0].min(0), [5.0, 0.0], atol=1e-6)
    np.testing.assert_allclose(lines[0].max(0), [15.0, 40.0], atol=1e-6)
    np.testing.assert_allclose(lines[0][0], lines[0][-1])


@pytest.mark.parametrize("file_ending", [".png", ".tif"])
def test_photographs_are_drawn_two_in_a_row(tmp_path, make_dataset, file_ending):
    dataset = make_dataset(tmp_path / "raw", shape=(48, 64), cases=1, file_ending=file_ending)
    out = tmp_path / "out"
    (out / "uncertainty").mkdir(parents=True)
    shutil.copy(dataset / "dataset.json", out)
    shutil.copy(dataset / "labelsTr" / f"case_000{file_ending}", out)
    total = sitk.GetImageFromArray(np.random.default_rng(0).random((48, 64), np.float32))
    for kind in ("total", "aleatoric", "epistemic"):
        sitk.WriteImage(total, str(out / "uncertainty" / f"case_000_{kind}.nii.gz"))
    image = dataset / "imagesTr" / f"case_000_0000{file_ending}"
    views = read_views(out, "case_000", image, json.loads((out / "dataset.json").read_text()))
    assert [(v.name, v.image.shape, sorted(v.maps)) for v in views] == [("", (48, 64), ["aleatoric", "epistemic", "total"])]
    np.testing.assert_allclose(views[0].maps["total"], sitk.GetArrayFromImage(total))
    (picture,) = Page(write_prediction_report(out, {"case_000": [image]})).pictures()
    assert picture.width == 9 * 130  # two rows of two pictures, each 48:64
    assert 0.7 < picture.height / picture.width < 0.85


def test_real_case_is_drawn_from_a_prediction_of_real_data(hippocampus, tmp_path):
    case, out = "hippocampus_049", tmp_path / "out"
    out.mkdir()
    shutil.copy(hippocampus / "dataset.json", out)
    shutil.copy(hippocampus / "labelsTr" / f"{case}.nii.gz", out)
    page = Page(write_prediction_report(out, {case: [hippocampus / "imagesTr" / f"{case}_0000.nii.gz"]}))
    assert pixels_of_colour(page.pictures()[0], "#56b4e9") > 100
    assert pixels_of_colour(page.pictures()[0], "#e69f00") > 100


def pixels_of_colour(picture: Image.Image, colour: str) -> int:
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(np.asarray(picture).astype(int) - wanted).max(-1) <= 4).sum())


def test_volumes_keep_three_significant_digits():
    assert [ml(v) for v in (None, float("nan"), 0.0, 0.012345, 1.2345, 12.345, 1234.5)] == [
        "–",
        "–",
        "0",
        "0.0123",
        "1.23",
        "12.3",
        "1234",
    ]
    assert interval([0.5, 12.0]) == "0.5 to 12.0"
    assert interval(None) == "–"
