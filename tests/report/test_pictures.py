"""Pictures have the right proportions, and colours where they belong."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib import colormaps
from report_page import open_picture, pixels_of_colour

from nndiffseg.report.pictures import COLOURS, as_data_uri, as_small_data_uri, case_figure, sample_figures, wrong_voxels
from nndiffseg.report.slices import View


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
    red = np.asarray(open_picture(as_data_uri(figure))).astype(int)
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


def test_a_wrong_label_inside_a_region_is_wrong():
    truth, labels = np.array([[0, 1, 2, 9]]), np.array([[0, 2, 2, 1]])
    view = square_view(image=np.zeros((1, 4)), segmentation=labels, reference=truth)
    np.testing.assert_array_equal(wrong_voxels(view, {"whole": (1, 2), "core": (2,)}), [[False, True, False, False]])


def test_pictures_of_a_volume_stand_in_rows_and_those_of_a_2d_image_two_to_a_row():
    maps = {"total": np.zeros((40, 40)), "aleatoric": np.zeros((40, 40))}
    volume = case_figure([square_view(maps=maps)] * 3, {"a": (1,)})
    flat = case_figure([square_view(maps=maps)], {"a": (1,)})
    for figure, expected in ((volume, [3, 3, 3]), (flat, [2, 1])):
        pictures = [ax for ax in figure.axes if ax.images]
        bottoms = sorted({round(ax.get_position().y0, 4) for ax in pictures}, reverse=True)
        assert [sum(round(ax.get_position().y0, 4) == b for ax in pictures) for b in bottoms] == expected


def test_samples_are_thin_outlines_below_the_segmentation():
    sample = np.zeros((40, 40), np.uint8)
    sample[5:35, 5:35] = 1
    thin, thick = case_figure([square_view(samples=[sample, sample])], {"a": (1,)}).axes[0].collections
    assert len(thin.get_segments()) == 2
    assert thin.get_linewidth()[0] < 0.5 * thick.get_linewidth()[0]
    np.testing.assert_allclose(thin.get_segments()[0].min(0), [5, 5])
    np.testing.assert_allclose(thick.get_segments()[0].min(0), [10, 10])


def test_each_sample_has_a_picture_of_its_own_with_the_outline_of_the_segmentation():
    samples = [np.zeros((40, 40), np.uint8) for _ in range(3)]
    for i, sample in enumerate(samples):
        sample[5 + i : 35, 5:35] = 1
    first, second = sample_figures(square_view(samples=samples), {"a": (1,)}, 2)
    for i, figure in enumerate((first, second)):
        (ax,) = figure.axes
        np.testing.assert_array_equal(ax.images[1].get_array()[..., 3] > 0, samples[i] == 1)
        coloured, white = ax.collections
        np.testing.assert_allclose(coloured.get_segments()[0].min(0), [5, 5 + i])
        np.testing.assert_allclose(white.get_segments()[0].min(0), [10, 10])
        assert white.get_color()[0].tolist() == [1, 1, 1, 1]


def test_pictures_of_samples_keep_the_proportions_of_the_slice():
    view = View("", (1.0, 3.0), np.zeros((40, 40)), np.zeros((40, 40)), samples=[np.zeros((40, 40))])
    (figure,) = sample_figures(view, {"a": (1,)}, 6)
    picture = open_picture(as_small_data_uri(figure))
    assert picture.width / picture.height == pytest.approx(3, rel=0.02)
    assert sample_figures(square_view(), {"a": (1,)}, 6) == []


def test_a_window_decides_the_grey_values_of_a_slice():
    bright = np.full((40, 40), 5.0)
    figures = [case_figure([square_view(image=bright, window=w)], {"a": (1,)}) for w in ((0.0, 10.0), None)]
    assert [figure.axes[0].images[0].get_clim() for figure in figures] == [(0.0, 10.0), (5.0, pytest.approx(5.0, abs=1e-5))]


def test_slices_are_much_smaller_than_a_png_and_keep_their_colours():
    image = np.random.default_rng(0).random((40, 40))
    figure = case_figure([square_view(image=image)], {"a": (1,)})
    png, small = as_data_uri(figure), as_small_data_uri(figure)
    assert len(small) < 0.5 * len(png)
    one, other = (np.asarray(open_picture(uri).convert("RGB")).astype(int) for uri in (png, small))
    assert one.shape == other.shape
    assert np.abs(one - other).mean() < 6
    assert pixels_of_colour(open_picture(png), COLOURS[0]) > 500


def test_the_legend_prints_names_as_they_are_and_no_more_than_fit():
    names = ["_hidden", "$x$", "n" * 40, *(f"s{i}" for i in range(20))]
    view = square_view(samples=[np.zeros((40, 40))], reference=np.zeros((40, 40)))
    (legend,) = case_figure([view], {name: (1,) for name in names}).legends
    shown = [text.get_text().lstrip("\u200b") for text in legend.get_texts()]
    assert shown == ["_hidden", "$x$", "n" * 27 + "…", "s0", "s1", "s2", "s3", "1 samples", "true outline", "wrong label"]
    assert not any(text.get_parse_math() for text in legend.get_texts())


@pytest.mark.parametrize(("name", "drawn"), [("axial", "10 mm"), ("axis 1", None), ("", None)])
def test_a_scale_bar_is_drawn_where_the_spacing_is_in_mm(name, drawn):
    view = View(name, (1.0, 1.0), np.zeros((40, 40)), np.zeros((40, 40)))
    texts = [text.get_text() for text in case_figure([view], {"a": (1,)}).axes[0].texts]
    assert ("10 mm" in texts) == (drawn is not None)
    assert any(line.get_xdata()[1] - line.get_xdata()[0] == 10 for line in case_figure([view], {"a": (1,)}).axes[0].lines) == (
        drawn is not None
    )
