"""The golden record: what a short training of every trainer computes, to the last bit.

    python tests/golden/record.py            # compares with record.json; exit code 1 where something differs
    python tests/golden/record.py --write    # updates the record; the commit says why

Six generated phantoms are planned and preprocessed by the real commands. Each trainer then runs 20 iterations on the CPU, in
float32, with one thread and a fixed seed, and predicts one case with four samples. Recorded are the losses of both epochs and
hashes of all that the prediction writes. Equal bits can be expected on one kind of processor with one release of torch, so the
record names both; elsewhere only the losses are compared, within a tolerance.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

os.environ["OMP_NUM_THREADS"] = "1"

import nibabel
import numpy as np
import torch

RECORD = Path(__file__).with_name("record.json")
TRAINERS = ("nnDiffSegTrainer", "nnDiffSegTrainerLDSeg", "nnDiffSegTrainerCDAL", "nnDiffSegTrainerMedSegDiffV2")
EPOCHS, ITERATIONS = 2, 10
#: relative tolerance of the losses on another processor or release of torch
TOLERANCE = 1e-3


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="update the record")
    parser.add_argument("--trainers", nargs="+", default=TRAINERS, choices=TRAINERS)
    args = parser.parse_args()
    now = {"machine": machine(), **{name: run(name) for name in args.trainers}}
    if args.write:
        before = json.loads(RECORD.read_text()) if RECORD.is_file() else {}
        RECORD.write_text(json.dumps(before | now, indent=1) + "\n")
        return 0
    problems = differences(json.loads(RECORD.read_text()), now)
    print("\n".join(problems) or "Nothing differs from the golden record.")
    return 1 if problems else 0


def machine() -> str:
    """What the last bit depends on."""
    return f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {platform.machine()}"


def run(trainer: str) -> dict[str, Any]:
    """Plans, trains and predicts in a temporary folder."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, _float32():
        root = Path(folder)
        flags = [f"--{kind}={root / kind}" for kind in ("raw", "preprocessed", "results")]
        _prepare(root, flags)
        _train(trainer, flags)
        return {"losses": _losses(root), "prediction": _predict(trainer, root, flags)}


def _float32() -> Any:
    """No bfloat16, whatever the processor has."""
    return mock.patch.multiple(torch.cpu, _is_avx512_bf16_supported=lambda: False, _is_amx_tile_supported=lambda: False)


def _prepare(root: Path, flags: list[str]) -> None:
    try:
        from nndiffseg.data.phantom import write_phantom_dataset
    except ImportError:  # layout of version 0.1
        from nndiffseg.data.phantom import write_phantom_dataset
    from nndiffseg.cli.plan_and_preprocess import main as plan

    write_phantom_dataset(root / "raw", cases=10, test_cases=1, seed=0, draws=50)
    assert plan(["-d", "999", "-pl", "DiffSegPlannerS", "-c", "3d_fullres", "-np", "1", "-npfp", "1", "--no_pbar", *flags]) == 0


def _train(trainer: str, flags: list[str]) -> None:
    from nndiffseg.cli.train import main as train
    from nndiffseg.training.trainer import DiffusionTrainer

    command = [
        "999",
        "3d_fullres",
        "0",
        "-p",
        "nnDiffSegPlansS",
        "-tr",
        trainer,
        "-device",
        "cpu",
        "--epochs",
        str(EPOCHS),
        "--iterations_per_epoch",
        str(ITERATIONS),
        "--disable_progress_bar",
        *flags,
    ]
    # The validation is left out: numbers that it fits are no business of this record.
    with mock.patch.object(DiffusionTrainer, "perform_actual_validation", lambda *_: None):
        assert train(command) == 0


def _losses(root: Path) -> list[dict[str, float]]:
    (stats,) = root.glob("results/*/*/fold_0/stats.jsonl")
    return [json.loads(line)["losses"] for line in stats.read_text().splitlines()]


def _predict(trainer: str, root: Path, flags: list[str]) -> dict[str, str]:
    from nndiffseg.cli.predict import main as predict

    (images,), output = root.glob("raw/*/imagesTs"), root / "predictions"
    command = [
        "-i",
        str(images),
        "-o",
        str(output),
        "-d",
        "999",
        "-tr",
        trainer,
        "-f",
        "0",
        "-device",
        "cpu",
        "--samples",
        "4",
        "--save_samples",
        "--save_probabilities",
        "--disable_progress_bar",
        *flags,
    ]
    assert predict(command) == 0
    hashes = {}
    for file in sorted(output.rglob("*.nii.gz")):
        hashes[str(file.relative_to(output))] = _hash(np.asanyarray(nibabel.load(file).dataobj))
    (probabilities,) = output.glob("*.npz")
    return hashes | {probabilities.name: _hash(np.load(probabilities)["probabilities"])}


def _hash(array: np.ndarray) -> str:
    return hashlib.blake2b(np.ascontiguousarray(array).tobytes(), digest_size=8).hexdigest()


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """One sentence for each number that is another; hashes count on the machine of the record only."""
    same = before["machine"] == now["machine"]
    problems = []
    for trainer in (t for t in TRAINERS if t in now):
        for epoch, (old, new) in enumerate(zip(before[trainer]["losses"], now[trainer]["losses"], strict=True)):
            for name in sorted(old.keys() | new.keys()):
                a, b = old.get(name), new.get(name)
                if a is None or b is None or (a != b if same else abs(a - b) > TOLERANCE * abs(a) + 1e-6):
                    problems.append(f"{trainer}: {name} of epoch {epoch} was {a} and is {b}.")
        old, new = before[trainer]["prediction"], now[trainer]["prediction"]
        changed = sorted(f for f in old.keys() | new.keys() if old.get(f) != new.get(f))
        problems += [f"{trainer}: {file} differs." for file in changed if same or file not in old or file not in new]
    return problems


if __name__ == "__main__":
    sys.exit(main())
