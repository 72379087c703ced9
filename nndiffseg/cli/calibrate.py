"""``nndiffseg_calibrate MODEL_FOLDER``: calibrated probabilities, samples and volumes of a finished model, no training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nndiffseg.cli.common import Parser, add_device_flag, add_folder_flags, device_from, folders_from, run, user_path

if TYPE_CHECKING:
    from nndiffseg.calibration import Calibration

DESCRIPTION = (
    "Fits temperature, sampler and volume intervals of a finished model to the validation cases of its folds. Works on stock "
    "nnU-Net's model folders and on nndiffseg's; nothing is trained."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Console entry point; returns the exit code."""
    return run(_main, argv)


def _parser() -> Parser:
    parser = Parser(DESCRIPTION)
    parser.add_argument("model_folder", type=user_path, help=".../DatasetXXX_Name/TRAINER__PLANS__CONFIGURATION")
    parser.add_argument("-f", nargs="+", metavar="FOLD", help="default: all trained folds")
    parser.add_argument("-chk", default="checkpoint_final.pth", metavar="FILE", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the samples (default: %(default)s)")
    parser.add_argument("--disable_progress_bar", action="store_true")
    add_device_flag(parser)
    add_folder_flags(parser)
    return parser


def _main(argv: Sequence[str] | None) -> None:
    args = _parser().parse_args(argv)
    folders = folders_from(args)
    # torch and nnU-Net take seconds to load, so wrong flags are told before.
    from nndiffseg.data.images import unit_of_model
    from nndiffseg.inference.calibrating import calibrate_own_model, calibrate_stock_model
    from nndiffseg.inference.stock_model import is_stock

    folder = args.model_folder
    if is_stock(folder, args.f, args.chk):
        device = device_from(args)
        found = calibrate_stock_model(
            folder,
            folders.preprocessed,
            args.f,
            args.chk,
            device=device,
            seed=args.seed,
            progress=not args.disable_progress_bar,
        )
    else:
        found = calibrate_own_model(
            folder, folders.preprocessed, args.f, args.chk, seed=args.seed, progress=not args.disable_progress_bar
        )
    print(table_of(found.calibration, found.check, found.structures, unit_of_model(folder)))
    print(f"Wrote {folder / 'calibration.json'} and {found.report}.")
    print(f"Predict with: nndiffseg_predict -m {folder} -i IN -o OUT")


def table_of(calibration: Calibration, check: Mapping[str, Any], structures: Sequence[str], unit: str = "ml") -> str:
    """What was fitted and what it is worth, for the terminal; volumes in ``unit``."""
    from nndiffseg.data.images import PIXELS
    from nndiffseg.diffusion.coherent import lengths_in_words
    from nndiffseg.uncertainty.volumes import MM3_PER_ML

    lines = [
        f"{check['cases']} validation cases in {calibration.groups} groups, folds {', '.join(calibration.folds)}; every figure "
        "is of numbers that were fitted without the case's group.",
        f"temperature {', '.join(f'{t:.2f}' for t in calibration.temperature)}",
    ]
    if calibration.length_weights:
        lines.append(f"weights of the correlation lengths: {lengths_in_words(calibration.length_weights)}")
    if calibration.coherent_share < 1:
        lines.append(f"weight of the head in the fused probability {calibration.fusion_weight:.2f}")
    if "probabilities" in check:
        lines += ["", f"{'near the structures':<28}{'NLL':>8}{'Brier':>8}{'ECE':>8}"]
    for name, row in check.get("probabilities", {}).items():
        lines.append(f"{name:<28}" + "".join(f"{_number(row.get(k)):>8}" for k in ("nll", "brier", "ece")))
    if "samples" in check:
        lines += ["", f"{'samples':<28}{'energy score of outlines':>26}{'of volumes, ' + unit:>21}"]
        for name, row in check["samples"].items():
            energy = row["energy_volumes_ml"] * (MM3_PER_ML if unit == PIXELS else 1)
            lines.append(f"{name:<28}{row['energy_outlines']:>26.4f}{energy:>21.4f}")
    lines += ["", f"{'90 % interval of the volume':<28}{'holds':>8}{'width':>8}"]
    which = "" if check["complete_cases"] == check["cases"] else " without ignored voxels"
    for name, row in zip(structures, check["volumes"], strict=True):
        none = f"   not promised: fewer than 9 groups of cases{which}" if row["coverage_90"] is None else ""
        lines.append(f"{name:<28}{_number(row['coverage_90'], 2):>8}{_number(row['width'], 2):>8}{none}")
    dice = check["dice"]
    lines += [
        "",
        f"expected and real Dice: rank correlation {_number(dice['spearman'], 2)}, 90 % interval holds "
        f"{_number(dice['coverage_90'], 2)}",
    ]
    if check.get("error_auroc") is not None:
        lines.append(f"AUROC of the uncertainty for errors: {check['error_auroc']:.3f}")
    return "\n".join(lines)


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


if __name__ == "__main__":
    raise SystemExit(main())
