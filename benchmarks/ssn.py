"""Trains a stochastic segmentation network (Monteiro et al. 2020) on a finished nnU-Net, for the fair table.

    python -m benchmarks.ssn MODEL_FOLDER --fold 0 --preprocessed FOLDER --iterations 2000 [--seed 0] [--results FOLDER]
    python -m benchmarks.fair_table ... --nnunet MODEL_FOLDER --ssn NEW_MODEL_FOLDER

The nnU-Net stays as it is; see :mod:`benchmarks.compare.ssn` for what is trained on it. An interrupted training goes on where
it stopped. The new model folder lies beside the old one, or in another results folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.compare.flags import add_budget_flags, budget_from
from benchmarks.compare.processes import stop_cleanly_on_terminate
from nndiffseg.cli.common import Parser, add_device_flag, pick_device, run
from nndiffseg.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return run(_main, argv)


def _main(argv: Sequence[str] | None) -> None:
    parser = Parser("Trains a stochastic segmentation network on a finished nnU-Net.", prog="python -m benchmarks.ssn")
    parser.add_argument("model", type=Path, metavar="MODEL_FOLDER", help="of a finished nnU-Net")
    parser.add_argument("--preprocessed", type=Path, required=True, help="nnU-Net's preprocessed folder")
    parser.add_argument("--results", type=Path, help="for the new model folder (default: that of MODEL_FOLDER)")
    parser.add_argument("--fold", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of weights, patches and draws (default: %(default)s)")
    add_budget_flags(parser)
    add_device_flag(parser)
    args = parser.parse_args(argv)
    budget = budget_from(args)
    from benchmarks.compare.data import finished_data
    from benchmarks.compare.library import FINAL
    from benchmarks.compare.ssn_model import TRAINER, StochasticSegmentation
    from benchmarks.compare.trainers import Entry
    from benchmarks.compare.training import train
    from nndiffseg.data.folders import configure_folders

    # Training needs no raw data.
    data, _ = finished_data(args.model, args.preprocessed, args.preprocessed, args.fold)
    source = data.results / data.dataset / args.model.resolve().name / f"fold_{args.fold}" / FINAL
    if not source.is_file():
        raise UserError(f"There is no {source}; train this fold with nnUNetv2_train first.")
    data = replace(data, results=(args.results or data.results).resolve())
    configure_folders(None, args.preprocessed, data.results, quiet=True)

    def prepare(trainer: StochasticSegmentation) -> None:
        trainer.source = str(source)

    record = train(data, Entry(TRAINER), budget, pick_device(args.device), args.seed, prepare=prepare)
    print(f"{record['iterations']} iterations: {data.fold_folder(StochasticSegmentation.__name__).parent}")


if __name__ == "__main__":
    stop_cleanly_on_terminate()
    raise SystemExit(main())
