"""Shared fixtures: real data where it is there, tiny generated datasets and phantoms everywhere else."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nndiffseg.data.phantom import STRUCTURES, case_generators, draw_geometry, draw_label, write_phantom_dataset
from nndiffseg.uncertainty import PairwiseOverlap, entropy, expected_dice, volume_statistics

ROOT = Path(__file__).resolve().parents[1]
# One thread for each worker of the suite and for the commands that it starts: two workers of two threads
# on two cores wait for each other inside every small convolution and take several times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
#: Unit tests, folders and modules: `pytest -m fast` runs them, without those that are marked
#: as slow or as taking seconds.
FAST = (
    "calibration",
    "cli/test_common.py",
    "data",
    "diffusion",
    "methods",
    "nn",
    "planning/test_cost.py",
    "planning/test_labels.py",
    "planning/test_thickness.py",
    "training/test_loader.py",
    "training/test_parts.py",
    "training/test_patch_validation.py",
    "training/test_pretrained.py",
    "training/test_training_step.py",
    "uncertainty",
)
#: Fixtures that plan, preprocess or write data for many seconds: a test that asks for one of them is not fast.
EXPENSIVE = {"folders", "model_folder", "model_folder_2d", "phantom_dataset", "raw_images", "results"}
VARIABLES = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "nnUNet_extTrainer")


def is_unit_test(path: Path) -> bool:
    """Whether a test module stands in :data:`FAST`."""
    return not {ROOT / "tests" / name for name in FAST}.isdisjoint({path, *path.parents})


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """`pytest -m fast` need not import the other modules."""
    other = collection_path.name.startswith("test_") and collection_path.is_file() and not is_unit_test(collection_path)
    return True if other and config.option.markexpr == "fast" else None


@pytest.hookimpl(tryfirst=True)  # before tests are selected by their markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the unit tests as fast."""
    for item in items:
        slow = any(item.get_closest_marker(name) for name in ("slow", "seconds", "gpu"))
        if is_unit_test(item.path) and not slow and EXPENSIVE.isdisjoint(item.fixturenames):  # type: ignore[attr-defined]
            item.add_marker(pytest.mark.fast)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """No test depends on which others ran before it on its worker."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002  nnU-Net and batchgenerators draw from numpy's global state


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets next to the repository; skips where it is absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the real data in ../shared/data, which is absent")
    return folder


@pytest.fixture(scope="session")
def hippocampus(shared_data: Path) -> Path:
    """The hippocampus dataset in nnU-Net's raw format (read only)."""
    folder = shared_data / "nnUNet_raw" / "Dataset004_Hippocampus"
    if not folder.is_dir():
        pytest.skip("needs Dataset004_Hippocampus in ../shared/data/nnUNet_raw, which is absent")
    return folder


@pytest.fixture(scope="module", autouse=True)
def restore_environment() -> Iterator[None]:
    """The commands set nnU-Net's variables; no test module sees those of another."""
    before = {name: os.environ.get(name) for name in VARIABLES}
    yield
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture(scope="session")
def make_dataset() -> Callable[..., Path]:
    """:func:`build_dataset`."""
    return build_dataset


def build_dataset(
    raw: Path,
    *,
    name: str = "Dataset901_Tiny",
    cases: int = 4,
    shape: Sequence[int] = (20, 24, 20),
    spacing: Sequence[float] | None = None,
    channels: int = 1,
    file_ending: str = ".nii.gz",
    regions: bool = False,
    splits: bool = False,
    ignore: bool = False,
    seed: int = 0,
) -> Path:
    """Writes a small dataset of two nested balls (label 1 around label 2) with noisy intensities.

    Args:
        raw: nnU-Net's raw folder.
        shape: array shape, slices first; two numbers make a 2D dataset.
        spacing: mm, in the order of ``shape``; ignored for natural images.
        file_ending: ``.nii.gz``, ``.png`` or ``.tif``.
        regions: declare the labels as the regions whole = (1, 2) and core = (2,).
        splits: write a ``splits_final.json`` of two folds.
        ignore: declare the ignore label 3, which the labels hold on the slices 2, 3, 6, 7, ...

    Returns:
        The dataset's folder.
    """
    rng = np.random.default_rng(seed)
    folder = raw / name
    for sub in ("imagesTr", "labelsTr"):
        (folder / sub).mkdir(parents=True, exist_ok=True)
    names = [f"case_{i:03d}" for i in range(cases)]
    for case in names:
        label = _nested_balls(shape, rng)
        for c in range(channels):
            image = 100 * (c + 1) + 40 * label + rng.normal(0, 8, shape)
            _write_case_file(folder / "imagesTr" / f"{case}_{c:04d}{file_ending}", image, spacing)
        if ignore:
            label[np.arange(len(label)) // 2 % 2 == 1] = 3
        _write_case_file(folder / "labelsTr" / f"{case}{file_ending}", label, spacing)
    labels = {"background": 0, "whole": [1, 2], "core": [2]} if regions else {"background": 0, "shell": 1, "core": 2}
    content = {
        "channel_names": {str(c): f"channel{c}" for c in range(channels)},
        "labels": labels | ({"ignore": 3} if ignore else {}),
        "numTraining": cases,
        "file_ending": file_ending,
    }
    if regions:
        content["regions_class_order"] = [1, 2]
    (folder / "dataset.json").write_text(json.dumps(content))
    if splits:
        half = cases // 2
        folds = [{"train": names[half:], "val": names[:half]}, {"train": names[:half], "val": names[half:]}]
        (folder / "splits_final.json").write_text(json.dumps(folds))
    return folder


def _nested_balls(shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1).astype(float)
    size = np.array(shape)
    centre = size / 2 + rng.uniform(-0.05, 0.05, len(shape)) * size
    radius = np.sqrt((((grid - centre) / (size / 2)) ** 2).sum(-1))
    outer = rng.uniform(0.65, 0.8)
    return (radius < outer).astype(np.uint8) + (radius < outer / 2).astype(np.uint8)


def _write_case_file(file: Path, array: np.ndarray, spacing: Sequence[float] | None) -> None:
    if file.name.endswith(".nii.gz"):
        image = sitk.GetImageFromArray(array if array.dtype == np.uint8 else array.astype(np.float32))
        if spacing is not None:
            image.SetSpacing([float(s) for s in spacing][::-1])
        sitk.WriteImage(image, str(file), True)
    else:
        from skimage import io

        io.imsave(file, np.clip(array, 0, 255).astype(np.uint8), check_contrast=False)


@pytest.fixture(scope="session")
def phantom_dataset(tmp_path_factory) -> Path:
    """Eight training and three test cases."""
    return write_phantom_dataset(tmp_path_factory.mktemp("raw"), cases=8, test_cases=3, seed=1, draws=300)


@pytest.fixture(scope="session")
def oracle_predictions(phantom_dataset, tmp_path_factory) -> Path:
    """A prediction folder as nndiffseg_predict writes it, made by the true p(label | image) of the phantoms."""
    out = tmp_path_factory.mktemp("predictions")
    write_oracle_predictions(phantom_dataset, out, cases=range(8, 11), seed=1)
    return out


def write_oracle_predictions(dataset: Path, out: Path, *, cases, seed: int, samples: int = 64) -> None:
    for sub in ("uncertainty", "samples"):
        (out / sub).mkdir()
    (out / "dataset.json").write_text((dataset / "dataset.json").read_text())
    for index in cases:
        name = f"phantom_{index:03d}"
        image = sitk.ReadImage(str(dataset / "imagesTs" / f"{name}_0000.nii.gz"))
        geometry = draw_geometry(case_generators(seed, index)[0])
        rng = np.random.default_rng([99, index])
        labels = np.stack([draw_label(geometry, rng).transpose(2, 1, 0) for _ in range(samples)])
        p = np.stack([(labels == k).mean(axis=0) for k in range(3)])
        np.savez_compressed(out / f"{name}.npz", probabilities=p.astype(np.float32))
        maps = {"total": entropy(p), "aleatoric": 0.8 * entropy(p), "epistemic": 0.2 * entropy(p)}
        write(p.argmax(0).astype(np.uint8), image, out / f"{name}.nii.gz")
        for kind, values in maps.items():
            write(values.astype(np.float32), image, out / "uncertainty" / f"{name}_{kind}.nii.gz")
        for i in range(4):
            write(labels[i], image, out / "samples" / f"{name}_s{i:02d}.nii.gz")
        overlap = PairwiseOverlap(samples, (1, 2))
        overlap.add(labels)
        report = {
            "samples": samples,
            "structures": volume_statistics(dict(zip(STRUCTURES, overlap.counts, strict=True)), 1.0),
            "expected_dice": expected_dice(overlap),
        }
        (out / "uncertainty" / f"{name}.json").write_text(json.dumps(report))


def write(array: np.ndarray, geometry: sitk.Image, path: Path) -> None:
    image = sitk.GetImageFromArray(array)
    image.CopyInformation(geometry)
    sitk.WriteImage(image, str(path))


@pytest.fixture
def three_labels() -> LabelManager:
    """Background and two structures."""
    return LabelManager({"background": 0, "anterior": 1, "posterior": 2}, None)
