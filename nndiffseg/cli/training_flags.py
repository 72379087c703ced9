"""Flags that the commands which train have in common, and what becomes of them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from nndiffseg.cli.common import Parser
from nndiffseg.errors import UserError

if TYPE_CHECKING:
    from nndiffseg.training.trainer import DiffusionTrainer


def add_length_flags(parser: Parser, epochs: str) -> None:
    """Adds what bounds a training, and what it leaves; :func:`set_budget` reads it. ``epochs`` is the default, in words."""
    add = parser.add_argument
    add("--epochs", type=int, help=f"number of epochs (default {epochs} unless --minutes is given)")
    add("--iterations_per_epoch", type=int, help="default: the trainer's own, 250")
    add("--minutes", type=float, help="bounds the training time; the learning rate fits the bound")
    add("--seed", type=int, help="default: 0; a training that goes on keeps its own")
    add(
        "--npz",
        "--save_probabilities",
        dest="npz",
        action="store_true",
        help="save the validation's probabilities, for nnUNetv2_find_best_configuration",
    )
    add("--disable_progress_bar", action="store_true")


def add_training_flags(parser: Parser, epochs: str) -> None:
    """Those of :func:`add_length_flags`, and what continues a training."""
    add_length_flags(parser, epochs)
    parser.add_argument(
        "--c",
        "--continue_training",
        dest="c",
        action="store_true",
        help="go on from the newest state of the training in this fold",
    )


def add_mirroring_flags(parser: argparse.ArgumentParser) -> None:
    """Adds ``--mirror_axes`` and ``--disable_mirroring``."""
    parser.add_argument(
        "--mirror_axes",
        nargs="+",
        type=int,
        metavar="AXIS",
        help="mirror patches, and images in predictions, along these axes alone, such as 0 1; nnU-Net's order, from 0",
    )
    parser.add_argument("--disable_mirroring", action="store_true", help="mirror neither patches nor images in predictions")


def set_budget(trainer: DiffusionTrainer, args: Any, *, epochs: int) -> None:
    """Gives a trainer what :func:`add_length_flags` asked for; ``epochs`` bounds it where nothing else does."""
    if args.iterations_per_epoch is not None:
        trainer.num_iterations_per_epoch = args.iterations_per_epoch
    trainer.num_epochs = args.epochs or epochs
    if args.seed is not None:
        trainer.seed = args.seed
    if args.minutes is not None:
        trainer.minutes, trainer.bound_by_time_only = args.minutes, args.epochs is None
    trainer.show_progress = not args.disable_progress_bar


def fold_of(text: str) -> Any:
    """A fold as nnU-Net takes it: a number, or ``all``.

    Raises:
        UserError: neither.
    """
    if text == "all":
        return text
    if not (text.isascii() and text.isdigit()):
        raise UserError(f"The fold must be 0 to 4 or all, not {text!r}.")
    return int(text)


def check_numbers(args: Any) -> None:
    """Checks the numbers of :func:`add_length_flags`, and of ``-num_gpus``.

    Raises:
        UserError: one is not positive.
    """
    for flag, value in (
        ("-num_gpus", getattr(args, "num_gpus", None)),
        ("--epochs", args.epochs),
        ("--iterations_per_epoch", args.iterations_per_epoch),
        ("--minutes", args.minutes),
    ):
        if value is not None and value <= 0:
            raise UserError(f"{flag} must be positive, not {value}.")


def go_on(trainer: DiffusionTrainer, seed: int | None) -> None:
    """Takes a training up where it stopped; one without any checkpoint begins.

    Args:
        trainer: of the fold.
        seed: that the user gave; None for that of the training.

    Raises:
        UserError: the training has another seed, or its newest checkpoint cannot be read.
    """
    from nndiffseg.training.fold_folder import newest_checkpoint
    from nndiffseg.training.mirroring import in_words

    file = newest_checkpoint(trainer.output_folder)
    if file is None:
        trainer.print_to_log_file("There is no checkpoint to continue from, so the training starts anew.")
        return
    asked = trainer.mirror_axes
    trainer.load_checkpoint(str(file))
    trained = tuple(trainer.inference_allowed_mirroring_axes or ())
    if asked not in (None, trained):
        raise UserError(
            f"The training in {file.parent} mirrors along {in_words(trained)}, not along {in_words(asked)}; "
            "leave out --mirror_axes and --disable_mirroring to go on with it, or leave out --c to begin anew."
        )
    if seed not in (None, trainer.seed):
        raise UserError(
            f"The training in {file.parent} has the seed {trainer.seed}, not {seed}; leave out --seed to go on with it, or "
            "leave out --c to begin anew."
        )
    trainer.print_to_log_file(f"Continuing from {file.name} at iteration {trainer.iteration}.")
