"""MoNuSeg at half size as a dataset whose only fold is the challenge's own: 30 images to train on, 7 test images to judge.

    python -m benchmarks.monuseg HALF_SIZE_FOLDER NNUNET_RAW
    python -m benchmarks.methods --dataset 994 --configuration 2d --fold 0 --planner S --minutes 12

The second command trains nnU-Net and all of nndiffseg's trainers on it, for equal minutes or ``--iterations``, and prints F1
(the Dice of all nucleus pixels) and IoU on the test images. No image of the test set is used for a fit: fusion weights and
temperatures are cross-fitted over the test patients, and the last checkpoint counts, not the best one.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

NAME = "Dataset994_MoNuSegChallenge"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="holds images/ and labels/ with files train_TCGA-... and test_TCGA-...")
    parser.add_argument("raw", type=Path, help="nnU-Net's raw folder")
    args = parser.parse_args()
    print(write(args.source, args.raw / NAME))


def write(source: Path, out: Path) -> Path:
    """Writes the dataset; returns its folder."""
    files = sorted((source / "images").glob("*.png"))
    if not files:
        raise SystemExit(f"error: {source} holds no images/*.png; give MoNuSeg's folder half_size.")
    for folder in ("imagesTr", "labelsTr"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for file in files:
        shutil.copyfile(file, out / "imagesTr" / f"{file.stem}_0000.png")
        label = np.asarray(Image.open(source / "labels" / file.name))
        Image.fromarray((label > 0).astype(np.uint8)).save(out / "labelsTr" / file.name)
    cases = [file.stem for file in files]
    split = {"train": [c for c in cases if c.startswith("train_")], "val": [c for c in cases if c.startswith("test_")]}
    (out / "splits_final.json").write_text(json.dumps([split], indent=1), encoding="utf8")
    patients = [f"{case},{patient(case)}" for case in cases]
    (out / "cases.csv").write_text("\n".join(["case,group", *patients]) + "\n", encoding="utf8")
    description = {
        "channel_names": {"0": "R", "1": "G", "2": "B"},
        "labels": {"background": 0, "nucleus": 1},
        "numTraining": len(cases),
        "file_ending": ".png",
        "licence": "CC BY-NC-SA 4.0",
        "reference": "Kumar et al. 2017, IEEE TMI 36(7):1550; 2020, IEEE TMI 39(5):1380",
    }
    (out / "dataset.json").write_text(json.dumps(description, indent=1), encoding="utf8")
    return out


def patient(case: str) -> str:
    """``train_TCGA-18-5592-01Z-00-DX1`` -> ``TCGA-18-5592``."""
    return case.partition("_")[2][:12]


if __name__ == "__main__":
    main()
