"""A case's table holds what the library fits a side's calibration to."""

from __future__ import annotations

import numpy as np

from benchmarks.compare.fits import case_table
from benchmarks.compare.library import CasePrediction


def test_a_table_holds_volumes_in_ml_and_means_over_annotations(tiny_data):
    labels = np.zeros((2, 1, 10, 10), np.uint8)
    labels[0, 0, :5], labels[1, 0, :4] = 1, 1
    p = np.stack([labels[0] == k for k in range(3)]).astype(np.float32)
    table = case_table(tiny_data, "x", CasePrediction(p, p, labels, 0.0), labels[:1], (4.0, 2.0, 2.5))
    np.testing.assert_allclose(table.sampled_ml, [[1.0, 0.8], [0, 0]])  # 20 mm^3 a voxel
    np.testing.assert_allclose(table.true_ml, [[1.0], [0]])
    flat = case_table(tiny_data, "x", CasePrediction(p, p, labels, 0.0), labels[:1], (999.0, 1.0, 0.5))
    np.testing.assert_allclose(flat.true_ml, [[0.025], [0]])  # 1 mm thick
    np.testing.assert_allclose(table.dice[:, 0], 1)
    both = case_table(tiny_data, "x", CasePrediction(p, p, labels, 0.0), labels, (4.0, 2.0, 2.5))
    np.testing.assert_allclose(both.dice[:, 0], (1 + 2 * 40 / 90) / 2)
