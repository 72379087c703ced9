"""Time and memory of :mod:`benchmarks.speed` in tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.speed import SAMPLES, gigabytes


def table(speed: Mapping[str, Any]) -> list[list[str]]:
    """Rows of :func:`compare` for people: what, seconds, in nnU-Net passes, peak GB."""
    seconds, ratios = speed["prediction"]["seconds"], speed["prediction"]["ratios"]
    names = {
        "nnunet": "nnU-Net, one pass",
        "nnunet_same_precision": "nnU-Net, one pass, nndiffseg's precision",
        "nnunet_mirroring": "nnU-Net, mirroring",
        **{f"nndiffseg_{n}": f"nndiffseg, {n} sample{'s' * (n > 1)}" for n in SAMPLES},
        "nndiffseg_16_mirroring": "nndiffseg, 16 samples, mirroring",
    }
    rows = []
    for name, text in ((n, t) for n, t in names.items() if n in seconds):
        peak = gigabytes(speed["memory"][name]).removesuffix(" GB") if name in speed["memory"] else ""
        rows.append([f"predict: {text}", f"{seconds[name]:.3f}", f"{ratios[name]:.2f}", peak])
    train = speed["training"]["seconds"]
    for name, text in (
        ("nnunet", "nnU-Net"),
        ("nnunet_same_precision", "nnU-Net, nndiffseg's precision"),
        ("nndiffseg", "nndiffseg"),
    ):
        if name not in train:
            continue
        rows.append([f"training step: {text}", f"{train[name]:.3f}", f"{train[name] / train['nnunet']:.2f}", ""])
    image = speed["parts"]["seconds"]["image_network"]
    for name in ("image_network", "denoiser_step", "label_decoder"):
        measured, gflop = speed["parts"]["seconds"][name], speed["parts"]["planned_gflop"][name]
        planned = f" ({gflop:.2f} GFLOP planned)" if gflop else ""
        rows.append([f"part: {name.replace('_', ' ')}{planned}", f"{measured:.4f}", f"{measured / image:.4f}", ""])
    return rows


def side_by_side(speed: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, str]]]:
    """Rows of :func:`benchmarks.speed.compare`: what, and the cells by ``nnunet``, ``nndiffseg`` and ``ratio``."""
    seconds, ratios, memory = speed["prediction"]["seconds"], speed["prediction"]["ratios"], speed["memory"]

    def predicted(name: str) -> str:
        peak = f", {memory[name]['peak_gb']:.2f} GB" if "peak_gb" in memory.get(name, {}) else ""
        return f"{seconds[name]:.3f} s{peak}"

    train = {side: f"{seconds:.3f}" for side, seconds in speed["training"]["seconds"].items()}
    yield (
        "seconds of a training step",
        {"nnunet": train["nnunet"], "nndiffseg": train["nndiffseg"], "ratio": f"{speed['training_ratio']:.2f} times"},
    )
    yield "predict, one pass", {"nnunet": predicted("nnunet")}
    mirrored = ratios["nndiffseg_16_mirroring"] / ratios["nnunet_mirroring"]
    yield (
        "predict, mirroring",
        {
            "nnunet": predicted("nnunet_mirroring"),
            "nndiffseg": predicted("nndiffseg_16_mirroring"),
            "ratio": f"{mirrored:.2f} times",
        },
    )
    for n in SAMPLES:
        name = f"nndiffseg_{n}"
        yield f"predict, samples: {n}", {"nndiffseg": predicted(name), "ratio": f"{ratios[name]:.2f} passes"}
