"""What several processes need of a batch, without starting any."""

from __future__ import annotations

import socket

import pytest
import torch
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

from nndiffseg.cli.train import main
from nndiffseg.diffusion.items import ItemGenerator, Part, uniform
from nndiffseg.diffusion.noise.source import patch_noise
from nndiffseg.diffusion.schedules import normal_like, training_times
from nndiffseg.errors import UserError
from nndiffseg.training import launch, ranks
from nndiffseg.training.batch_dice import SharedBatchDice
from nndiffseg.training.ranks import Ranks


def parts(total: int, processes: int) -> list[Part]:
    return [Part.of(i, processes, total) for i in range(processes)]


def test_parts_are_the_whole_batch_as_nnunet_divides_it() -> None:
    assert [(p.first, p.number) for p in parts(7, 3)] == [(0, 3), (3, 2), (5, 2)]
    for total, processes in ((7, 3), (2, 2), (5, 4), (6, 1)):
        assert [i for p in parts(total, processes) for i in p.items] == list(range(total))
        assert sum(p.weight for p in parts(total, processes)) == pytest.approx(processes)


@pytest.mark.parametrize(
    "draw",
    [
        lambda n, g: uniform(n, g),
        lambda n, g: normal_like(torch.empty(n, 3, 4), g),
        lambda n, g: training_times(n, g),
    ],
)
def test_the_noise_of_an_item_does_not_depend_on_the_number_of_processes(draw) -> None:
    whole = draw(5, torch.Generator().manual_seed(3))
    drawn = [draw(p.number, ItemGenerator(p).manual_seed(3)) for p in parts(5, 2)]
    assert torch.equal(torch.cat(drawn), whole)
    with pytest.raises(ValueError, match="has 3 of the batch"):
        draw(2, ItemGenerator(Part.of(0, 2, 5)))


def test_a_patchs_noise_belongs_to_its_index_in_the_batch() -> None:
    whole = patch_noise(1, 3, [0], (4, 4))(0, 2)
    assert torch.equal(patch_noise(1, range(1, 3), [0], (4, 4))(0, 2), whole[1:])


@pytest.mark.parametrize("background", [False, True])
def test_dice_over_the_batch_is_nnunets(background: bool) -> None:
    dice = MemoryEfficientSoftDiceLoss(torch.sigmoid, batch_dice=True, do_bg=background, smooth=1e-5, ddp=False)
    x, mask = torch.randn(3, 4, 5, 6), torch.rand(3, 1, 5, 6) > 0.3
    labels, onehot = torch.randint(0, 4, (3, 1, 5, 6)), torch.rand(3, 4, 5, 6) > 0.5
    for y in (labels, onehot):
        for loss_mask in (None, mask):
            assert float(SharedBatchDice(dice)(x, y, loss_mask)) == pytest.approx(float(dice(x, y, loss_mask)), abs=1e-6)


def test_alone_nothing_is_sent() -> None:
    alone = Ranks()
    alone.wait()
    assert (alone.number, alone.index, alone.first) == (1, 0, True)
    assert alone.told_by(0, "x") == "x" and alone.largest(3) == 3 and alone.summed({"a": 1.5}) == {"a": 1.5}


def test_more_processes_than_items_are_refused(monkeypatch) -> None:
    monkeypatch.setattr(ranks, "processes", lambda: 3)
    ranks.check_batch(3)
    with pytest.raises(UserError, match="3 processes cannot share a batch of 2; train with -num_gpus 2 or fewer"):
        ranks.check_batch(2)


def test_fewer_gpus_than_processes_are_one_sentence(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    launch.check_devices("cuda", 2)
    launch.check_devices("cpu", 64)
    with pytest.raises(UserError, match="3 processes on this computer need as many GPUs, and it has 2"):
        launch.check_devices("cuda", 3)
    with pytest.raises(UserError, match="not mps"):
        launch.check_devices("mps", 2)


def test_a_port_is_found_or_taken_from_the_environment(monkeypatch) -> None:
    monkeypatch.delenv("MASTER_PORT", raising=False)
    found = launch._store().port
    assert found > 0
    with socket.socket() as busy:
        busy.bind(("", 0))
        busy.listen()
        for value in (str(busy.getsockname()[1]), "front door"):
            monkeypatch.setenv("MASTER_PORT", value)
            with pytest.raises(UserError, match=f"The port {value} in MASTER_PORT cannot be used; unset it"):
                launch._store()
    monkeypatch.setenv("MASTER_PORT", str(found))
    assert launch._store().port == found


def test_the_number_of_processes_must_be_positive(capsys) -> None:
    assert main(["901", "2d", "0", "-num_gpus", "0"]) == 2
    assert "-num_gpus must be positive, not 0" in capsys.readouterr().err
