"""Several processes train and validate as one does, and end together."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from processes import FAULT, UNVALIDATED

from nndiffseg.cli import plan_and_preprocess
from nndiffseg.data.checkpoint import load_checkpoint
from nndiffseg.training import epoch_log as log

PLANS = "nnDiffSegPlansS"
SCRIPT = Path(__file__).parents[1] / "processes.py"
TRAINERS = ("nnDiffSegTrainer", "nnDiffSegTrainerLDSeg", "nnDiffSegTrainerCDAL", "nnDiffSegTrainerMedSegDiffV2")
#: largest difference of weights, losses and figures from those of one process after 20 steps
TOLERANCE = 1e-5
#: The biases before instance norms and whitening have no gradient but rounding errors, of which Adam makes steps as of any
#: other; the running mean takes them out again.
NOISE = (".conv.bias", ".all_modules.0.bias", "label_encoder.head.bias", "image_encoder.head.bias", "whiten.mean")
#: LDSeg's latent follows such a bias for as long as the running mean lags behind it.
TOLERANCE_OF = {"nnDiffSegTrainerLDSeg": 2e-4}


@pytest.fixture(scope="module")
def folders(tmp_path_factory, make_dataset) -> Path:
    """A preprocessed tiny dataset; its 2d batch of 6 is trained with Dice over the batch."""
    base = tmp_path_factory.mktemp("nn")
    make_dataset(base / "raw", cases=6, splits=True)
    flags = [f"--{kind}={base / kind}" for kind in ("raw", "preprocessed", "results")]
    assert plan_and_preprocess.main(["-d", "901", "-pl", "DiffSegPlannerS", "-c", "2d", "-np", "1", *flags]) == 0
    plans = json.loads((plans_file := base / "preprocessed" / "Dataset901_Tiny" / f"{PLANS}.json").read_text())
    assert plans["configurations"]["2d"]["batch_dice"]
    plans["configurations"]["2d"]["batch_size"] = 5  # 3 and 2 items
    plans_file.with_name("unevenPlans.json").write_text(json.dumps(plans | {"plans_name": "unevenPlans"}))
    return base


def command(base: Path, results: str, *more: str, trainer: str = TRAINERS[0], plans: str = PLANS) -> list[str]:
    length = ("--epochs", "2", "--iterations_per_epoch", "10", "--disable_progress_bar", "-device", "cpu")
    flags = [f"--{kind}={base / kind}" for kind in ("raw", "preprocessed")]
    return ["901", "2d", "0", "-p", plans, "-tr", trainer, *length, *flags, f"--results={base / results}", *more]


def start(number: int, words: list[str], **environment: str) -> subprocess.Popen:
    words = [sys.executable, str(SCRIPT), str(number), *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def run(number: int, words: list[str], fault: str = "", *, validated: bool = False) -> tuple[int, list[str]]:
    """Exit code, and the sentences about errors."""
    process = start(number, words, **({FAULT: fault} if fault else {}), **({} if validated else {UNVALIDATED: "1"}))
    _, error = process.communicate(timeout=280)
    return process.returncode, [line for line in error.splitlines() if line.startswith("error:") or "Traceback" in line]


def fold(base: Path, results: str) -> Path:
    (folder,) = (base / results).glob("*/*/fold_0")
    return folder


def assert_same_training(one: Path, other: Path, tolerance: float = TOLERANCE) -> None:
    a, b = (load_checkpoint(f / "checkpoint_final.pth") for f in (one, other))
    for kind in ("network_weights_raw", "network_weights"):
        apart = {
            name: float((value - b[kind][name]).abs().max()) for name, value in a[kind].items() if not name.endswith(NOISE)
        }
        assert len(apart) > 0.6 * len(a[kind])
        assert max(apart.values()) < tolerance, {name: d for name, d in apart.items() if d >= tolerance}
    assert_close(a["loss_state"], b["loss_state"], 1e-4)  # moments of a discriminator's optimiser among others
    assert a["optimizer_state"]["state"].keys() == b["optimizer_state"]["state"].keys()
    for key in ("epoch", "iteration", "losses", "dice_deterministic", "dice_samples", "dice_fused", "spread", "sample_error"):
        assert_close([row[key] for row in log.read(one)], [row[key] for row in log.read(other)], tolerance)


def assert_same_validation(one: Path, other: Path) -> None:
    """Of the same weights: to the last bit, but for JSON's numbers."""
    files = sorted(f.relative_to(one) for f in (one / "validation").rglob("*") if f.is_file())
    assert files == sorted(f.relative_to(other) for f in (other / "validation").rglob("*") if f.is_file())
    assert len([f for f in files if f.parent.name == "validation" and f.suffix == ".gz"]) == 3
    for file in [*files, Path("calibration.json")]:
        if file.suffix == ".json":
            assert_close(*(json.loads((f / file).read_text().replace(str(f), "")) for f in (one, other)), tolerance=1e-9)
        elif file.suffix == ".gz":
            a, b = (sitk.GetArrayFromImage(sitk.ReadImage(str(f / file))) for f in (one, other))
            assert np.array_equal(a, b), file


def assert_close(a: Any, b: Any, tolerance: float = TOLERANCE) -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_close(a[key], b[key], tolerance)
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_close(x, y, tolerance)
    elif isinstance(a, torch.Tensor):
        assert torch.allclose(a.double(), b.double(), rtol=tolerance, atol=tolerance)
    elif isinstance(a, float):
        assert a == pytest.approx(b, rel=tolerance, abs=tolerance, nan_ok=True)
    else:
        assert a == b


@pytest.fixture(scope="module")
def one(folders) -> Path:
    """The fold that one process trained; to be read only."""
    assert run(1, command(folders, "one")) == (0, [])
    return fold(folders, "one")


@pytest.mark.timeout(300)
def test_two_processes_of_which_one_was_killed_come_to_the_result_of_one(folders, one) -> None:
    code, sentences = run(2, command(folders, "two"), "SIGKILL:1:13")
    assert (code, len(sentences)) == (2, 1) and "killed by SIGKILL" in sentences[0] and "--c" in sentences[0]
    assert load_checkpoint(fold(folders, "two") / "checkpoint_latest.pth")["iteration"] == 13
    assert run(2, command(folders, "two", "--c"), validated=True) == (0, [])
    assert_same_training(one, fold(folders, "two"))
    shutil.copytree(folders / "two", folders / "two_again")
    assert run(1, command(folders, "two_again", "--val"), validated=True) == (0, [])
    assert_same_validation(fold(folders, "two_again"), fold(folders, "two"))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("plans", [PLANS, "unevenPlans"])
@pytest.mark.parametrize("trainer", TRAINERS)
def test_processes_train_as_one(folders, trainer: str, plans: str) -> None:
    for number in (1, 2):
        assert run(number, command(folders, f"{trainer}_{plans}_{number}", trainer=trainer, plans=plans)) == (0, [])
    one, two = (fold(folders, f"{trainer}_{plans}_{number}") for number in (1, 2))
    assert_same_training(one, two, TOLERANCE_OF.get(trainer, TOLERANCE))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_adversarial_term_is_shared_too(folders) -> None:
    option = ("--option", "adversarial_weight=0.1")
    for number in (1, 2):
        assert run(number, command(folders, f"gan_{number}", *option, trainer=TRAINERS[2], plans="unevenPlans")) == (0, [])
    assert_same_training(fold(folders, "gan_1"), fold(folders, "gan_2"))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("fault", "code", "sentence"),
    [
        ("refuse:1:3", 2, "error: This one does not want to."),
        ("refuse:0:3", 2, "error: This one does not want to."),
        ("SIGTERM:1:3", 75, "error: stopped by SIGTERM after iteration 4, the state is saved; go on with --c."),
        ("SIGUSR1:0:3", 75, "error: stopped by SIGUSR1 after iteration 4, the state is saved; go on with --c."),
        ("SIGKILL:0:3", 2, "was killed by SIGKILL"),
        ("nan:1:3", 2, "The loss is not finite at iteration 3 with patches of the cases"),
        ("bug:1:3", 1, "Traceback"),
    ],
)
def test_all_end_with_one_sentence_where_one_ends(folders, fault: str, code: int, sentence: str) -> None:
    results = fault.replace(":", "_")
    started = time.monotonic()
    ended, sentences = run(2, command(folders, results), fault)
    assert ended == code and len(sentences) == 1 and sentence in sentences[0], sentences
    assert time.monotonic() - started < 120
    if code == 75:
        assert load_checkpoint(fold(folders, results) / "checkpoint_latest.pth")["iteration"] == 4


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_signal_to_the_launcher_saves_and_ends_all(folders) -> None:
    process = start(2, command(folders, "launcher", "--epochs", "1000"))
    assert process.stdout is not None
    for line in process.stdout:
        if "losses:" in line:
            break
    process.send_signal(signal.SIGUSR1)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 75 and error.count("error: stopped by SIGUSR1 after iteration") == 1
    saved = load_checkpoint(fold(folders, "launcher") / "checkpoint_latest.pth")["iteration"]
    assert f"after iteration {saved}," in error and saved >= 10


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_torchrun_trains_as_one(folders, one) -> None:
    runner = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(SCRIPT), "1"]
    done = subprocess.run([*runner, *command(folders, "torchrun")], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert_same_training(one, fold(folders, "torchrun"))
    again = subprocess.run([*runner, *command(folders, "torchrun", "--c", "--seed", "5")], capture_output=True, text=True)
    assert again.returncode != 0 and again.stderr.count("error: The training in") == 1


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_time_budget_ends_all_at_the_same_iteration(folders) -> None:
    words = ["--minutes" if w == "--epochs" else "0.1" if w == "2" else w for w in command(folders, "minutes")]
    assert run(2, words) == (0, [])
    row = log.read(fold(folders, "minutes"))[-1]
    assert row["iteration"] > 0 and row["seconds"] < 60


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_batch_too_small_for_all_is_one_sentence_and_leaves_nothing(folders) -> None:
    code, sentences = run(7, command(folders, "seven"))
    assert code == 2 and sentences == ["error: 7 processes cannot share a batch of 6; train with -num_gpus 6 or fewer."]
    assert not (folders / "seven").exists() or not list((folders / "seven").rglob("fold_*"))
