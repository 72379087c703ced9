"""``nndiffseg_predict -i in/ -o out/``: segmentations with uncertainty maps of every case in a folder."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nndiffseg.cli.common import Parser, add_device_flag, add_folder_flags, device_from, folders_from, run, user_path
from nndiffseg.errors import UserError

if TYPE_CHECKING:
    from nndiffseg.inference.case_predictor import CasePredictor


def main(argv: Sequence[str] | None = None) -> int:
    """Console entry point; returns the exit code."""
    return run(_main, argv)


def _parser() -> Parser:
    parser = Parser("Predicts every case of a folder: segmentations, uncertainty maps, volumes with error bars.")
    parser.add_argument(
        "-i",
        required=True,
        type=user_path,
        nargs="+",
        action="append",
        metavar="PATH",
        help="a folder of images named CASE_0000.nii.gz; or images: of a case all channels, in order, and -i again for each "
        "further case whose files are not named so",
    )
    parser.add_argument(
        "-o",
        required=True,
        type=user_path,
        metavar="PATH",
        help="output folder, created if missing; of a single image also a file, such as liver.nii.gz, with the maps beside it",
    )
    model = parser.add_argument_group("model", "without any of these, the only trained nndiffseg model found is used")
    model.add_argument(
        "-m", type=user_path, metavar="FOLDER", help="model folder, instead of -d -c -tr -p; a calibrated stock nnU-Net's too"
    )
    model.add_argument("-d", metavar="DATASET", help="id or name of the dataset that the model was trained on")
    model.add_argument(
        "-c", metavar="CONFIGURATION", help="2d, 3d_lowres, 3d_fullres, 3d_cascade_fullres, or your own in the plans"
    )
    model.add_argument("-tr", metavar="TRAINER")
    model.add_argument("-p", metavar="PLANS")
    model.add_argument(
        "-f", nargs="+", metavar="FOLD", help="0 to 4, all, or all/seed_1 ...; default: all trained folds, pooled"
    )
    model.add_argument("-chk", default="checkpoint_final.pth", metavar="FILE", help="default: %(default)s")
    _add_sampling_flags(parser)
    _add_run_flags(parser)
    add_device_flag(parser)
    add_folder_flags(parser)
    return parser


def _add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling")
    group.add_argument("--samples", type=int, help="samples per case over all folds; default: from the plans")
    group.add_argument("--steps", type=int, help="sampling steps; default: from the plans")
    group.add_argument("--sampler", help="ancestral, ddim or dpmpp_2m, if the method supports it; default: the method's own")
    group.add_argument(
        "--fuse",
        choices=("mean", "staple"),
        default="mean",
        help="how samples become the segmentation (default: %(default)s); uncertainty maps always use the mean",
    )
    group.add_argument("--seed", type=int, default=0, help="random seed; equal seeds give equal files (default: %(default)s)")
    group.add_argument(
        "-step_size",
        "--step_size",
        type=float,
        default=0.5,
        help="largest step between tiles, as a fraction of the patch (default: %(default)s)",
    )
    group.add_argument("--disable_tta", action="store_true", help="no mirroring: faster, slightly less accurate")


def _add_run_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output and run")
    group.add_argument("--save_samples", action="store_true", help="write samples/CASE_sNN")
    group.add_argument(
        "--save_probabilities",
        "--npz",
        nargs="*",
        choices=("npz", "nifti"),
        help="npz, or nothing: write nnU-Net's CASE.npz, CASE.pkl; nifti: an image probabilities/CASE/NN_STRUCTURE.nii.gz of "
        "each structure; or both",
    )
    group.add_argument("--flag_below", type=float, metavar="DICE", help="name and mark cases with a lower expected Dice")
    group.add_argument("--continue_prediction", "--c", action="store_true", help="skip cases that are complete")
    group.add_argument(
        "-prev_stage_predictions",
        "--prev_stage_predictions",
        type=user_path,
        metavar="FOLDER",
        help="for the second stage of a cascade: what the first one predicted for these cases, with --save_samples; default: "
        "the first stage is predicted too",
    )
    group.add_argument("-num_parts", "--num_parts", type=int, default=1, help="split the cases over this many runs")
    group.add_argument("-part_id", "--part_id", type=int, default=0, help="index of this run, from 0")
    group.add_argument(
        "--shared",
        action="store_true",
        help="divide the cases with other runs of this command, here or on other nodes, as they come; cases of a run that dies "
        "are done by the others, complete ones are left",
    )
    group.add_argument("-npp", type=int, help="worker processes for preprocessing; 0 or 1: none (default: nnUNet_npp, else 1)")
    group.add_argument("-nps", type=int, help="worker processes for export; 0 or 1: none (default: nnUNet_nps, else 1)")
    group.add_argument(
        "--not_on_device",
        action="store_true",
        help="keep what grows with the image in the computer's memory, not the GPU's: slower, for large images on small GPUs",
    )
    group.add_argument("--disable_progress_bar", action="store_true")
    group.add_argument("--verbose", action="store_true")


def _main(argv: Sequence[str] | None) -> None:
    args = _parser().parse_args(argv)
    if args.m and (args.d or args.c or args.tr or args.p):
        raise UserError("Give the model either as -m FOLDER or by -d, -c, -tr and -p, not both.")
    if args.flag_below is not None and not 0 < args.flag_below <= 1:
        raise UserError(f"--flag_below is a Dice and must lie in (0, 1], not {args.flag_below}.")
    folders = folders_from(args)
    # torch and nnU-Net take seconds to load, so wrong flags are reported first.
    from nndiffseg.cli.predict_inputs import inputs_of, output_file
    from nndiffseg.data.cases import cases_of
    from nndiffseg.data.folds import in_words
    from nndiffseg.data.parallel import from_environment
    from nndiffseg.inference.folder import predict_folder
    from nndiffseg.inference.model_folder import choose_model

    if args.m:
        folder = args.m
    else:
        dataset = folders.dataset(args.d, "results") if args.d is not None else None
        chosen = choose_model(folders.results, dataset=dataset, configuration=args.c, trainer=args.tr, plans=args.p)
        folder = chosen.folder
    print(f"Model: {folder}.")
    predictor = _predictor(args, folder)
    inputs = inputs_of(args.i, predictor.dataset_json)
    file = output_file(args.o, inputs, _flags_for_folders(args))
    total, source = len(cases_of(inputs, predictor.dataset_json)), f" in {inputs}" if isinstance(inputs, Path) else ""
    cases = "1 case" if total == 1 else f"{total} cases"
    print(f"{cases}{source}, {predictor.number_of_samples} samples each, {in_words(predictor.folds)}.")
    if (remark := predictor.remark()) is not None:
        print(remark)
    if len(predictor.folds) == 1:
        print("There is no epistemic map: it is the disagreement between several folds or members (-f).")
    if file is not None:
        _predict_file(args, predictor, inputs[0], file)  # type: ignore[index]
        return
    done = predict_folder(
        predictor,
        inputs,
        args.o,
        save_samples=args.save_samples,
        save_probabilities=args.save_probabilities == [] or args.save_probabilities or False,
        fuse=args.fuse,
        flag_below=args.flag_below,
        continue_prediction=args.continue_prediction,
        prev_stage_predictions=args.prev_stage_predictions,
        num_parts=args.num_parts,
        part_id=args.part_id,
        shared=args.shared,
        preprocessing_processes=from_environment("nnUNet_npp", 1) if args.npp is None else args.npp,
        export_processes=from_environment("nnUNet_nps", 1) if args.nps is None else args.nps,
        progress=not args.disable_progress_bar,
        verbose=args.verbose,
    )
    if args.flag_below is not None:
        _name_flagged(args.o, done, args.flag_below)
    print(f"{len(done)} cases predicted; open {args.o / 'report.html'}.")


def _flags_for_folders(args: argparse.Namespace) -> dict[str, bool]:
    """Flags that mean nothing for the file of a single case, and whether they were given."""
    return {
        "--continue_prediction": args.continue_prediction,
        "-num_parts": args.num_parts != 1,
        "--flag_below": args.flag_below is not None,
        "--save_probabilities nifti": "nifti" in (args.save_probabilities or ()),
    }


def _predict_file(args: argparse.Namespace, predictor: CasePredictor, image: Sequence[Path], file: Path) -> None:
    """One case, whose segmentation is to be this file."""
    from nndiffseg.inference.folder import predict_files

    (prediction,) = predict_files(predictor, [image], fuse=args.fuse, return_samples=args.save_samples)
    written = prediction.write(file, save_probabilities=args.save_probabilities is not None)  # type: ignore[union-attr]
    print(f"Written: {', '.join(map(str, reversed(written)))}.")


def _name_flagged(output: Path, cases: Sequence[str], below: float) -> None:
    """Says which of the predicted cases are to be looked at, the worst first."""
    from nndiffseg.report.page import is_flagged
    from nndiffseg.uncertainty.prediction_folder import case_report

    expected = {case: case_report(output, case).get("expected_dice") for case in cases}
    flagged = sorted((dice, case) for case, dice in expected.items() if is_flagged(dice, below))
    names = ", ".join(f"{case} ({dice:.2f})" for dice, case in flagged)
    print(f"Expected Dice below {below:g}: {names or 'none'}.")


def _predictor(args: argparse.Namespace, folder: Path) -> CasePredictor:
    """Of nndiffseg's models, or of a stock nnU-Net that was calibrated."""
    from nndiffseg.inference.predictor import Predictor
    from nndiffseg.inference.stock_model import is_stock
    from nndiffseg.inference.stock_predictor import StockPredictor

    device = device_from(args)
    given = {
        "samples": args.samples,
        "seed": args.seed,
        "step_size": args.step_size,
        "mirroring": not args.disable_tta,
        "perform_everything_on_device": not args.not_on_device,
    }
    if not is_stock(folder, args.f, args.chk):
        return Predictor.from_folder(folder, args.f, args.chk, device, steps=args.steps, sampler=args.sampler, **given)
    if args.steps is not None or args.sampler is not None:
        raise UserError(f"{folder} is a stock nnU-Net without a diffusion; leave out --steps and --sampler.")
    return StockPredictor.from_folder(folder, args.f, args.chk, device, **given)


if __name__ == "__main__":
    raise SystemExit(main())
