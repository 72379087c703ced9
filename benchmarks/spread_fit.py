"""How the scales of the samples' spread are best fitted: rules compared on cases that they were not fitted on.

    python -m benchmarks.spread_fit --dataset 4 --configuration 3d_fullres --fold 3 [--rounds 30]

Takes a trained ``nnDiffSegTrainer`` from the results folder, for example that of

    nndiffseg_train 4 3d_fullres 3 -p nnDiffSegPlansS --epochs 6 --iterations_per_epoch 100

and compares two samples with each other and with the truth in many validation patches under every candidate of the scales.
Each rule (patches, largest detail scale, tolerance, prior) is then fitted on a random half of the cases, again and again,
and judged on the other half: spread / error of 1 - IoU, where 1 is right. What both scales do is read off the
candidates of one scale at a time and added up, as the fit does. Choose rules on folds that are not reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import report
from benchmarks.methods_common import data_parser
from nndiffseg.cli.common import pick_device, run
from nndiffseg.errors import UserError

if TYPE_CHECKING:
    import torch

    from benchmarks.methods_data import Data
    from nndiffseg.training.spread_scale import SpreadTable

OURS = "nnDiffSegTrainer"
PATCHES = 144


@dataclass(frozen=True)
class Rule:
    """One way to fit; the defaults are what :mod:`nndiffseg.training.spread_scale` did in its first version."""

    patches: int = 48
    largest_detail: float = 2.0
    tolerance: float = 0.1
    prior_sd: float = 0.5


FIRST, NOW = Rule(), Rule(PATCHES, 4.0, 0.05)
RULES = (FIRST, replace(FIRST, patches=PATCHES), replace(FIRST, largest_detail=4.0), replace(NOW, tolerance=0.1), NOW,
         replace(NOW, tolerance=0.0), replace(NOW, prior_sd=1.0))


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
    from nndiffseg.training.spread_scale import DETAILS, SCALES

    data = data_from(args)
    tables = tables_of(data, pick_device(args.device), PATCHES)
    results = [{**asdict(rule), **cross_fitted(tables, rule, args.rounds, args.seed)} for rule in RULES]
    rows = [[r["patches"], f"{r['largest_detail']:g}", f"{r['tolerance']:.0%}", f"{r['prior_sd']:g}",
             *(f"{np.mean(r[k]):.2f} ± {np.std(r[k]):.2f}" for k in ("spread_scale", "detail_scale", "ratio"))]
            for r in results]
    error, spread = (sum(getattr(t, side).sum(0) for t in tables) for side in ("error", "spread"))
    candidates = [*((float(s), 1.0) for s in SCALES), *((1.0, float(d)) for d in DETAILS)]
    report(args.name, rows, ["patches", "largest d", "tolerance", "prior sd", "s", "d", "spread / error of the others"],
           {**data.describe(), "rounds": args.rounds, "seed": args.seed, "rules": results,
            "candidates_s_d": candidates, "spread_over_error": (spread / error).tolist(),
            "error_1_minus_iou": (error[:, -1] / sum(len(t.cases) for t in tables)).tolist()})


def tables_of(data: Data, device: torch.device, patches: int | None = None) -> list[SpreadTable]:
    """Distances in validation patches of the fold's finished training, by its averaged network.

    Raises:
        UserError: there is none.
    """
    from benchmarks.methods_training import FINAL
    from benchmarks.versus_accuracy import results_in
    from nndiffseg.trainers import nnDiffSegTrainer
    from nndiffseg.training.spread_scale import spread_tables

    file = data.fold_folder(OURS) / FINAL
    if not file.is_file():
        raise UserError(f"There is no finished training of {OURS} for fold {data.fold} of {data.dataset}; run "
                        f"`nndiffseg_train {data.dataset} {data.configuration} {data.fold} -p {data.plans['plans_name']}`.")
    with results_in(data.results):
        trainer = nnDiffSegTrainer({**data.plans, "continue_training": True}, data.configuration, data.fold, data.dataset_json,
                                   device)
        trainer.load_checkpoint(str(file))
        assert trainer.average is not None
        return spread_tables(trainer, trainer.average.network, patches)


def cross_fitted(tables: Sequence[SpreadTable], rule: Rule, rounds: int, seed: int) -> dict[str, Any]:
    """Fits on random halves of the cases; ``ratio`` is that of the other halves, one value per round."""
    from nndiffseg.training import spread_scale
    from nndiffseg.training.spread_scale import DETAILS, SCALES, SpreadTable, fit_spread

    allowed = DETAILS[rule.largest_detail >= DETAILS]
    first, seen = [], 0
    for t in tables:
        if seen < rule.patches:
            kept = slice(0, len(SCALES) + len(allowed))
            first.append(SpreadTable(t.cases, t.error[:, kept], t.spread[:, kept]))
            seen += len(t.cases)
    cases, rng = sorted({c for t in tables for c in t.cases}), np.random.default_rng(seed)
    found: dict[str, list[float]] = {"spread_scale": [], "detail_scale": [], "ratio": []}
    for _ in range(rounds):
        order = rng.permutation(cases)
        half, others = order[: len(cases) // 2], order[len(cases) // 2:]
        with patch.multiple(spread_scale, DETAILS=allowed, TOLERANCE=rule.tolerance, DETAIL_PRIOR_SD=rule.prior_sd):
            fitted = fit_spread(first, half.tolist())
        for name, value in fitted.items():
            found[name].append(value)
        found["ratio"].append(ratio_at(tables, others.tolist(), fitted["spread_scale"], fitted["detail_scale"]))
    return found


def ratio_at(tables: Sequence[SpreadTable], cases: Sequence[str], scale: float, detail: float) -> float:
    """Spread / error of 1 - IoU over the patches of these cases, interpolated between the candidates."""
    from nndiffseg.training.spread_scale import DETAILS, SCALES

    def total(side: str) -> NDArray[np.float64]:
        return np.sum([distances[:, -1] for t in tables for case, distances in zip(t.cases, getattr(t, side), strict=True)
                       if case in cases], axis=0)

    log_ratio = np.log(total("spread") / total("error"))
    by_scale, by_detail = np.split(log_ratio, [len(SCALES)])
    unscaled = np.interp(1, SCALES, by_scale)
    return float(np.exp(np.interp(scale, SCALES, by_scale) - unscaled + np.interp(detail, DETAILS, by_detail)))


if __name__ == "__main__":
    raise SystemExit(main())
