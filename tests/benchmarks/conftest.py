"""Makes the folder ``benchmarks``, which is not installed, importable; one tiny preprocessed dataset for all modules."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))


@pytest.fixture(scope="session")
def tiny_folders(make_dataset: Callable[..., Path], tmp_path_factory) -> dict[str, Path]:
    """Raw and preprocessed folder of a 2D dataset of six images with two structures, with a split of two folds."""
    from nndiffseg.cli.plan_and_preprocess import main as plan

    root = tmp_path_factory.mktemp("benchmarks")
    folders = {kind: root / kind for kind in ("raw", "preprocessed", "results")}
    make_dataset(folders["raw"], cases=6, shape=(32, 40), file_ending=".png", splits=True)
    flags = [f"--{kind}={folder}" for kind, folder in folders.items()]
    assert plan(["-d", "901", "-pl", "DiffSegPlannerS", "-c", "2d", "--no_pbar", "-np", "1", "-npfp", "1", *flags]) == 0
    return folders


@pytest.fixture
def tiny_flags(tiny_folders: dict[str, Path], tmp_path: Path) -> list[str]:
    """Flags of the benchmarks' commands for the tiny dataset, with an empty results folder."""
    return [
        "--dataset",
        "901",
        "--configuration",
        "2d",
        "--planner",
        "S",
        "--raw",
        str(tiny_folders["raw"]),
        "--preprocessed",
        str(tiny_folders["preprocessed"]),
        "--results",
        str(tmp_path / "results"),
    ]


@pytest.fixture
def tiny_data(tiny_flags: list[str]):
    """:class:`benchmarks.compare.data.Data` of the tiny dataset."""
    from benchmarks.compare.data import data_from
    from benchmarks.compare.flags import data_parser

    args: Namespace = data_parser("").parse_args(tiny_flags)
    return data_from(args)


@pytest.fixture
def results_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Tables and plots go to a temporary folder."""
    import benchmarks.common
    import benchmarks.compare.plots

    folder = tmp_path / "tables"
    folder.mkdir()
    monkeypatch.setattr(benchmarks.common, "RESULTS", folder)
    monkeypatch.setattr(benchmarks.compare.plots, "IMAGES", folder)
    return folder
