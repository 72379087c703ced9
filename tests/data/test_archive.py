"""A checkpoint that is damaged, not finite, of another tool or full of code is refused in one sentence."""

from __future__ import annotations

import os
import random
import re
import zipfile
from pathlib import Path

import pytest
import torch

from nndiffseg.data.archive import check_size, read_archive
from nndiffseg.data.checkpoint import load_any_checkpoint, load_checkpoint
from nndiffseg.errors import UserError

CONTENT = {
    "network_weights": {f"layer{i}.weight": torch.arange(64.0) + i for i in range(6)},
    "nndiffseg_version": "0.2.0",
    "trainer_name": "nnDiffSegTrainer",
    "init_args": {"configuration": "2d"},
    "options": {},
    "calibration": {},
}
READERS = (load_checkpoint, load_any_checkpoint)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.save(CONTENT, tmp_path / "checkpoint_final.pth")
    return tmp_path / "checkpoint_final.pth"


def equal(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one)
    return one == other


def test_no_flipped_bit_changes_what_is_read(file):
    # As of a bad disk; torch alone reads other weights in 40 % of them.
    whole, draw, refused = file.read_bytes(), random.Random(0), 0
    for _ in range(400):
        bit = draw.randrange(8 * len(whole))
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        try:
            content = read_archive(file)
        except UserError:
            refused += 1
        else:
            assert equal(content, CONTENT), f"bit {bit}"
    assert refused > 200


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("read", READERS)
def test_weights_that_are_not_finite_are_refused(file, read, value):
    weights = {**CONTENT["network_weights"], "layer3.weight": torch.tensor([1.0, value])}
    torch.save(CONTENT | {"network_weights": weights}, file)
    with pytest.raises(UserError, match=r"checkpoint_final\.pth are not finite"):
        read(file)


class Command:
    """Unpickled, it would run a command."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


@pytest.mark.parametrize("read", READERS)
def test_code_in_a_checkpoint_is_not_run(file, tmp_path, read):
    torch.save(CONTENT | {"extra": Command(tmp_path / "canary")}, file)
    with pytest.raises(UserError, match="never loaded because they may run commands"):
        read(file)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a file of another kind"),
        (b"HDF5 or anything else", "a file of another kind"),
        (b"PK\x03\x04 and nothing else", "damaged"),
    ],
)
def test_other_files_and_damaged_ones_are_told_apart(file, read, content, message):
    file.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read(file)


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory"), torch.OutOfMemoryError()]
)
def test_want_of_memory_is_not_called_damage(file, monkeypatch, error):
    def load(*_, **__):
        raise error

    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(UserError, match="too little memory") as raised:
        read_archive(file)
    assert "is damaged" not in str(raised.value)


def test_a_file_that_may_not_be_read_is_not_called_damaged(file, monkeypatch):
    def load(*_, **__):
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr("builtins.open", load)
    with pytest.raises(PermissionError):  # which the commands say in one sentence
        read_archive(file)


def test_what_is_compressed_is_refused_because_it_may_be_of_any_size(file, tmp_path):
    other = tmp_path / "compressed.pth"
    with zipfile.ZipFile(file) as source, zipfile.ZipFile(other, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    with pytest.raises(UserError, match="damaged"):
        read_archive(other)


@pytest.mark.parametrize(
    "tensor", [torch.zeros(1).expand(10**12), torch.zeros(2, 2).to_sparse(), torch.empty(3, device="meta")], ids=str
)
def test_a_tensor_that_was_not_stored_whole_is_refused(file, tensor):
    weights = {**CONTENT["network_weights"], "layer3.weight": tensor}
    torch.save(CONTENT | {"network_weights": weights}, file)
    with pytest.raises(UserError, match=r"checkpoint_final\.pth"):
        load_any_checkpoint(file)


def test_lists_without_end_are_refused():
    bomb: list = ["x"] * 10
    for _ in range(40):
        bomb = [bomb] * 10  # a few hundred bytes in a pickle
    with pytest.raises(UserError, match="more values"):
        check_size(bomb, "it")
    round_and_round: list = []
    round_and_round.append(round_and_round)
    with pytest.raises(UserError, match="more values"):
        check_size(round_and_round, "it")


@pytest.mark.parametrize("weights", [{}, {"a": 1}, {1: torch.ones(1)}, [torch.ones(1)], None])
def test_weights_that_are_no_named_tensors_are_refused(file, weights):
    torch.save(CONTENT | {"network_weights": weights}, file)
    with pytest.raises(UserError, match="no network weights"):
        load_any_checkpoint(file)
    if weights != {}:
        with pytest.raises(UserError, match="no network weights"):
            load_checkpoint(file)


def test_messages_are_one_sentence(file):
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError) as raised:
        load_checkpoint(file)
    assert "\n" not in str(raised.value) and re.search(r"damaged; copy it again.*\.$", str(raised.value))
