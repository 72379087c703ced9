"""Small folders of predictions and references, as commands write them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from skimage import io


def write_labels(array: np.ndarray, file: Path, spacing: Sequence[float] = (1.0, 1.0, 1.0)) -> None:
    """A label map ``(z, y, x)`` as NIfTI, or ``(y, x)`` as PNG."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".png":
        io.imsave(file, array.astype(np.uint8), check_contrast=False)
        return
    image = sitk.GetImageFromArray(array)
    image.SetSpacing([float(s) for s in spacing][::-1])
    sitk.WriteImage(image, str(file))


def write_dataset_json(folder: Path, labels: Mapping[str, object], file_ending: str = ".nii.gz", **more: object) -> None:
    """``dataset.json`` as a prediction copies it."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"channel_names": {"0": "image"}, "labels": labels, "numTraining": 4, "file_ending": file_ending, **more}
    (folder / "dataset.json").write_text(json.dumps(content))


def disc(shape: tuple[int, ...], radius: float, shift: Sequence[float] = (0, 0, 0)) -> np.ndarray:
    """A ball (or disc) around the centre plus ``shift``, uint8."""
    grid = np.stack(np.meshgrid(*[np.arange(n) - n // 2 for n in shape], indexing="ij"), -1) - np.array(shift)[-len(shape) :]
    return ((grid**2).sum(-1) <= radius**2).astype(np.uint8)
