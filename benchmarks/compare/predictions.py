"""The prediction cache: validation cases of one trained model, each in a file beside it; goes on where it stopped.

python -m benchmarks.compare.predictions --dataset 4 --configuration 2d --trainer nnDiffSegTrainerLDSeg --samples 8
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.compare.data import Data, data_from
from benchmarks.compare.flags import add_entry_flags, check_positive, data_parser
from benchmarks.compare.library import FINAL, CasePrediction, Options, check_trained, load_model, predict_case
from benchmarks.compare.trainers import Entry, class_name
from nndiffseg.cli.common import pick_device, run
from nndiffseg.data.files import write_atomically, write_json

FOLDER = "benchmark_predictions"
#: how the predictions of a folder were made, and what they took
ABOUT = "about.json"


def folder_of(data: Data, entry: Entry, options: Options) -> Path:
    """Where an entry's predictions with these options are kept; those of an earlier training are elsewhere."""
    fold = entry.of(data).fold_folder(class_name(entry.trainer))
    parts = [f"samples_{options.samples}", f"seed_{options.seed}"]
    parts += [] if options.mirroring else ["no_mirroring"]
    parts += [f"{name}_{value}" for name in ("steps", "sampler") if (value := getattr(options, name)) is not None]
    return fold / FOLDER / "_".join([*parts, str(int((fold / FINAL).stat().st_mtime))])


def predict_missing(data: Data, entry: Entry, options: Options, device: torch.device) -> None:
    """Predicts the cases that are not predicted yet.

    Raises:
        UserError: the entry is not trained.
    """
    check_trained(data, entry)
    folder = folder_of(data, entry, options)
    missing = [case for case in data.cases if not (folder / f"{case}.npz").is_file()]
    if not missing:
        return
    model = load_model(data, entry, device)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / ABOUT).is_file():
        write_json(model.describe(), folder / ABOUT)
    steps = "" if options.steps is None else f", {options.steps} steps"
    for number, case in enumerate(missing, start=1):
        prediction = predict_case(model, case, options)
        save(prediction, folder / f"{case}.npz")
        print(f"{entry.name}{steps}: {case}, {prediction.seconds:.1f} s ({number} of {len(missing)})", flush=True)
    if device.type == "cuda":
        remember(folder, "peak_gpu_gb", torch.cuda.max_memory_allocated() / 2**30)


def about(data: Data, entry: Entry, options: Options) -> dict[str, Any]:
    """How an entry's predictions were made."""
    return json.loads((folder_of(data, entry, options) / ABOUT).read_text())


def remember(folder: Path, name: str, value: float) -> None:
    """Keeps the largest value of an interrupted prediction's sessions."""
    known = json.loads((folder / ABOUT).read_text())
    write_json({**known, name: max(value, known.get(name, 0.0))}, folder / ABOUT)


def save(prediction: CasePrediction, path: Path) -> None:
    """Whole or not at all; in float32, since a temperature looks at the tails."""
    arrays = prediction._asdict()
    if prediction.sampled is prediction.deterministic:
        del arrays["sampled"]
    with write_atomically(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)


def load(data: Data, entry: Entry, options: Options, case: str) -> CasePrediction:
    """A kept prediction."""
    with np.load(folder_of(data, entry, options) / f"{case}.npz") as file:
        deterministic = file["deterministic"]
        sampled = file.get("sampled", deterministic)
        return CasePrediction(deterministic, sampled, file["labels"], float(file["seconds"]))


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return run(_main, argv)


def _main(argv: Sequence[str] | None) -> None:
    parser = data_parser("Predicts the validation cases of one trained model.")
    add_entry_flags(parser)
    parser.add_argument("--samples", type=int, default=8, help="default: %(default)s")
    args = parser.parse_args(argv)
    check_positive(args, "samples")
    entry = Entry(args.trainer, tuple(args.option))
    predict_missing(data_from(args), entry, Options(args.samples, args.seed, not args.disable_tta), pick_device(args.device))


if __name__ == "__main__":
    raise SystemExit(main())
