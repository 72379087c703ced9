"""Table and JSON of a trained fold: the figures of its validation, its budget, and its log beside them.

python -m benchmarks.fold_summary -d 4 -c 3d_fullres -p nnDiffSegPlansS -f 0 --name hippocampus_fold0
"""

from __future__ import annotations

import argparse
import json
import os
import re

from benchmarks.common import RESULTS, report
from nndiffseg.data.folders import configure_folders
from nndiffseg.training import epoch_log as log


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-d", required=True)
    parser.add_argument("-c", default="3d_fullres")
    parser.add_argument("-p", default="nnDiffSegPlans")
    parser.add_argument("-tr", default="nnDiffSegTrainer")
    parser.add_argument("-f", default="0")
    parser.add_argument("--name", required=True, help="of the files in benchmarks/results")
    args = parser.parse_args()
    folders = configure_folders()
    dataset = folders.dataset(args.d, "preprocessed")
    model = folders.results / dataset / f"{args.tr}__{args.p}__{args.c}"
    fold = model / f"fold_{args.f}"
    plans = json.loads((model / "plans.json").read_text())["configurations"][args.c]
    validation = json.loads((fold / "validation" / "uncertainty.json").read_text())
    curves = log.read(fold)
    texts = [path.read_text() for path in sorted(fold.glob("training_log_*.txt"))]
    # Folders of the machine say nothing to a reader.
    cleaned = re.sub(r"(/[\w.+-]+)+/(?=Dataset|nnDiffSeg|fold)", "", "\n".join(texts))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{args.name}.log").write_text(cleaned.replace(os.path.expanduser("~"), "~"))
    rows = [
        ["fused (cross-fitted weight)", f"{validation['dice_fused_cross_fitted']:.4f}"],
        ["deterministic head", f"{validation['dice_deterministic']:.4f}"],
        ["mean of 16 samples", f"{validation['dice_samples']:.4f}"],
        *[[f"fused, {name}", f"{dice:.4f}"] for name, dice in validation["dice"].items()],
        ["AUROC of total uncertainty for errors", f"{validation['error_auroc']:.4f}"],
        *[
            [f"90 % interval of the volume covers the reference, {name}", f"{v['coverage_90']:.3f}"]
            for name, v in validation["volumes"].items()
        ],
        ["spread between two seeds (1 - Dice), patches", f"{curves[-1]['spread']:.4f}"],
        ["1 - Dice of a sample and the truth, patches", f"{curves[-1]['sample_error']:.4f}"],
        ["minutes of training, iterations", f"{curves[-1]['seconds'] / 60:.1f}, {curves[-1]['iteration']}"],
    ]
    report(
        args.name,
        rows,
        [f"{dataset}, fold {args.f}, {validation['cases']} cases", "mean foreground Dice etc."],
        {
            "dataset": dataset,
            "configuration": args.c,
            "fold": args.f,
            "batch_size": plans["batch_size"],
            "patch_size": plans["patch_size"],
            "settings": plans["diffusion"]["settings"],
            "validation": validation,
            "curves": curves,
        },
    )


if __name__ == "__main__":
    main()
