"""An archive that unpacks to more than is asked for is refused before anything is unpacked."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from nndiffseg.calibration import tables
from nndiffseg.data.npz import NPZ_ERRORS, check_npz
from nndiffseg.errors import UserError
from nndiffseg.uncertainty.prediction_folder import read_probabilities


def test_what_is_too_large_is_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "case.npz", probabilities=np.zeros((2, 100, 100, 100), np.float32))
    assert (tmp_path / "case.npz").stat().st_size < 100_000
    check_npz(tmp_path / "case.npz", 8_000_000)
    with pytest.raises(ValueError, match="unpacks to"):
        check_npz(tmp_path / "case.npz", 7_000_000)
    with pytest.raises(UserError, match=r"holds no probabilities \(it unpacks to"):
        read_probabilities(tmp_path, "case", (2, 10, 10, 10))
    assert read_probabilities(tmp_path, "case", (2, 100, 100, 100)) is not None


def test_tables_are_bounded_too(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tables, "LARGEST", 1000)
    np.savez_compressed(tmp_path / "case.npz", dice=np.zeros(10**6))
    with pytest.raises(UserError, match="cannot be read"):
        tables.read_tables(tmp_path)


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"PK\x03\x04"])
def test_damage_is_one_of_the_errors_that_callers_expect(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "case.npz").write_bytes(content)
    with pytest.raises(NPZ_ERRORS):
        check_npz(tmp_path / "case.npz", 1)
    with pytest.raises(zipfile.BadZipFile):
        check_npz(tmp_path / "case.npz", 1)
