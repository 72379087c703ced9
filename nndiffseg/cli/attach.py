"""``nndiffseg_attach MODEL_FOLDER``: trains a sampler on a finished nnU-Net, whose network stays as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nndiffseg.cli.common import Parser, add_device_flag, add_folder_flags, device_from, folders_from, run, user_path
from nndiffseg.cli.training_flags import add_training_flags, check_numbers, fold_of, go_on, set_budget
from nndiffseg.data.files import write_json
from nndiffseg.data.folds import member_of

if TYPE_CHECKING:
    import torch

    from nndiffseg.planning.attach import FinishedModel
    from nndiffseg.planning.decisions import Size

#: of a training that nothing else bounds
EPOCHS = 20


def main(argv: Sequence[str] | None = None) -> int:
    """Console entry point; returns the exit code."""
    return run(_main, argv)


def _parser() -> Parser:
    parser = Parser("Trains the sampling networks on a finished nnU-Net, whose own network stays as it is, and validates them.")
    parser.add_argument(
        "model_folder",
        type=user_path,
        metavar="MODEL_FOLDER",
        help="of a finished nnU-Net: .../nnUNet_results/DatasetXXX_Name/TRAINER__PLANS__CONFIGURATION",
    )
    parser.add_argument("--folds", nargs="+", metavar="FOLD", help="folds, such as 0 1; default: all that are trained")
    parser.add_argument(
        "-chk", default="checkpoint_final.pth", metavar="FILE", help="checkpoint of nnU-Net; default: %(default)s"
    )
    parser.add_argument(
        "-overwrite_plans_name", metavar="NAME", help="name of the plans; default: that of the model's, with Attached behind it"
    )
    add_training_flags(parser, f"{EPOCHS} for each fold")
    add_device_flag(parser)
    add_folder_flags(parser)
    return parser


def _main(argv: Sequence[str] | None) -> None:
    args = _parser().parse_args(argv)
    check_numbers(args)
    folds = None if args.folds is None else [str(fold_of(fold)) for fold in args.folds]
    folders = folders_from(args)

    from nndiffseg import planners
    from nndiffseg.planning.attach import attached_plans, check_data, read_model

    if args.overwrite_plans_name is not None:
        planners.check_plans_name(args.overwrite_plans_name)
    model = read_model(args.model_folder, folds, args.chk)
    preprocessed = folders.preprocessed / folders.dataset(model.plans["dataset_name"], "preprocessed")
    check_data(model, preprocessed)
    device = device_from(args)
    name = args.overwrite_plans_name or f"{model.plans['plans_name']}Attached"
    plans, report = attached_plans(model, preprocessed, name, size_for(model), resume=args.c)
    print(report)
    write_json(plans, preprocessed / f"{name}.json", strict=False)
    print(f"Plans: {preprocessed / name}.json")
    for fold in folds or model.source.sha256:
        _train(model, plans, fold, args, device)


def size_for(model: FinishedModel) -> Size:
    """The planner's size whose light networks suit a finished network."""
    from nndiffseg import planners

    small, medium = planners.DiffSegPlannerS.size, planners.DiffSegPlanner.size
    return small if model.architecture.arch_kwargs["features_per_stage"][0] <= small.base_features else medium


def _train(model: FinishedModel, plans: dict[str, Any], fold: str, args: Any, device: torch.device) -> None:
    """Trains and validates one fold."""
    from nndiffseg.trainers import nnDiffSegTrainerAttached

    plans = plans | {"continue_training": args.c}
    place = member_of(fold_of(fold), args.seed)
    trainer = nnDiffSegTrainerAttached(plans, model.configuration, place, model.dataset_json, device)
    set_budget(trainer, args, epochs=EPOCHS)
    trainer.load_pretrained_weights(str(model.weights(fold)))
    if args.c:
        go_on(trainer, args.seed)
    trainer.run_training()
    trainer.perform_actual_validation(args.npz)


if __name__ == "__main__":
    raise SystemExit(main())
