"""Where trainings run: here, or as jobs of Slurm."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from nndiffseg.errors import UserError

if TYPE_CHECKING:
    from nndiffseg.launch.slurm import Resources

#: that say nothing without --launcher slurm
FLAGS = ("partition", "time", "gpus", "cpus", "memory", "slurm")
TIME, GPUS, CPUS = "24:00:00", 1, 8


def add_cluster_flags(parser: argparse.ArgumentParser) -> None:
    """Adds ``--launcher`` and what a job asks for; read them with :func:`resources_from`."""
    group = parser.add_argument_group("where", "what each fold asks for, with --launcher slurm")
    add = group.add_argument
    add(
        "--launcher",
        choices=("local", "slurm"),
        default="local",
        help="local: here, one fold after another; slurm: an array of jobs, and one after it (default: %(default)s)",
    )
    add("--partition", metavar="NAME", help="default: the cluster's")
    add("--time", metavar="LIMIT", help=f"limit, as Slurm takes it; a training goes on in a further run (default: {TIME})")
    add("--gpus", type=int, metavar="N", help=f"default: {GPUS}, or 0 with -device cpu")
    add("--cpus", type=int, metavar="N", help=f"default: {CPUS}")
    add("--memory", type=float, metavar="GB", help="default: the cluster's")
    add(
        "--slurm",
        action="append",
        metavar="KEY=VALUE",
        help="a further option of sbatch, such as account=abc; may be given several times",
    )


def resources_from(args: argparse.Namespace) -> Resources | None:
    """What the jobs ask for; None where everything runs here.

    Raises:
        UserError: a number is out of range, a flag needs ``--launcher slurm``, or jobs cannot be submitted here.
    """
    if args.launcher == "local":
        if given := [name for name in FLAGS if getattr(args, name) is not None]:
            raise UserError(f"--{given[0]} is for jobs; leave it out, or give --launcher slurm.")
        return None
    from nndiffseg.launch.slurm import Resources, check_slurm, minutes_of

    gpus = (0 if args.device == "cpu" else GPUS) if args.gpus is None else args.gpus
    cpus = CPUS if args.cpus is None else args.cpus
    for name, number, least in (("gpus", gpus, 0), ("cpus", cpus, 1)):
        if number < least:
            raise UserError(f"--{name} must be {least} or more, not {number}.")
    if args.memory is not None and not args.memory > 0:
        raise UserError(f"--memory must be positive, not {args.memory}.")
    others = dict(_pair(text) for text in args.slurm or ())
    minutes = minutes_of(TIME if args.time is None else args.time)
    check_slurm()
    return Resources(minutes, gpus, cpus, args.memory, args.partition, others)


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals and value) or key.startswith("-"):
        raise UserError(f"--slurm takes KEY=VALUE with an option of sbatch, such as account=abc, not {text!r}.")
    return key, value
