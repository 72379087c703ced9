"""Command-line flags of the comparisons, and the length of a training."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.compare.trainers import TRAINERS
from nndiffseg.cli.common import Parser
from nndiffseg.errors import UserError

#: flags of :func:`data_parser` that take a value
PASSED = (
    "dataset", "configuration", "fold", "plans", "planner", "cases", "device", "seed", "raw", "preprocessed", "results",
)  # fmt: skip


def data_parser(description: str) -> Parser:
    """A parser with the flags that say which data, fold and results are meant."""
    parser = Parser(description)
    parser.add_argument("--dataset", "-d", default="4", help="id or name (default: %(default)s)")
    parser.add_argument("--configuration", "-c", default="2d", help="of the plans (default: %(default)s)")
    parser.add_argument("--fold", "-f", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--planner", default="S", help="size of the planner, S, M or L (default: %(default)s)")
    parser.add_argument("--plans", "-p", help="name of the plans, instead of --planner")
    parser.add_argument("--cases", type=int, help="predict so many validation cases, spread evenly (default: all)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda", "mps"), help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--disable_tta", action="store_true", help="no mirroring, in nnU-Net neither")
    for kind in ("raw", "preprocessed", "results"):
        parser.add_argument(f"--{kind}", metavar="FOLDER", help=f"overrides nnUNet_{kind}")
    return parser


def passed_on(args: argparse.Namespace, *more: str) -> list[str]:
    """The flags of :func:`data_parser` again, and ``more``, for a command that works on the same data."""
    given = [(name, getattr(args, name)) for name in (*PASSED, *more)]
    flags = [text for name, value in given if value is not None for text in (f"--{name}", str(value))]
    return flags + (["--disable_tta"] if args.disable_tta else [])


def add_trainers_flag(parser: argparse.ArgumentParser, default: Sequence[str] = TRAINERS) -> None:
    """``--trainers``."""
    parser.add_argument("--trainers", nargs="+", default=list(default), metavar="TRAINER", help="default: all of them")


def add_entry_flags(parser: argparse.ArgumentParser) -> None:
    """``--trainer`` and ``--option``: one :class:`~benchmarks.compare.trainers.Entry`."""
    parser.add_argument("--trainer", required=True, help="its name, or module:Class")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="of the method, repeatable")


def add_result_flags(parser: argparse.ArgumentParser, per_case: bool = True) -> None:
    """``--name`` and ``--per_case``: where the results go."""
    parser.add_argument("--name", help="of the files in benchmarks/results and docs/images")
    if per_case:
        parser.add_argument("--per_case", type=Path, metavar="FILE", help="also write the metrics of every case, as JSON")


def check_positive(args: argparse.Namespace, *names: str) -> None:
    """Raises UserError where one of these flags is given and not positive."""
    for name in names:
        value = getattr(args, name)
        if value is not None and not value > 0:
            raise UserError(f"--{name} must be positive, not {value}.")


# ---- length of a training -----------------------------------------------------------------------------------------


def add_budget_flags(parser: argparse.ArgumentParser) -> None:
    """``--iterations`` and ``--minutes``, see :func:`budget_from`."""
    parser.add_argument("--iterations", type=int, help="of every training")
    parser.add_argument(
        "--minutes",
        type=float,
        help="of every training, instead of --iterations; without either, only finished trainings are used",
    )


@dataclass(frozen=True)
class Budget:
    """Length of a training: iterations, or minutes, or neither (what is trained is taken as it is)."""

    iterations: int | None
    minutes: float | None

    def __str__(self) -> str:
        return f"{self.iterations} iterations" if self.minutes is None else f"{self.minutes:g} minutes"

    @property
    def given(self) -> bool:
        return self.iterations is not None or self.minutes is not None


def budget_from(args: argparse.Namespace) -> Budget:
    """Raises UserError where both flags are given or one is not positive."""
    if args.iterations is not None and args.minutes is not None:
        raise UserError("Give either --iterations or --minutes, not both.")
    check_positive(args, "iterations", "minutes")
    return Budget(args.iterations, args.minutes)
