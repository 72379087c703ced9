"""Tables are small files that survive, or are refused by name."""

from __future__ import annotations

import numpy as np
import pytest

from nndiffseg.calibration import CaseTable, read_tables, write_table
from nndiffseg.errors import UserError


def table(case: str) -> CaseTable:
    rng = np.random.default_rng(len(case))
    dice = rng.random((11, 2))
    dice[0, 1] = np.nan
    return CaseTable(
        case, dice, rng.random(11), rng.random((2, 16)), rng.random((2, 1)), rng.random((11, 1, 33)), rng.random((11, 2))
    )


def test_tables_come_back_sorted_and_equal(tmp_path):
    for case in ("b", "a.b", "c_1"):
        write_table(table(case), tmp_path)
    read = read_tables(tmp_path)
    assert [t.case for t in read] == ["a.b", "b", "c_1"]
    for found in read:
        for name in ("dice", "nll", "sampled_ml", "true_ml", "curves", "confidence"):
            assert np.array_equal(getattr(found, name), getattr(table(found.case), name), equal_nan=True)
    assert all(f.stat().st_size < 8192 for f in tmp_path.iterdir())


def test_a_damaged_one_and_an_empty_folder_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match="holds no tables; validate the fold"):
        read_tables(tmp_path)
    write_table(table("a"), tmp_path)
    file = tmp_path / "a.npz"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match=r"a\.npz cannot be read"):
        read_tables(tmp_path)
    np.savez(file, dice=np.array([object()], dtype=object))
    with pytest.raises(UserError, match=r"a\.npz cannot be read"):
        read_tables(tmp_path)
