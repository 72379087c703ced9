"""Two more data sets from the Decathlon's hippocampus: three classes (head, body, tail), and regions (whole, anterior).

    python -m benchmarks.hippocampus_variants DATASET004_FOLDER NNUNET_RAW

Body and tail are the two halves of the posterior label, cut in the middle of its length along the second axis (posterior to
anterior, in voxels of 1 mm). Images, file names and folds (grouped by subject) stay as they are; images are linked, not copied.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

ANTERIOR, POSTERIOR = 1, 2
HEAD, BODY, TAIL = 1, 2, 3
PARTS: dict[str, Any] = {"labels": {"background": 0, "Head": HEAD, "Body": BODY, "Tail": TAIL}}
REGIONS: dict[str, Any] = {
    "labels": {"background": 0, "Hippocampus": [ANTERIOR, POSTERIOR], "Anterior": ANTERIOR},
    "regions_class_order": [POSTERIOR, ANTERIOR],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="Dataset004_Hippocampus in nnU-Net's raw format")
    parser.add_argument("raw", type=Path, help="nnU-Net's raw folder, where both data sets are made")
    args = parser.parse_args()
    for name, description in (("Dataset005_HippocampusParts", PARTS), ("Dataset006_HippocampusRegions", REGIONS)):
        _write(args.source, args.raw / name, description)
        print(args.raw / name)


def _write(source: Path, out: Path, description: dict[str, Any]) -> None:
    (out / "labelsTr").mkdir(parents=True)
    (out / "imagesTr").symlink_to((source / "imagesTr").resolve())
    shutil.copyfile(source / "splits_final.json", out / "splits_final.json")
    dataset = json.loads((source / "dataset.json").read_text(encoding="utf8"))
    (out / "dataset.json").write_text(json.dumps({**dataset, **description}, indent=1), encoding="utf8")
    for file in sorted((source / "labelsTr").glob("*.nii.gz")):
        if description is REGIONS:
            shutil.copyfile(file, out / "labelsTr" / file.name)
            continue
        image = sitk.ReadImage(str(file))
        parts = sitk.GetImageFromArray(parts_of(sitk.GetArrayFromImage(image)))
        parts.CopyInformation(image)
        sitk.WriteImage(parts, str(out / "labelsTr" / file.name))


def parts_of(label: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Head, body and tail of a label ``(z, y, x)`` with anterior 1 and posterior 2."""
    posterior = np.nonzero(label == POSTERIOR)[1]
    middle = (posterior.min() + posterior.max() + 1) / 2
    row = np.arange(label.shape[1])[None, :, None] + 0.5  # of each voxel's centre
    towards_head = np.sign(np.nonzero(label == ANTERIOR)[1].mean() - posterior.mean())
    tail = (label == POSTERIOR) & ((row - middle) * towards_head < 0)
    return np.where(tail, TAIL, label).astype(np.uint8)


if __name__ == "__main__":
    main()
