"""``nndiffseg_info MODEL_FOLDER``: plan, data, folds, scores, calibration and versions of a model; its model card."""

from __future__ import annotations

import json
from collections.abc import Sequence

from nndiffseg.cli.common import Parser, check_output, run, user_path


def main(argv: Sequence[str] | None = None) -> int:
    """Console entry point; returns the exit code."""
    return run(_main, argv)


def _parser() -> Parser:
    parser = Parser("Tells what a model folder of nndiffseg or nnU-Net holds.")
    parser.add_argument("model", metavar="MODEL_FOLDER", type=user_path, help="the folder above fold_0")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--json", action="store_true", help="as JSON")
    kind.add_argument(
        "--card", metavar="FILE", type=user_path, help="write a model card in Markdown, to be completed by a person"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the card if it exists")
    return parser


def _main(argv: Sequence[str] | None) -> None:
    args = _parser().parse_args(argv)
    if args.card:
        check_output(args.card, args.overwrite)
    # torch and nnU-Net take seconds to load, so wrong flags are told before.
    from nndiffseg.data.files import write_atomically
    from nndiffseg.inference.description import describe
    from nndiffseg.report.card import TO_FILL_IN, as_text, model_card

    description = describe(args.model)
    if args.json:
        print(json.dumps(description, indent=4))
    elif args.card:
        card = model_card(description)
        with write_atomically(args.card) as temporary:
            temporary.write_text(card, encoding="utf8")
        print(f"{args.card}: {card.count(TO_FILL_IN)} places are marked {TO_FILL_IN!r} for a person to fill in.")
    else:
        print(as_text(description))


if __name__ == "__main__":
    raise SystemExit(main())
