"""How the scales of the samples' spread are best fitted: rules compared on cases that they were not fitted on.

    python -m benchmarks.spread_fit --dataset 4 --configuration 3d_fullres --fold 3 [--rounds 30]

Takes a trained ``nnDiffSegTrainer`` from the results folder, for example that of

    nndiffseg_train 4 3d_fullres 3 -p nnDiffSegPlansS --epochs 6 --iterations_per_epoch 100

and compares two samples with each other and with the truth in many validation patches under every pair of candidates. Each
rule (patches, largest detail scale, prior) is then fitted on a random half of the cases, again and again, and judged on
the other half: spread / error of volumes and of 1 - IoU, interpolated between the candidates, where 1 is right. Choose rules on
folds that are not reported.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np

from benchmarks.common import report
from benchmarks.methods_common import data_parser
from nndiffseg.cli.common import pick_device, run
from nndiffseg.errors import UserError

if TYPE_CHECKING:
    from nndiffseg.training.spread_scale import SpreadTable

PATCHES = 144


@dataclass(frozen=True)
class Rule:
    """One way to fit; largest d and prior default to those in use. A largest d of 1 leaves it all to s."""

    patches: int = PATCHES
    largest_detail: float = 2.8
    prior_sd: float = 0.7


RULES = (Rule(48, 1.0), Rule(48), Rule(largest_detail=1.0), Rule(largest_detail=1.6), Rule(), Rule(prior_sd=0.5),
         Rule(prior_sd=1.0))


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return run(_main, argv)


def _main(argv: Sequence[str] | None) -> None:
    parser = data_parser("Rules that fit the scales of the spread, judged on other cases.")
    parser.set_defaults(configuration="3d_fullres")
    parser.add_argument("--rounds", type=int, default=30, help="random halves (default: %(default)s)")
    parser.add_argument("--name", default="spread_fit", help="of the JSON file (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.rounds < 1:
        raise UserError(f"--rounds must be at least 1, not {args.rounds}.")
    from benchmarks.methods_data import data_from
    from benchmarks.versus_accuracy import tables_of
    from nndiffseg.training.spread_scale import DETAILS, SCALES

    data = data_from(args)
    tables = tables_of(data, pick_device(args.device), PATCHES)
    results = [{**asdict(rule), **cross_fitted(tables, rule, args.rounds, args.seed)} for rule in RULES]
    rows = [[r["patches"], f"{r['largest_detail']:g}", f"{r['prior_sd']:g}",
             *(f"{np.mean(r[k]):.2f} ± {np.std(r[k]):.2f}" for k in ("spread_scale", "detail_scale", "volumes", "overlap"))]
            for r in results]
    error, spread = (sum(getattr(t, side).sum(0) for t in tables) for side in ("error", "spread"))
    report(args.name, rows, ["patches", "largest d", "prior sd", "s", "d", "spread / error of volumes", "of 1 - IoU"],
           {**data.describe(), "rounds": args.rounds, "seed": args.seed, "rules": results,
            "scales": SCALES.tolist(), "details": DETAILS.tolist(), "spread_over_error": (spread / error).tolist(),
            "error_1_minus_iou": (error[..., -1] / sum(len(t.cases) for t in tables)).tolist()})


def cross_fitted(tables: Sequence[SpreadTable], rule: Rule, rounds: int, seed: int) -> dict[str, Any]:
    """Fits on random halves of the cases; ``volumes`` and ``overlap`` are ratios of the other halves, a value per round."""
    from nndiffseg.training import spread_scale
    from nndiffseg.training.spread_scale import DETAILS, fit_spread

    allowed = rule.largest_detail >= DETAILS
    first, seen = [], 0
    for t in tables:
        if seen < rule.patches:
            first.append(replace(t, error=t.error[:, :, allowed], spread=t.spread[:, :, allowed]))
            seen += len(t.cases)
    cases, rng = sorted({c for t in tables for c in t.cases}), np.random.default_rng(seed)
    found: dict[str, list[float]] = {k: [] for k in ("spread_scale", "detail_scale", "volumes", "overlap")}
    for _ in range(rounds):
        order = rng.permutation(cases)
        half, others = order[: len(cases) // 2], order[len(cases) // 2:]
        with patch.multiple(spread_scale, DETAILS=DETAILS[allowed], DETAIL_PRIOR_SD=rule.prior_sd):
            fitted = fit_spread(first, half.tolist())
        for name, value in (*fitted.items(), *ratios_at(tables, others.tolist(), **fitted).items()):
            found[name].append(value)
    return found


def ratios_at(tables: Sequence[SpreadTable], cases: Sequence[str], spread_scale: float, detail_scale: float
              ) -> dict[str, float]:
    """Spread / error over the patches of these cases, of volumes and of 1 - IoU."""
    from nndiffseg.training.spread_scale import log_ratios, spline

    sums = [np.sum([d for t in tables for case, d in zip(t.cases, getattr(t, side), strict=True) if case in cases], axis=0)
            for side in ("error", "spread")]
    volumes, overlap = (math.exp(spline(r)(math.log(spread_scale), math.log(detail_scale)).item())
                        for r in log_ratios(np.stack(sums)))
    return {"volumes": volumes, "overlap": overlap}


if __name__ == "__main__":
    raise SystemExit(main())
