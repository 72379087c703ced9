"""``nndiffseg_train DATASET CONFIGURATION FOLD``: trains one fold and validates it."""

from __future__ import annotations

import copy
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nndiffseg.cli.common import (
    Parser,
    add_device_flag,
    add_folder_flags,
    device_from,
    folders_from,
    pick_device,
    run,
    user_path,
)
from nndiffseg.cli.training_flags import add_mirroring_flags, add_training_flags, check_numbers, fold_of, go_on, set_budget
from nndiffseg.data.files import read_json
from nndiffseg.data.folds import member_of
from nndiffseg.data.plans_schema import check_plans
from nndiffseg.errors import UserError

if TYPE_CHECKING:
    import torch

    from nndiffseg.methods.protocol import Method
    from nndiffseg.training.trainer import DiffusionTrainer


def main(argv: Sequence[str] | None = None) -> int:
    """Console entry point; returns the exit code."""
    return run(_main, argv)


def _parser() -> Parser:
    parser = Parser("Trains one fold of an nndiffseg model and validates it with the stochastic predictor.")
    parser.add_argument("dataset", help="id or name, such as 4 or Dataset004_Hippocampus")
    parser.add_argument("configuration", help="2d, 3d_lowres, 3d_fullres or 3d_cascade_fullres, as the plans name them")
    parser.add_argument(
        "fold",
        help="0 to 4, or all; all with --seed 1, 2, ... trains further members of an ensemble, which predict together with "
        "-f all all/seed_1 all/seed_2",
    )
    parser.add_argument("-tr", default="nnDiffSegTrainer", metavar="TRAINER", help="default: %(default)s")
    parser.add_argument("-p", default="nnDiffSegPlans", metavar="PLANS", help="default: %(default)s")
    parser.add_argument(
        "-pretrained_weights",
        "--pretrained_weights",
        type=user_path,
        metavar="FILE",
        help="checkpoint of nndiffseg, or of nnU-Net with the same plans, to start from",
    )
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the method, such as steps=4; may be given several times",
    )
    add_mirroring_flags(parser)
    add_training_flags(parser, "1000")
    parser.add_argument(
        "-num_gpus",
        "--num_gpus",
        type=int,
        default=1,
        metavar="N",
        help="train in N processes that share each batch, one for each GPU, or with -device cpu on the processors",
    )
    parser.add_argument("--val", action="store_true", help="only validate the trained fold")
    parser.add_argument("--val_best", action="store_true", help="validate checkpoint_best instead of the final one")
    parser.add_argument("--disable_checkpointing", action="store_true", help="write no checkpoints, for quick tests")
    add_device_flag(parser)
    add_folder_flags(parser)
    return parser


def _main(argv: Sequence[str] | None) -> None:
    if not _in_group():
        return _train(argv)
    from nndiffseg.training.launch import member

    with member() as join:
        _train(argv, join)


def _in_group() -> bool:
    """Whether this process is one of several that train together, started by torchrun or by ``-num_gpus``."""
    return os.environ.get("WORLD_SIZE", "1") != "1" and {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()


def _train(argv: Sequence[str] | None, join: Callable[[torch.device], None] | None = None) -> None:
    """Trains in this process, in others that it starts, or with others after ``join``."""
    args = _parser().parse_args(argv)
    check_numbers(args)
    _check_stages(args)
    fold: Any = member_of(fold_of(args.fold), args.seed)
    folders = folders_from(args)
    plans, dataset_json = read_plans(folders, args)
    trainer_class = find_trainer(args.tr)
    if args.num_gpus > 1 and join is None:
        from nndiffseg.training.launch import launch

        device = pick_device(args.device, quiet=True)
        return launch(main, sys.argv[1:] if argv is None else argv, args.num_gpus, device)
    device = device_from(args)
    if join is not None:
        join(device)
    plans["continue_training"] = args.c
    set_options(plans, args.configuration, trainer_class.method_class, args.option)
    trainer = trainer_class(plans, args.configuration, fold, dataset_json, device)
    set_budget(trainer, args, epochs=trainer.num_epochs)
    trainer.disable_checkpointing |= args.disable_checkpointing
    _set_mirroring(trainer, args)
    _load(trainer, args)
    if not args.val:
        trainer.run_training()
    if args.val_best:
        trainer.validated_checkpoint = "checkpoint_best.pth"
        trainer.load_checkpoint(str(Path(trainer.output_folder) / trainer.validated_checkpoint))
    trainer.perform_actual_validation(args.npz)


def _set_mirroring(trainer: DiffusionTrainer, args: Any) -> None:
    from nndiffseg.training.mirroring import asked_axes

    dimensions = len(trainer.configuration_manager.patch_size)
    trainer.mirror_axes = asked_axes(args.mirror_axes, args.disable_mirroring, dimensions)


def _check_stages(args: Any) -> None:
    if args.c and args.val:
        raise UserError("--c continues a training and --val only validates; give one of them.")
    if args.val_best and args.disable_checkpointing:
        raise UserError("--val_best needs the checkpoints that --disable_checkpointing does not write; leave one of them out.")
    if args.val and (args.mirror_axes is not None or args.disable_mirroring):
        raise UserError("--val mirrors as the training did; leave out --mirror_axes and --disable_mirroring.")
    if args.pretrained_weights and (args.c or args.val):
        raise UserError("-pretrained_weights begins a training; leave out --c and --val.")


def set_options(plans: dict, configuration: str, method: type[Method], given: Sequence[str]) -> None:
    """Puts options into the plans of a training, on top of those that stand there.

    Args:
        plans: of nnU-Net's format; changed.
        configuration: name in the plans.
        method: of the trainer.
        given: ``NAME=VALUE`` each, with VALUE in JSON; what is no JSON is a string.

    Raises:
        UserError: not of this form, no option of the method, or a value of a wrong type or out of range.
    """
    values: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise UserError(f"--option takes NAME=VALUE, not {text!r}.")
        try:
            values[name] = json.loads(value)
        except json.JSONDecodeError:
            values[name] = value
    planned = resolved(plans, configuration)
    if values:
        section = copy.deepcopy(planned["diffusion"])
        options = section.setdefault("options", {})
        options[method.name] = options.get(method.name, {}) | values
        plans["configurations"][configuration]["diffusion"] = planned["diffusion"] = section
    method.options_of(planned)


def resolved(plans: dict, configuration: str) -> dict[str, Any]:
    """A configuration with all that it inherits from others of checked plans."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    return PlansManager(plans).get_configuration(configuration).configuration


def read_plans(folders: Any, args: Any) -> tuple[dict, dict]:
    """Reads plans and dataset.json; ``args`` has the dataset, the configuration and the plans ``p``.

    Raises:
        UserError: no such dataset, plans or configuration, preprocessed data is missing, the plans name what no planner
            writes, or one of both files is not as it should be.
    """
    from nndiffseg.data.check import read_dataset_json

    dataset = folders.dataset(args.dataset, "preprocessed")
    base = folders.preprocessed / dataset
    command = f"nndiffseg_plan_and_preprocess -d {args.dataset}"
    path = base / f"{args.p}.json"
    if not path.is_file():
        found = ", ".join(sorted(p.stem for p in base.glob("*Plans*.json"))) or "none"
        raise UserError(f"There are no plans {args.p} for {dataset} (found: {found}); run {command} or choose with -p.")
    plans = read_json(path, f"make it again with {command}")
    check_plans(plans, str(path))
    if args.configuration not in plans["configurations"]:
        found = ", ".join(plans["configurations"])
        raise UserError(f"The plans {args.p} have no configuration {args.configuration}; choose one of {found}.")
    configuration = resolved(plans, args.configuration)
    if "diffusion" not in configuration:
        raise UserError(f"The plans {args.p} hold no diffusion settings; make some with {command}, or choose with -p.")
    if not (base / configuration["data_identifier"]).is_dir():
        raise UserError(f"{dataset} is not preprocessed for {args.configuration}; run {command} -c {args.configuration}.")
    return plans, read_dataset_json(base)


def find_trainer(name: str) -> type[DiffusionTrainer]:
    """A trainer class by name: one of nndiffseg's own, or one in a folder that ``nnUNet_extTrainer`` names.

    Raises:
        UserError: there is no such trainer, or it does not train a diffusion model.
    """
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    import nndiffseg.trainers as own
    from nndiffseg.inference.model_folder import trainer_by_name
    from nndiffseg.training.trainer import DiffusionTrainer

    trainer = trainer_by_name(name)
    if isinstance(trainer, type) and issubclass(trainer, nnUNetTrainer) and not issubclass(trainer, DiffusionTrainer):
        raise UserError(
            f"{name} trains no diffusion; train it with nnUNetv2_train and calibrate it with nndiffseg_calibrate, or choose "
            f"one of {', '.join(own.__all__)} with -tr."
        )
    if not (isinstance(trainer, type) and issubclass(trainer, DiffusionTrainer)):
        raise UserError(f"There is no nndiffseg trainer {name}; choose one of {', '.join(own.__all__)} with -tr.")
    return trainer


def _load(trainer: DiffusionTrainer, args: Any) -> None:
    folder = Path(trainer.output_folder)
    if args.pretrained_weights:
        trainer.load_pretrained_weights(str(args.pretrained_weights))
    elif args.val:
        if not args.val_best:  # the best one is loaded just before its validation
            trainer.load_checkpoint(str(folder / "checkpoint_final.pth"))
    elif args.c:
        go_on(trainer, args.seed)


if __name__ == "__main__":
    raise SystemExit(main())
