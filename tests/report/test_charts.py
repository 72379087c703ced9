"""Charts hold the numbers that they were given."""

from __future__ import annotations

import numpy as np
from matplotlib.collections import LineCollection, PathCollection

from nndiffseg.report.charts import ReliabilityBins, VolumeRow, reliability_figure, spread_figure, volume_figure

ROW: VolumeRow = {
    "reference_ml": 10.0,
    "mean_ml": 11.0,
    "sd_ml": 3.0,
    "interval_90_ml": [8.0, 14.0],
    "known_sd_ml": 2.0,
}
ONE_SAMPLE: VolumeRow = {**ROW, "sd_ml": None, "interval_90_ml": None}
UNKNOWN: VolumeRow = {**ROW, "known_sd_ml": None}


def points(figure) -> list:
    return [c.get_offsets().tolist() for c in figure.axes[0].collections if isinstance(c, PathCollection)]


def test_spreads_are_one_point_per_case_and_structure():
    figure = spread_figure({"s": [ROW, ONE_SAMPLE], "t": [{**ROW, "sd_ml": 1.0}]})
    assert figure is not None
    assert points(figure) == [[[2.0, 3.0]], [[2.0, 1.0]]]


def test_without_known_spread_there_is_no_such_chart():
    assert spread_figure({"s": [UNKNOWN, ONE_SAMPLE]}) is None


def test_volumes_are_their_mean_and_interval_at_the_true_volume():
    figure = volume_figure({"s": [UNKNOWN, ONE_SAMPLE]})
    assert figure is not None
    (bars,) = (c for c in figure.axes[0].collections if isinstance(c, LineCollection))
    np.testing.assert_array_equal(bars.get_segments(), [[[10.0, 8.0], [10.0, 14.0]]])
    assert points(figure) == [[[10.0, 11.0]]]
    low, high = figure.axes[0].get_xlim()
    assert low < 8 and high > 14
    assert figure.axes[0].get_ylim() == (low, high)


def test_without_intervals_there_is_no_volume_chart():
    assert volume_figure({"s": [ONE_SAMPLE]}) is None


def test_reliability_is_frequency_over_probability_and_larger_where_more_voxels_are():
    bins: ReliabilityBins = {"voxels": [5, 1], "probability": [0.1, 0.8], "frequency": [0.2, 0.7]}
    figure = reliability_figure(bins)
    assert figure is not None
    np.testing.assert_allclose(figure.axes[0].lines[0].get_xydata(), [[0.1, 0.2], [0.8, 0.7]])
    (marks,) = (c for c in figure.axes[0].collections if isinstance(c, PathCollection))
    np.testing.assert_allclose(marks.get_offsets(), [[0.1, 0.2], [0.8, 0.7]])
    assert marks.get_sizes()[0] > marks.get_sizes()[1]
    low, high = figure.axes[0].get_xlim()
    assert low < 0 and high > 1, "marks at the ends cover no numbers"


def test_without_voxels_there_is_no_reliability_chart():
    assert reliability_figure({"voxels": [], "probability": [], "frequency": []}) is None


def test_the_legend_names_every_structure_as_it_is():
    for figure in (spread_figure({"_a": [ROW], "$b$": [ROW]}), volume_figure({"_a": [ROW], "$b$": [ROW]})):
        assert figure is not None
        texts = figure.axes[0].get_legend().get_texts()
        assert [text.get_text().lstrip("\u200b") for text in texts] == ["_a", "$b$"]
        assert not any(text.get_parse_math() for text in texts)


def test_volumes_of_images_without_a_size_in_mm_are_pixels():
    for made, wanted in ((spread_figure, [2000, 3000]), (volume_figure, [10000, 11000])):
        figure = made({"s": [ROW]}, "pixels")
        assert figure is not None and points(figure) == [[wanted]]
        assert all(text.endswith(", pixels") for text in (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()))
