"""Peak memory and time of predicting one 4-channel brain (182x218x182, 1 mm) with 16 samples on the CPU.

    python -m benchmarks.brain_memory [--planner DiffSegPlannerS] [--disable_tta]

Plans the three cases of the MS lesion data, writes an untrained model (memory does not depend on the weights) and runs
``nndiffseg_predict`` on one case. The memory is that of the whole command, children included.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from benchmarks.common import Finished, command, report, shared

CHANNELS = ("FLAIR", "T1", "T2", "T1POST")


def write_raw(raw: Path) -> Path:
    """The three cases in nnU-Net's raw format."""
    source = shared("ms_lesion_3cases")
    dataset = raw / "Dataset801_MSLesion"
    for folder in ("imagesTr", "labelsTr"):
        (dataset / folder).mkdir(parents=True)
    labels = sorted((source / "labels").glob("*.nii.gz"))
    for label in labels:
        case = label.name.removesuffix(".nii.gz")
        (dataset / "labelsTr" / label.name).symlink_to(label)
        for i, channel in enumerate(CHANNELS):
            (dataset / "imagesTr" / f"{case}_{i:04d}.nii.gz").symlink_to(source / "images" / f"{case}_{channel}.nii.gz")
    (dataset / "dataset.json").write_text(
        json.dumps(
            {
                "channel_names": {str(i): c for i, c in enumerate(CHANNELS)},
                "labels": {"background": 0, "lesion": 1},
                "numTraining": len(labels),
                "file_ending": ".nii.gz",
            }
        )
    )
    return dataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--planner", default="DiffSegPlannerS")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--disable_tta", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        finished, files, patch = predict(Path(temporary), args)
    suffix = args.planner.removeprefix("DiffSegPlanner") or "M"
    mirroring = "no" if args.disable_tta else "yes"
    measured = [f"{finished.peak_gb:.2f}", f"{finished.seconds:.0f}", files]
    report(
        f"brain_memory_{suffix}" + ("_no_mirroring" if args.disable_tta else ""),
        [[args.planner, "x".join(map(str, patch)), args.samples, mirroring, *measured]],
        ["planner", "patch", "samples", "mirroring", "peak GB", "seconds", "images written"],
        {
            "image": [182, 218, 182],
            "channels": 4,
            "peak_gb": finished.peak_gb,
            "seconds": finished.seconds,
            "samples": args.samples,
            "mirroring": not args.disable_tta,
        },
    )


def predict(work: Path, args: argparse.Namespace) -> tuple[Finished, int, list[int]]:
    """Plans, writes an untrained model and predicts; returns the finished prediction, its images and the patch."""
    dataset = write_raw(work / "raw")
    flags = [f"--{kind}={work / kind}" for kind in ("raw", "preprocessed", "results")]
    command(["nndiffseg_plan_and_preprocess", "-d", "801", "-pl", args.planner, "-c", "3d_fullres", "-np", "1", *flags])
    plans = "nnDiffSegPlans" + args.planner.removeprefix("DiffSegPlanner")
    made = f"w({str(work)!r}, {dataset.name!r}, {plans!r}, '3d_fullres')"
    command([sys.executable, "-c", f"from benchmarks.common import write_untrained as w; {made}"])
    (work / "in").mkdir()
    for image in sorted((dataset / "imagesTr").iterdir())[: len(CHANNELS)]:
        (work / "in" / image.name).symlink_to(image.resolve())
    how = ["-device", "cpu", "--samples", args.samples, "--disable_progress_bar", *["--disable_tta"] * args.disable_tta]
    finished = command(["nndiffseg_predict", "-i", work / "in", "-o", work / "out", *how, *flags])
    planned = json.loads((work / "preprocessed" / dataset.name / f"{plans}.json").read_text())
    patch = planned["configurations"]["3d_fullres"]["patch_size"]
    return finished, len(list((work / "out").rglob("*.nii.gz"))), patch


if __name__ == "__main__":
    main()
