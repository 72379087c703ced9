"""``nndiffseg_convert NAME SOURCE``: a public dataset, as downloaded, becomes a dataset in nnU-Net's raw format."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from nndiffseg.cli.common import Parser, choose, run, user_path
from nndiffseg.data.folders import configure_folders
from nndiffseg.errors import UserError

#: converters are leaves: found by name, never imported
CATALOGUE = "nndiffseg.dataset_conversion.catalogue"


def main(argv: Sequence[str] | None = None) -> int:
    """Console entry point; returns the exit code."""
    return run(_main, argv)


def _parser() -> Parser:
    parser = Parser("Writes a public dataset, as downloaded and unpacked, in nnU-Net's raw format (docs/datasets.md).")
    parser.add_argument("name", metavar="NAME", nargs="?", help="of the dataset; --list shows all")
    parser.add_argument("source", metavar="SOURCE", nargs="?", type=user_path, help="its folder")
    parser.add_argument("--list", action="store_true", help="names, tasks, licences, and where to get the data")
    parser.add_argument("-d", metavar="ID", type=int, help="number of the dataset; default: see --list")
    parser.add_argument("--size", metavar="PIXELS", type=int, help="resize the images, where --list says so")
    parser.add_argument(
        "--raw", metavar="FOLDER", help="overrides the environment variable nnUNet_raw; without either, ./nndiffseg_data/raw"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the dataset if it exists and differs")
    parser.add_argument("--no_pbar", action="store_true", help="no progress bar")
    return parser


def _main(argv: Sequence[str] | None) -> None:
    args = _parser().parse_args(argv)
    if args.list:
        return _print_list(importlib.import_module(CATALOGUE))
    if args.name is None:
        raise UserError("Give the NAME of a dataset and its folder; nndiffseg_convert --list shows all.")
    if args.d is not None and not 0 < args.d < 1000:
        raise UserError("-d is the number of a dataset; give one from 1 to 999.")
    if args.size is not None and args.size < 8:
        raise UserError("--size is in pixels; give 8 or more.")
    converter = _converter(importlib.import_module(CATALOGUE), args.name, args.source)
    if args.source is None:
        raise UserError(f"Give the folder of {converter.name} too; it comes from {converter.get}.")
    if not args.source.is_dir():
        raise UserError(f"{args.source} is not a folder; give the folder of the downloaded and unpacked dataset.")
    options = {} if args.size is None else {"size": args.size}
    if options and converter.size is None:
        raise UserError(f"The images of {converter.name} keep their size; leave out --size.")
    number = converter.number if args.d is None else args.d
    raw = configure_folders(args.raw, quiet=True).raw
    before = {p.name: p.stat().st_ino for p in raw.iterdir()} if raw.is_dir() else {}
    target = converter.convert(
        args.source, raw, dataset_id=number, overwrite=args.overwrite, progress=not args.no_pbar, **options
    )
    _report(target, number, unchanged=before.get(target.name) == target.stat().st_ino)


def _converter(catalogue: Any, name: str, source: Path | None) -> Any:
    """The converter of a name, upper and lower case alike.

    Raises:
        UserError: there is none; the sentence tells of the nearest one, or of nnU-Net's.
    """
    own, others = catalogue.converters(), {e.name: e for e in catalogue.BY_NNUNET}
    names = {n.casefold(): n for n in (*own, *others)}
    found = choose("dataset", names.get(name.casefold(), name), [*own, *others])
    if found in others:
        how = others[found].how.replace("SOURCE", str(source or "SOURCE"))
        raise UserError(f"nnU-Net converts {found} itself; type {how}.")
    return own[found]


def _report(target: Path, number: int, *, unchanged: bool) -> None:
    from nndiffseg.data.files import read_json

    for remark in read_json(target / "dataset.json").get("remarks", []):
        print(f"Note: {UserError(str(remark))}")  # which may repeat names of foreign files
    with suppress(ValueError):  # the shorter path
        target = target.relative_to(Path.cwd())
    told = f"{target} is there already, with the very same files." if unchanged else f"Wrote {target}."
    print(f"{told} Next: nndiffseg_plan_and_preprocess -d {number}")


def _print_list(catalogue: Any) -> None:
    for c in catalogue.converters().values():
        size = f"    --size: {c.size}\n" if c.size else ""
        print(f"{c.name} ({c.number:03d}): {c.task}\n    licence: {c.licence}\n    from: {c.get}\n{size}")
    print("By nnU-Net's own converters:\n")
    for e in catalogue.BY_NNUNET:
        print(f"{e.name}: {e.task}\n    licence: {e.licence}\n    from: {e.get}\n    type: {e.how}\n")


if __name__ == "__main__":
    raise SystemExit(main())
