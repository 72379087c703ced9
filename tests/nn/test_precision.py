"""Precision: what a processor can do, and where training in it is not safe."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nndiffseg.cli import plan_and_preprocess
from nndiffseg.nn.layers import ChannelNorm
from nndiffseg.nn.precision import autocast_for, default_precision, training_precision

CPU = torch.device("cpu")


@pytest.fixture
def amx(monkeypatch) -> None:
    """A processor with AMX."""
    for probe in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, probe, lambda: True, raising=False)


@pytest.mark.parametrize(
    ("grids", "expected"),
    [
        ([(6, 112, 96), (6, 56, 48)], "float32"),
        ([(20, 320, 320)], "float32"),
        ([(64, 128, 128), (16, 128, 128)], "float32"),  # a coarser stage
        ([(64, 128, 128), (32, 64, 64)], "bfloat16"),
        ([(6, 80, 80)], "bfloat16"),
        ([(512, 512)], "bfloat16"),
    ],
)
@pytest.mark.usefixtures("amx")
def test_thin_volumes_are_trained_in_float32(grids, expected):
    assert default_precision(CPU) == "bfloat16"
    assert training_precision(CPU, grids) == expected


def test_without_amx_the_default_stays(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    assert training_precision(CPU, [(6, 112, 96)]) == default_precision(CPU)


@pytest.mark.seconds
def test_a_thin_volume_trains_without_destroying_its_memory(make_dataset, tmp_path):
    """In bfloat16 with AMX the process aborted or hung; on other processors this test says nothing."""
    dataset = make_dataset(tmp_path / "raw", shape=(6, 112, 96), spacing=(5.0, 1.0, 1.0))
    flags = [f"--{kind}={tmp_path / kind}" for kind in ("raw", "preprocessed", "results")]
    assert plan_and_preprocess.main(["-d", "901", "-pl", "DiffSegPlannerS", "--no_pp", "--no_pbar", "-np", "1", *flags]) == 0
    plans = tmp_path / "preprocessed" / dataset.name / "nnDiffSegPlansS.json"
    assert json.loads(plans.read_text())["configurations"]["3d_fullres"]["patch_size"] == [6, 112, 96]
    script = f"""
import json, torch
from benchmarks.pair import Pair
plans, dataset = (json.load(open(f)) for f in ({str(plans)!r}, {str(dataset / "dataset.json")!r}))
pair = Pair(plans, "3d_fullres", dataset, torch.device("cpu"), sides=("nndiffseg",))
for _ in range(3):
    pair.train_step("nndiffseg", pair.batch())
print("alive")
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.endswith("alive\n"), done.stderr[-2000:]


@pytest.mark.parametrize(("bfloat16", "expected"), [(True, "bfloat16"), (False, "float16")])
def test_gpus_without_bfloat16_compute_in_float16(monkeypatch, bfloat16, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bfloat16 or including_emulation)
    assert default_precision(torch.device("cuda")) == expected == training_precision(torch.device("cuda"), [(6, 112, 96)])


def test_large_features_are_normalised_in_float16():
    x = torch.tensor([300.0, -400.0, 0.0, 0.0]).view(1, 4, 1, 1)
    with torch.no_grad():
        norm = ChannelNorm(4)
        torch.testing.assert_close(norm(x.half()).float(), norm(x), rtol=2e-3, atol=0)
        assert norm(x).square().mean().item() == pytest.approx(1.0)


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="bfloat16, float16, float32, not 'float8'"):
        autocast_for(CPU, "float8")
