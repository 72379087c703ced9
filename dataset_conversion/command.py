"""The command line shared by all conversions."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from nndiffseg.cli.common import Parser, run
from nndiffseg.data.folders import configure_folders
from nndiffseg.errors import UserError


def command(
    convert: Callable[..., Path],
    description: str,
    number: int,
    argv: Sequence[str] | None,
    *,
    size: tuple[int | None, str] | None = None,
) -> int:
    """The command line of one conversion.

    Args:
        convert: the conversion; gets ``dataset_id``, ``overwrite`` and, if there is such a flag, ``size`` by name.
        number: default of ``--id``.
        argv: arguments; None: those of the process.
        size: default and help text of ``--size``; None: no such flag.

    Returns:
        The exit code.
    """

    def body(words: Sequence[str] | None) -> None:
        parser = Parser(description, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("-i", required=True, metavar="FOLDER", type=Path, help="the dataset as downloaded")
        parser.add_argument(
            "--raw",
            metavar="FOLDER",
            help="overrides the environment variable nnUNet_raw; without either, ./nndiffseg_data/raw",
        )
        parser.add_argument("--id", metavar="N", type=int, default=number, help="number of the dataset (%(default)s)")
        parser.add_argument("--overwrite", action="store_true", help="replace the dataset if it exists")
        if size is not None:
            parser.add_argument("--size", metavar="PIXELS", type=int, default=size[0], help=size[1])
        args = parser.parse_args(words)
        options = {"dataset_id": args.id, "overwrite": args.overwrite}
        if not 0 < args.id < 1000:
            raise UserError("--id is the number of a dataset; give one from 1 to 999.")
        if size is not None:
            if args.size is not None and args.size < 8:
                raise UserError("--size is in pixels; give 8 or more.")
            options["size"] = args.size
        if not args.i.is_dir():
            raise UserError(f"{args.i} is not a folder; give -i the folder of the downloaded dataset.")
        target = convert(args.i, configure_folders(args.raw, quiet=True).raw, **options)
        with suppress(ValueError):  # the shorter path
            target = target.relative_to(Path.cwd())
        print(f"Wrote {target}. Next: nndiffseg_plan_and_preprocess -d {args.id}")

    return run(body, argv)
