"""nnU-Net's own commands on an nndiffseg model: do they run, and do they give the deterministic head's Dice?

    python -m benchmarks.stock_nnunet -d 4 -c 3d_fullres -p nnDiffSegPlansS -f 0

Predicts the fold's validation cases with ``nnUNetv2_predict`` and evaluates with ``nnUNetv2_evaluate_folder``, with
nothing of nndiffseg but ``nnUNet_extTrainer`` set as the README says; compares with what the validation at the end of
the training said of the deterministic head.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from pathlib import Path

from benchmarks.common import command, report
from nndiffseg.data.folders import configure_folders


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-d", default="4")
    parser.add_argument("-c", default="3d_fullres")
    parser.add_argument("-p", default="nnDiffSegPlansS")
    parser.add_argument("-tr", default="nnDiffSegTrainer")
    parser.add_argument("-f", type=int, default=0)
    parser.add_argument("-device", default="cpu")
    args = parser.parse_args()
    folders = configure_folders()
    dataset = folders.dataset(args.d)
    fold = folders.results / dataset / f"{args.tr}__{args.p}__{args.c}" / f"fold_{args.f}"
    cases = json.loads((folders.preprocessed / dataset / "splits_final.json").read_text())[args.f]["val"]
    with tempfile.TemporaryDirectory() as temporary:
        copy_cases(folders.raw / dataset, cases, Path(temporary))
        stock, seconds = predict_and_evaluate(args, Path(temporary))
    ours = json.loads((fold / "validation" / "uncertainty.json").read_text())
    difference = abs(stock - ours["dice_deterministic"])
    rows = [
        ["nnUNetv2_predict + nnUNetv2_evaluate_folder", f"{stock:.4f}"],
        ["deterministic head, nndiffseg's validation", f"{ours['dice_deterministic']:.4f}"],
        ["difference (at most 0.005)", f"{difference:.4f}"],
        ["fused, nndiffseg's validation (cross-fitted)", f"{ours['dice_fused_cross_fitted']:.4f}"],
    ]
    report(
        "stock_nnunet",
        rows,
        ["mean foreground Dice", f"{len(cases)} cases"],
        {
            "dataset": dataset,
            "fold": args.f,
            "cases": len(cases),
            "stock_dice": stock,
            "deterministic_dice": ours["dice_deterministic"],
            "difference": difference,
            "seconds": seconds,
        },
    )


def copy_cases(raw: Path, cases: list[str], work: Path) -> None:
    """Images of the cases into ``work/in``, labels into ``work/labels``."""
    for folder in ("in", "labels"):
        (work / folder).mkdir()
    for case in cases:
        for image in (raw / "imagesTr").glob(f"{case}_*"):
            shutil.copy(image, work / "in")
        shutil.copy(raw / "labelsTr" / f"{case}.nii.gz", work / "labels")


def predict_and_evaluate(args: argparse.Namespace, work: Path) -> tuple[float, float]:
    """Mean foreground Dice by nnU-Net's own commands, and the seconds of its prediction."""
    shim = command(["python", "-m", "nndiffseg.ext_path"]).output.strip()
    environment = {**{k: v for k, v in os.environ.items() if k.startswith("nnUNet_")}, "nnUNet_extTrainer": shim}
    model = ["-d", args.d, "-c", args.c, "-tr", args.tr, "-p", args.p, "-f", args.f]
    processes = ["-device", args.device, "-npp", "1", "-nps", "1"]
    out = work / "out"
    predicted = command(["nnUNetv2_predict", "-i", work / "in", "-o", out, *model, *processes], environment=environment)
    files = ["-djfile", out / "dataset.json", "-pfile", out / "plans.json"]
    command(["nnUNetv2_evaluate_folder", work / "labels", out, *files, "-np", "1"], environment=environment)
    return json.loads((out / "summary.json").read_text())["foreground_mean"]["Dice"], predicted.seconds


if __name__ == "__main__":
    main()
