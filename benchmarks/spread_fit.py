"""How the scales of the samples' details and of their volumes are best fitted: rules compared on cases that they did not see.

    python -m benchmarks.spread_fit --dataset 4 --configuration 3d_fullres --fold 3 [--rounds 30]

Takes a trained ``nnDiffSegTrainer`` from the results folder, for example that of

    nndiffseg_train 4 3d_fullres 3 -p nnDiffSegPlansS --epochs 6 --iterations_per_epoch 100

For the details two samples are compared with each other and with the truth in many validation patches under every candidate
of the detail scale; for the volumes whole cases are predicted with the detail scale of the checkpoint. Each rule is then
fitted on a random half of the cases (no group is divided), again and again, and judged on the other half: spread / error of
1 - IoU or of volumes, where 1 is right. Of the volumes also the share of true ones inside the 90 % interval. Choose rules on
folds that are not reported.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING
from unittest.mock import patch

import numpy as np

from benchmarks.common import report
from benchmarks.methods_common import data_parser
from nndiffseg.cli.common import pick_device, run
from nndiffseg.data.groups import grouped, read_groups
from nndiffseg.errors import UserError

if TYPE_CHECKING:
    import torch

    from benchmarks.methods_data import Data
    from nndiffseg.calibration.volumes import VolumeTable
    from nndiffseg.training.detail_scale import SpreadTable

PATCHES = 144


@dataclass(frozen=True)
class Rule:
    """One way to fit d; largest d and prior default to those in use."""

    patches: int = PATCHES
    largest_detail: float = 2.8
    prior_sd: float = 0.7


RULES = (Rule(48, 1.0), Rule(48), Rule(largest_detail=1.6), Rule(), Rule(prior_sd=0.5), Rule(prior_sd=1.0))
#: standard deviations of the priors of the volumes' common log r (0: left at 1) and of a structure's around it (0: all alike)
VOLUME_PRIORS = ((0.0, 0.0), (0.2, 0.2), (0.5, 0.0), (0.5, 0.1), (0.5, 0.2), (0.5, 0.4), (1.0, 0.2))


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return run(_main, argv)


def _main(argv: Sequence[str] | None) -> None:
    parser = data_parser("Rules that fit the scales of details and volumes, judged on other cases.")
    parser.set_defaults(configuration="3d_fullres")
    parser.add_argument("--rounds", type=int, default=30, help="random halves (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=16, help="of each case, for the volumes (default: %(default)s)")
    parser.add_argument("--name", default="spread_fit", help="of the JSON file (default: %(default)s)")
    args = parser.parse_args(argv)
    for flag, least in (("rounds", 1), ("samples", 2)):
        if getattr(args, flag) < least:
            raise UserError(f"--{flag} must be at least {least}, not {getattr(args, flag)}.")
    from benchmarks.methods_data import data_from
    from benchmarks.versus_accuracy import tables_of
    from nndiffseg.training.detail_scale import DETAILS

    data, device = data_from(args), pick_device(args.device)
    tables = tables_of(data, device, PATCHES)
    groups = read_groups(data.preprocessed)
    volumes = predicted_volumes(data, device, args.samples, args.seed)
    details = [{**asdict(rule), **fitted_details(tables, groups, rule, args.rounds, args.seed)} for rule in RULES]
    stretched = [
        {"prior_sd": sd, "structure_sd": own, **fitted_volumes(volumes, groups, (sd, own), args.rounds, args.seed)}
        for sd, own in VOLUME_PRIORS
    ]
    rows = [
        ["details", r["patches"], f"{r['largest_detail']:g}", f"{r['prior_sd']:g}", _about(r["scale"]), _about(r["ratio"]), ""]
        for r in details
    ]
    rows += [
        [
            "volumes",
            "",
            "",
            f"{r['prior_sd']:g}, {r['structure_sd']:g}" if r["prior_sd"] else "left at 1",
            _about(r["scale"]),
            _about(r["ratio"]),
            f"{np.mean(r['covered']):.2f}",
        ]
        for r in stretched
    ]
    error, spread = (sum(getattr(t, side).sum(0) for t in tables) for side in ("error", "spread"))
    report(
        args.name,
        rows,
        ["scale of", "patches", "largest", "prior sd", "fitted", "spread / error, other cases", "inside the 90 % interval"],
        {
            **data.describe(),
            "rounds": args.rounds,
            "seed": args.seed,
            "samples": args.samples,
            "details": details,
            "volumes": stretched,
            "candidates": DETAILS.tolist(),
            "spread_over_error": (spread / error).tolist(),
            "error_1_minus_iou": (error / sum(len(t.cases) for t in tables)).tolist(),
        },
    )


def _about(values: Sequence[float]) -> str:
    return f"{np.mean(values):.2f} ± {np.std(values):.2f}"


def _halves(cases: Sequence[str], groups: dict[str, str], rounds: int, seed: int) -> Iterator[tuple[list[str], list[str]]]:
    """Random halves that divide no group."""
    members, rng = grouped(cases, groups), np.random.default_rng(seed)
    for _ in range(rounds):
        order = rng.permutation(len(members))
        first, second = ([case for i in part for case in members[i]] for part in np.split(order, [len(order) // 2]))
        yield first, second


# ---- details ----------------------------------------------------------------------------------------------------------


def fitted_details(
    tables: Sequence[SpreadTable], groups: dict[str, str], rule: Rule, rounds: int, seed: int
) -> dict[str, list[float]]:
    """Fits on random halves of the cases; ``scale`` and the other halves' ``ratio`` of 1 - IoU, a value per round."""
    from nndiffseg.training import detail_scale
    from nndiffseg.training.detail_scale import DETAILS, fit_detail

    allowed = rule.largest_detail >= DETAILS
    first, seen = [], 0
    for t in tables:
        if seen < rule.patches:
            first.append(replace(t, error=t.error[:, allowed], spread=t.spread[:, allowed]))
            seen += len(t.cases)
    found: dict[str, list[float]] = {"scale": [], "ratio": []}
    for half, others in _halves(sorted({c for t in tables for c in t.cases}), groups, rounds, seed):
        with patch.multiple(detail_scale, DETAILS=DETAILS[allowed], PRIOR_SD=rule.prior_sd):
            found["scale"].append(fit_detail(first, half, groups))
        found["ratio"].append(ratio_at(tables, others, found["scale"][-1]))
    return found


def ratio_at(tables: Sequence[SpreadTable], cases: Sequence[str], detail: float) -> float:
    """Spread / error of 1 - IoU over the patches of these cases."""
    from nndiffseg.training.detail_scale import interpolated, log_ratio

    sums = [
        np.sum([d for t in tables for case, d in zip(t.cases, getattr(t, side), strict=True) if case in cases], axis=0)
        for side in ("error", "spread")
    ]
    return math.exp(interpolated(log_ratio(np.stack(sums)), np.log([detail])).item())


# ---- volumes ----------------------------------------------------------------------------------------------------------


def predicted_volumes(data: Data, device: torch.device, samples: int, seed: int) -> list[VolumeTable]:
    """Volumes of the samples of all cases, with mirroring as in every prediction."""
    from benchmarks.methods_data import references_of
    from benchmarks.methods_prediction import Options, load_model, predict_case
    from benchmarks.versus_accuracy import OURS, volume_table

    model, found = load_model(data, OURS, device), []
    for case in data.cases:
        labels = predict_case(model, case, Options(samples, seed, True)).labels
        found.append(volume_table(data, case, labels, *references_of(data, case)))
    return found


def fitted_volumes(
    tables: Sequence[VolumeTable], groups: dict[str, str], priors: tuple[float, float], rounds: int, seed: int
) -> dict[str, list[float]]:
    """Fits on random halves; ``scale``, mean over structures, the other halves' ``ratio`` and share ``covered``, per round."""
    from benchmarks.comparison_metrics import volume_coverage
    from nndiffseg.calibration import volumes as volume_scale
    from nndiffseg.calibration.volumes import fit_volume_scales, ratio_of

    by_case = {t.case: t for t in tables}
    found: dict[str, list[float]] = {"scale": [], "ratio": [], "covered": []}
    for half, others in _halves(sorted(by_case), groups, rounds, seed):
        with patch.multiple(volume_scale, PRIOR_SD=priors[0], STRUCTURE_SD=max(priors[1], 1e-9)):
            scales = fit_volume_scales([by_case[c] for c in half], groups) if priors[0] else (1.0,)
        judged = [by_case[c] for c in others]
        found["scale"].append(float(np.mean(scales)))
        found["ratio"].append(ratio_of(judged, scales))
        found["covered"].append(float(np.mean([volume_coverage(t.sampled, t.true, scales) for t in judged])))
    return found


if __name__ == "__main__":
    raise SystemExit(main())
