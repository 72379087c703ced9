"""``nndiffseg_find_best_configuration DATASET``: ranks trained models by what they will predict, as nnU-Net ranks its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nndiffseg.cli.common import Parser, add_folder_flags, folders_from, run
from nndiffseg.errors import UserError

if TYPE_CHECKING:
    from nndiffseg.training.best_configuration import Candidate

CONFIGURATIONS = ("2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres")


def main(argv: Sequence[str] | None = None) -> int:
    """Console entry point; returns the exit code."""
    return run(_main, argv)


def _parser() -> Parser:
    parser = Parser(
        "Ranks trained configurations and their ensembles by the Dice of their cross-validations, determines the "
        "postprocessing and prints the commands that predict with the best."
    )
    add = parser.add_argument
    add("dataset", help="id or name, such as 4 or Dataset004_Hippocampus")
    add("-c", nargs="+", metavar="CONFIGURATION", help=f"default: those of {', '.join(CONFIGURATIONS)} that are trained")
    add("-tr", nargs="+", default=["nnDiffSegTrainer"], metavar="TRAINER", help="default: nnDiffSegTrainer")
    add("-p", nargs="+", default=["nnDiffSegPlans"], metavar="PLANS", help="default: nnDiffSegPlans")
    add("-f", nargs="+", type=int, default=[0, 1, 2, 3, 4], metavar="FOLD", help="default: 0 1 2 3 4")
    add("-np", type=int, help="worker processes of nnU-Net (default: nnUNet_def_n_proc, else the processors, at most 8)")
    add("--disable_ensembling", action="store_true", help="only single configurations")
    add("--no_overwrite", action="store_true", help="keep what an earlier call has put together")
    add_folder_flags(parser)
    return parser


def _main(argv: Sequence[str] | None) -> None:
    args = _parser().parse_args(argv)
    if args.np is not None and args.np < 1:
        raise UserError(f"-np must be 1 or more, not {args.np}.")
    folders = folders_from(args)
    # torch and nnU-Net take seconds to load, so wrong flags are told before.
    from nndiffseg.data.parallel import default_processes
    from nndiffseg.training.best_configuration import Candidate, find_best, without_probabilities
    from nndiffseg.uncertainty.evaluation_table import aligned

    dataset = folders.dataset(args.dataset, "results")
    wanted = [
        Candidate(folders.results / dataset, trainer, plans, configuration)
        for trainer in args.tr
        for configuration in args.c or CONFIGURATIONS
        for plans in args.p
    ]
    there = _trained(wanted, explicit=args.c is not None)
    for candidate in there:
        candidate.check(args.f)
    ensembling = not args.disable_ensembling and len(there) > 1
    if ensembling and (lacking := without_probabilities(there, args.f)):
        print(
            f"No ensembles: {lacking} has no probabilities; keep them with nndiffseg_train ... --val --npz, or say "
            "--disable_ensembling."
        )
        ensembling = False
    processes = args.np or default_processes()
    best = find_best(dataset, there, args.f, ensembling=ensembling, processes=processes, overwrite=not args.no_overwrite)
    print("\n".join(aligned(best.table)))
    print(f"\nBest: {best.name}, Dice {best.dice:.4f}, after postprocessing {best.postprocessed:.4f}\n")
    print(best.instructions)
    print(f"\nWritten to {folders.results / dataset}: inference_instructions.txt, inference_information.json.")


def _trained(wanted: Sequence[Candidate], *, explicit: bool) -> list[Candidate]:
    """Those with a model folder.

    Raises:
        UserError: none has one, or one that was asked for has none.
    """
    there = [candidate for candidate in wanted if candidate.folder.is_dir()]
    if missing := [candidate.name for candidate in wanted if candidate not in there]:
        if explicit or not there:
            raise UserError(
                f"There is no model {missing[0]} in {wanted[0].dataset}; train it with nndiffseg_cross_validate, or choose "
                "others with -c, -tr and -p."
            )
        print(f"Not trained, so not compared: {', '.join(missing)}.")
    return there


if __name__ == "__main__":
    raise SystemExit(main())
