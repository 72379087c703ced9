"""Seams: do a sample's probabilities jump at the borders of tiles?

    python -m benchmarks.seams -m MODEL_FOLDER -i IMAGE_0000.nii.gz [--patches 3]

Mirrors a real image until the volume is several patches wide along each axis, draws single samples of it with the trained
model, and compares the mean absolute difference of neighbouring voxels across planes where a tile begins or ends with
that across all other planes. Tiles are blended with Gaussian weights, so the planes half-way between two tile centres,
where one tile takes over from the next, are counted as borders too.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import numpy as np

from benchmarks.common import report
from nndiffseg.data.cases import Case, preprocess, read_case
from nndiffseg.inference.predictor import Predictor
from nndiffseg.nn.tiling import common_multiple, tile_starts


def mirrored(data: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """``(C, *spatial)`` continued by mirroring to ``(C, *shape)``; neighbours stay neighbours, so no new edges appear."""
    return np.pad(data, [(0, 0), *((0, n - m) for n, m in zip(shape, data.shape[1:], strict=True))], mode="symmetric")


def border_planes(length: int, starts: list[int], patch: int) -> set[int]:
    """Indices i such that a tile begins or ends between voxels i and i + 1, or one tile takes over from the next."""
    planes = {s - 1 for s in starts if s > 0} | {s + patch - 1 for s in starts if s + patch < length}
    centres = [s + patch / 2 for s in starts]
    return planes | {int((a + b) / 2) - 1 for a, b in itertools.pairwise(centres)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-m", required=True, type=Path)
    parser.add_argument("-i", required=True, type=Path)
    parser.add_argument("--patches", type=int, default=3)
    parser.add_argument("--samples", type=int, default=4)
    args = parser.parse_args()
    borders, elsewhere = [], []
    for seed in range(args.samples):
        predictor = Predictor.from_folder(args.m, samples=1, seed=seed, mirroring=False)
        image, properties = read_case(predictor.plans.image_reader_writer_class(), Case("seams", (args.i,)), 1)
        data, _ = preprocess(image, properties, predictor.plans, predictor.model.configuration, predictor.dataset_json)
        patch = predictor.configuration.patch_size
        data = mirrored(np.asarray(data), tuple(args.patches * p for p in patch))
        probabilities = predictor.predict_parts(data, "seams").sampled
        for axis, (n, p, m) in enumerate(
            zip(data.shape[1:], patch, common_multiple(predictor.model.folds[0].network), strict=True)
        ):
            jumps = probabilities.diff(dim=axis + 1).abs().transpose(0, axis + 1).flatten(1).mean(1).numpy()
            planes = border_planes(n, tile_starts(n, p, predictor.options.step_size, m), p)
            borders += [jumps[i] for i in planes]
            elsewhere += [jumps[i] for i in range(n - 1) if i not in planes]
    ratio = float(np.mean(borders) / np.mean(elsewhere))
    shape = list(data.shape[1:])
    report(
        "seams",
        [[f"{np.mean(borders):.5f}", f"{np.mean(elsewhere):.5f}", f"{ratio:.3f}", len(borders)]],
        ["mean jump at tile borders", "elsewhere", "ratio (at most 1.1)", "border planes"],
        {"volume": shape, "patch": list(patch), "samples": args.samples, "ratio": ratio},
    )


if __name__ == "__main__":
    main()
