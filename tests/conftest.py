"""Fixtures that several test folders share."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nndiffseg.phantom import STRUCTURES, case_generators, draw_geometry, draw_label, write_phantom_dataset
from nndiffseg.uncertainty import PairwiseOverlap, entropy, expected_dice, volume_statistics


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
