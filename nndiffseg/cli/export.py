"""``nndiffseg_export MODEL_FOLDER OUT.zip``: a model, with its calibration, as the zip file that nnU-Net installs."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nndiffseg.cli.common import Parser, check_output, run, user_path
from nndiffseg.errors import UserError

if TYPE_CHECKING:
    from nndiffseg.data.model_json import ModelNames
    from nndiffseg.export.zip_file import Entry

FINAL = "checkpoint_final.pth"


def main(argv: Sequence[str] | None = None) -> int:
    """Console entry point; returns the exit code."""
    return run(_main, argv)


def _parser() -> Parser:
    parser = Parser("Packs a model of nndiffseg or nnU-Net for nnUNetv2_install_pretrained_model_from_zip.")
    parser.add_argument("model", metavar="MODEL_FOLDER", type=user_path, help="the folder above fold_0")
    parser.add_argument("out", metavar="OUT.zip", type=user_path)
    parser.add_argument("-f", nargs="+", metavar="FOLD", help="0 to 4, all, or all/seed_1 ...; default: all trained folds")
    parser.add_argument("-chk", nargs="+", default=[FINAL], metavar="FILE", help=f"default: {FINAL}")
    parser.add_argument(
        "--nnunet", action="store_true", help="the deterministic head alone, as a model that needs no nndiffseg"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT.zip if it exists")
    return parser


def _main(argv: Sequence[str] | None) -> None:
    args = _parser().parse_args(argv)
    check_output(args.out, args.overwrite)
    # torch and nnU-Net take seconds to load, so wrong flags are told before.
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nndiffseg.data.folds import member_seed
    from nndiffseg.data.model_json import read_model_json
    from nndiffseg.export.stock_copy import stock_names
    from nndiffseg.export.zip_file import model_entries, survey, write_zip
    from nndiffseg.inference.model_folder import available_folds
    from nndiffseg.inference.stock_model import is_calibrated

    plans, _ = read_model_json(args.model)
    checkpoints = list(dict.fromkeys(args.chk))
    folds = list(dict.fromkeys(args.f or available_folds(args.model, checkpoints[0])))
    found = survey(args.model, plans, folds, checkpoints)
    if args.nnunet and found.stock:
        raise UserError(f"{args.model} is a model of stock nnU-Net already; leave --nnunet out.")
    if args.nnunet and (members := [fold for fold in folds if member_seed(fold) is not None]):
        raise UserError(f"Stock nnU-Net finds no members such as {members[0]}; choose folds with -f, or leave --nnunet out.")
    names = stock_names(found.names) if args.nnunet else found.names
    if args.nnunet:
        entries = _head_entries(args.model, names, folds, checkpoints, found.epochs)
    else:
        entries = model_entries(args.model, names, folds, checkpoints)
    packed = write_zip(args.out, _announced(entries, names))
    _say_what_next(args.out, packed)
    flags = _flags(names, folds, checkpoints)
    before = PlansManager(plans).get_configuration(names.configuration).previous_stage_name
    if before is not None:
        print(f"It is the second stage of a cascade, which needs the model of {before} beside it; pack that one, too.")
    if args.nnunet or (found.stock and not is_calibrated(args.model, folds, checkpoints[0])):
        print(f"Predict: nnUNetv2_predict -i in/ -o out/ {flags}")
    else:
        print(f"Predict: nndiffseg_predict -i in/ -o out/ {flags}")
        if found.stock:
            print(f"Without nndiffseg, the same segmentation alone: nnUNetv2_predict -i in/ -o out/ {flags}")


def _head_entries(
    folder: Path, names: ModelNames, folds: Sequence[str], checkpoints: Sequence[str], epochs: Mapping[tuple[str, str], int]
) -> Iterator[Entry]:
    """The files of a model of stock nnU-Net that answers as the deterministic head does."""
    from nndiffseg.data.model_json import read_model_json
    from nndiffseg.export.stock_copy import stock_checkpoint, stock_plans, stock_weights
    from nndiffseg.export.zip_file import as_bytes
    from nndiffseg.inference.model_folder import load_model

    plans, dataset_json = read_model_json(folder)
    plans = stock_plans(plans)
    for checkpoint in checkpoints:
        model = load_model(folder, folds, checkpoint)
        for fold in model.folds:
            content = stock_checkpoint(
                stock_weights(model.method, fold.network, model.trainer),
                plans=plans,
                dataset_json=dataset_json,
                configuration=names.configuration,
                fold=fold.name,
                epoch=epochs[fold.name, checkpoint],
                mirror_axes=model.mirror_axes,
            )
            yield f"{names.folder}/fold_{fold.name}/{checkpoint}", content
    yield f"{names.folder}/plans.json", as_bytes(plans)
    yield f"{names.folder}/dataset.json", as_bytes(dataset_json)
    if (fingerprint := folder / "dataset_fingerprint.json").is_file():
        yield f"{names.folder}/dataset_fingerprint.json", fingerprint


def _announced(entries: Iterator[Entry], names: ModelNames) -> Iterator[Entry]:
    """Large models take minutes, so every file is told."""
    print(f"Packing {names.folder}:")
    for name, content in entries:
        print(f"    {name.removeprefix(names.folder + '/')}", flush=True)
        yield name, content


def _say_what_next(out: Path, packed: Sequence[str]) -> None:
    calibrated = sum(name.endswith("/calibration.json") for name in packed)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB, {len(packed)} files, {calibrated or 'none'} of them a calibration.")
    print(f"Install: nnUNetv2_install_pretrained_model_from_zip {shlex.quote(str(out))}")


def _flags(names: ModelNames, folds: Sequence[str], checkpoints: Sequence[str]) -> str:
    """The flags by which both prediction commands find the installed model."""
    words = ["-d", names.dataset, "-c", names.configuration, "-tr", names.trainer, "-p", names.plans, "-f", *folds]
    return shlex.join(words if FINAL in checkpoints else [*words, "-chk", checkpoints[0]])


if __name__ == "__main__":
    raise SystemExit(main())
