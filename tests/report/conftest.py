"""Predictions that a test may change, and a prediction of a photograph."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk


@pytest.fixture
def predictions(oracle_predictions, tmp_path) -> Path:
    """A copy of ``oracle_predictions``: three cases."""
    return Path(shutil.copytree(oracle_predictions, tmp_path / "out"))


@pytest.fixture
def image_files(phantom_dataset) -> dict[str, list[Path]]:
    """The images of these cases."""
    cases = ("phantom_008", "phantom_009", "phantom_010")
    return {case: [phantom_dataset / "imagesTs" / f"{case}_0000.nii.gz"] for case in cases}


@pytest.fixture
def photograph(tmp_path, make_dataset) -> Callable[[str], tuple[Path, Path]]:
    """Makes the prediction of an image of 48 by 64 pixels with a file ending; returns its folder and the image."""

    def make(file_ending: str) -> tuple[Path, Path]:
        dataset = make_dataset(tmp_path / "raw", shape=(48, 64), cases=1, file_ending=file_ending)
        out = tmp_path / "out"
        (out / "uncertainty").mkdir(parents=True)
        shutil.copy(dataset / "dataset.json", out)
        shutil.copy(dataset / "labelsTr" / f"case_000{file_ending}", out)
        total = sitk.GetImageFromArray(np.random.default_rng(0).random((48, 64), np.float32))
        for kind in ("total", "aleatoric", "epistemic"):
            sitk.WriteImage(total, str(out / "uncertainty" / f"case_000_{kind}.nii.gz"))
        return out, dataset / "imagesTr" / f"case_000_0000{file_ending}"

    return make
