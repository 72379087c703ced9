"""Table and JSON of a trained fold: the metrics of its validation and what its training took.

python -m benchmarks.fold_summary -d 4 -c 3d_fullres -p nnDiffSegPlansS -f 0 --name hippocampus_fold0
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from benchmarks.common import report
from nndiffseg.data.folders import configure_folders
from nndiffseg.training import epoch_log


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-d", required=True)
    parser.add_argument("-c", default="3d_fullres")
    parser.add_argument("-p", default="nnDiffSegPlans")
    parser.add_argument("-tr", default="nnDiffSegTrainer")
    parser.add_argument("-f", default="0")
    parser.add_argument("--name", required=True, help="of the file in benchmarks/results")
    args = parser.parse_args()
    folders = configure_folders()
    dataset = folders.dataset(args.d, "preprocessed")
    model = folders.results / dataset / f"{args.tr}__{args.p}__{args.c}"
    fold = model / f"fold_{args.f}"
    configuration = json.loads((model / "plans.json").read_text())["configurations"][args.c]
    validation = json.loads((fold / "validation" / "uncertainty.json").read_text())
    last = epoch_log.read(fold)[-1]
    report(
        args.name,
        rows(validation, last),
        [f"{dataset}, fold {args.f}, {validation['cases']} cases", "mean foreground Dice etc."],
        {
            "dataset": dataset,
            "configuration": args.c,
            "fold": args.f,
            "batch_size": configuration["batch_size"],
            "patch_size": configuration["patch_size"],
            "validation": validation,
            "last_epoch": last,
        },
    )


def rows(validation: dict[str, Any], last: dict[str, Any]) -> list[list[str]]:
    """Cells of the table.

    Args:
        validation: content of ``uncertainty.json``.
        last: last line of the epoch log.
    """
    return [
        ["fused (cross-fitted weight)", f"{validation['dice_fused_cross_fitted']:.4f}"],
        ["deterministic head", f"{validation['dice_deterministic']:.4f}"],
        ["mean of 16 samples", f"{validation['dice_samples']:.4f}"],
        *[[f"fused, {name}", f"{dice:.4f}"] for name, dice in validation["dice"].items()],
        ["AUROC of total uncertainty for errors", f"{validation['error_auroc']:.4f}"],
        *[
            [f"90 % interval of the volume covers the reference, {name}", f"{v['coverage_90']:.3f}"]
            for name, v in validation["volumes"].items()
        ],
        ["spread between two seeds (1 - Dice), patches", f"{last['spread']:.4f}"],
        ["1 - Dice of a sample and the truth, patches", f"{last['sample_error']:.4f}"],
        ["minutes of training, iterations", f"{last['seconds'] / 60:.1f}, {last['iteration']}"],
    ]


if __name__ == "__main__":
    main()
