"""Phantoms of several modes for the fair table, and what is possible on them.

    python -m benchmarks.phantom_variants --write FOLDER --variant optional --seed 3
    python -m benchmarks.phantom_variants --possible --seed 3 --name NAME

``--write`` writes a raw dataset whose validation cases have true draws in ``ratersTr``: :mod:`benchmarks.fair_table` then
judges finished models by them. ``--possible`` needs no model: it compares fresh true draws, which are the best samples there
are, with the coherent sampler around the *true* marginals, for every single correlation length and the mixtures of the
infinite one. Where the two are level, no trained sampler can be much better than the coherent one.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nndiffseg.cli.common import Parser, choose, run
from nndiffseg.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: true draws: of the marginals, of the volumes in truth.json, of the judged samples, and those that samples are judged by
DRAWS, VOLUME_DRAWS, SAMPLES, ANNOTATIONS = 400, 100, 16, 32
#: of nndiffseg.diffusion.coherent.LENGTHS (0, 4, 16, infinite)
WEIGHTS = {
    "4": (0.0, 1.0, 0.0, 0.0),
    "16": (0.0, 0.0, 1.0, 0.0),
    "16: 0.3, inf: 0.7": (0.0, 0.0, 0.3, 0.7),
    "16: 0.1, inf: 0.9": (0.0, 0.0, 0.1, 0.9),
    "inf": (0.0, 0.0, 0.0, 1.0),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return run(_main, argv)


def _main(argv: Sequence[str] | None) -> None:
    parser = Parser("Phantoms of several modes.", prog="python -m benchmarks.phantom_variants")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", type=Path, metavar="FOLDER", help="nnU-Net's raw folder, for the dataset")
    what.add_argument("--possible", action="store_true", help="what samples can reach on each variant")
    parser.add_argument("--variant", help="of --write: optional, boundaries or shift")
    parser.add_argument("--cases", type=int, help="training and validation cases, or those of --possible (default: 136 or 10)")
    parser.add_argument("--validation_cases", type=int, default=40, help="of fold 0 (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--name", default="phantom_possible", help="of the JSON file (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.cases is not None and args.cases < 1:
        raise UserError(f"--cases must be at least 1, not {args.cases}.")
    if args.write is not None:
        _write(args)
    else:
        _possible(args)


def _write(args: argparse.Namespace) -> None:
    from nndiffseg.data.phantom import write_phantom_dataset
    from nndiffseg.data.phantom_variants import VARIANTS

    cases = args.cases or 136
    dataset_id, variant = VARIANTS[choose("variant", args.variant or "", list(VARIANTS))]
    if not 0 < args.validation_cases < cases:
        raise UserError(f"--validation_cases must be between 1 and {cases - 1}, not {args.validation_cases}.")
    print(f"Drawing {cases} cases, which takes some minutes ...", flush=True)
    dataset = write_phantom_dataset(
        args.write,
        cases=cases,
        test_cases=0,
        seed=args.seed,
        dataset_id=dataset_id,
        draws=VOLUME_DRAWS,
        variant=variant,
        validation_cases=args.validation_cases,
        annotations=ANNOTATIONS,
    )
    print(dataset)


def _possible(args: argparse.Namespace) -> None:
    import numpy as np

    from benchmarks.common import report
    from nndiffseg.data.phantom import PLAIN
    from nndiffseg.data.phantom_variants import VARIANTS

    found, rows, count = {}, [], args.cases or 10
    for variant in (PLAIN, *(variant for _, variant in VARIANTS.values())):
        scores = []
        for index in range(count):
            rng = np.random.default_rng([args.seed, index])
            geometry = variant.draw(rng, law=variant.law)
            scores.append(scores_of(geometry, rng, f"case {index}", args.seed))
        means = {k: np.mean([s[k] for s in scores], 0).round(4).tolist() for k in scores[0]}
        found[variant.name] = means
        rows.append([variant.name, *(f"{ged:.4f}" for ged, _ in means.values())])
        print(f"{variant.name}: done", flush=True)
    settings = {"cases": count, "seed": args.seed, "draws": DRAWS, "samples": SAMPLES, "annotations": ANNOTATIONS}
    header = ["GED^2 to true draws", *(k if k == "true draws" else f"coherent, {k}" for k in next(iter(found.values())))]
    report(args.name, rows, header, {**settings, "GED^2 and energy score": found})


def scores_of(geometry: object, rng: np.random.Generator, case: str, seed: int) -> dict[str, tuple[float, float]]:
    """GED^2 and energy score of fresh true draws, and of the coherent sampler around the true marginals."""
    import numpy as np
    import torch

    from nndiffseg.data.phantom import SPACING, PhantomGeometry, draw_label
    from nndiffseg.diffusion.coherent import components, mixed, perturbation
    from nndiffseg.diffusion.noise.field import NoiseField

    assert isinstance(geometry, PhantomGeometry)
    draws = np.stack([draw_label(geometry, rng) for _ in range(DRAWS)])
    fresh = np.stack([draw_label(geometry, rng) for _ in range(SAMPLES)])
    p = np.stack([(draws == k).mean(0) for k in range(3)]).clip(1 / (10 * DRAWS))
    logits = torch.from_numpy(np.log(p / p.sum(0))).float()
    parts = components([NoiseField(seed, case, n) for n in range(SAMPLES)], 3, geometry.shape, (SPACING,) * 3, SPACING)
    labels = {k: (logits + perturbation(mixed(parts, w), False)).argmax(1).numpy() for k, w in WEIGHTS.items()}
    return {k: _agreement(v, draws[:ANNOTATIONS]) for k, v in {"true draws": fresh, **labels}.items()}


def _agreement(samples: NDArray, references: NDArray) -> tuple[float, float]:
    from benchmarks.compare.metrics import agreement

    found = agreement(samples, references, [(1,), (2,)])
    return found.ged, found.energy


if __name__ == "__main__":
    raise SystemExit(main())
