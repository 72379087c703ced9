"""Per-epoch metrics: ``stats.jsonl`` and ``progress_diffusion.png`` in the fold's folder.

nnU-Net's own logger accepts eight fixed keys and plots them into ``progress.png``; diffusion-specific metrics are
logged here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nndiffseg.data.files import write_atomically

STATS = "stats.jsonl"
PLOT = "progress_diffusion.png"


def append(folder: str | Path, row: dict[str, Any]) -> None:
    """Adds one epoch's row."""
    with open(Path(folder) / STATS, "a", encoding="utf8") as file:
        file.write(json.dumps(row) + "\n")


def read(folder: str | Path) -> list[dict[str, Any]]:
    """All rows so far; a last line that a kill cut short is left out."""
    path = Path(folder) / STATS
    rows = []
    for line in path.read_text(encoding="utf8").splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def keep_epochs(folder: str | Path, epoch: int) -> None:
    """Drops rows of ``epoch`` and later: a resumed training writes them again."""
    path = Path(folder) / STATS
    rows = [row for row in read(folder) if row["epoch"] < epoch]
    with write_atomically(path) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf8")


def plot(folder: str | Path) -> None:
    """Curves of every loss, of the three Dice and of the spread between seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = read(folder)
    if not rows:
        return
    epochs = [row["epoch"] for row in rows]
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(18, 5), layout="constrained")
    for name in rows[0]["losses"]:
        left.plot(epochs, [row["losses"].get(name) for row in rows], label=name)
    left.set(xlabel="epoch", title="training losses", yscale="log")
    for name, label in (
        ("dice_deterministic", "deterministic head"),
        ("dice_samples", "mean of samples"),
        ("dice_fused", "fused"),
    ):
        middle.plot(epochs, [row[name] for row in rows], label=label)
    middle.set(xlabel="epoch", title="Dice on validation patches", ylim=(0, 1))
    right.plot(epochs, [row["spread"] for row in rows], label="1 - Dice between two seeds")
    right.plot(epochs, [row["sample_error"] for row in rows], label="1 - Dice of a sample and the truth")
    right.set(xlabel="epoch", title="spread between seeds", ylim=(0, None))
    for axis in (left, middle, right):
        axis.grid(alpha=0.3)
        axis.legend()
    with write_atomically(Path(folder) / PLOT) as temporary:
        figure.savefig(temporary, dpi=80, format="png")
    plt.close(figure)
