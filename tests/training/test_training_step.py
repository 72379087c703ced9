"""One step of a trainer with a network and losses of a few numbers: what they are told, and what becomes of the terms."""

from __future__ import annotations

import itertools
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from nndiffseg.errors import Stopped, UserError
from nndiffseg.methods.protocol import Batch, Losses, Recipe
from nndiffseg.nn.heads import Heads
from nndiffseg.stopping import Request, noticed
from nndiffseg.training.average import WeightAverage
from nndiffseg.training.budget import Budget
from nndiffseg.training.ranks import Ranks
from nndiffseg.training.trainer import DiffusionTrainer

EPOCHS, ITERATIONS = 2, 5


class Recorder(Losses):
    """Losses that keep what they are told."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[Batch] = []
        self.rates: list[float] = []

    def before_step(self, network: nn.Module, batch: Batch, rate: float) -> dict[str, float]:
        self.rates.append(rate)
        return {"extra": 5.0}

    def forward(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        self.batches.append(batch)
        prediction = network(batch.image).mean()
        return {"first": prediction, "second": 2 * prediction}


def make(minutes: float | None = None) -> DiffusionTrainer:
    """A trainer without plans, files and log."""
    trainer = DiffusionTrainer.__new__(DiffusionTrainer)
    torch.manual_seed(0)
    trainer.network, trainer.loss = nn.Conv2d(1, 1, 1), Recorder()
    trainer.device, trainer.precision, trainer.grad_scaler = torch.device("cpu"), "float32", None
    trainer.ranks, trainer.local_rank, trainer.fold, trainer.seed = Ranks(), 0, 3, 11
    trainer.method = SimpleNamespace(plan=SimpleNamespace(heads=Heads(2)), recipe=Recipe())
    trainer.label_manager = SimpleNamespace(has_ignore_label=False)
    trainer.initial_lr, trainer.num_iterations_per_epoch = 0.1, ITERATIONS
    trainer.optimizer = torch.optim.SGD(trainer.network.parameters(), lr=trainer.initial_lr)
    trainer.average = WeightAverage(trainer.network)
    trainer.budget = Budget(EPOCHS, ITERATIONS, minutes)
    trainer.iteration = trainer.current_epoch = trainer.batches_left_out = 0
    trainer.show_progress, trainer._epoch_terms, trainer._last_save = False, {}, float("inf")
    trainer._asked, trainer._lock = Request(), None
    data, target = torch.ones(1, 1, 4, 4), torch.ones(1, 1, 4, 4)
    trainer.dataloader_train = itertools.repeat(
        {"data": data, "target": [target, target[..., ::2, ::2]], "keys": ["case_2", "case_1", "case_2"]}
    )
    return trainer


def train(trainer: DiffusionTrainer) -> Recorder:
    for epoch in range(EPOCHS):
        trainer.current_epoch = epoch
        trainer._train_epoch()
    assert isinstance(trainer.loss, Recorder)
    return trainer.loss


def test_losses_are_told_how_much_of_the_training_is_done():
    told = [batch.progress for batch in train(make()).batches]
    assert told == pytest.approx([i / 10 for i in range(10)])


def test_a_resumed_training_goes_on_with_its_progress():
    trainer = make()
    trainer.iteration = 7
    assert [batch.progress for batch in train(trainer).batches] == pytest.approx([0.7, 0.8, 0.9])


def test_a_time_budget_is_progress_too(monkeypatch):
    clock, trainer = [100.0], make(minutes=1.0)
    monkeypatch.setattr("nndiffseg.training.budget.time.monotonic", lambda: clock[0])
    trainer.budget.start()
    for seconds in (0, 30, 45):
        clock[0] = 100.0 + seconds
        trainer.train_step(next(trainer.dataloader_train))
    assert [batch.progress for batch in trainer.loss.batches] == pytest.approx([0, 0.5, 0.75])


def test_losses_get_image_targets_and_one_hot_label():
    batch = train(make()).batches[0]
    assert batch.image.shape == (1, 1, 4, 4) and [t.shape[-1] for t in batch.targets] == [4, 2]
    assert torch.equal(batch.onehot, torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4)], 1))


def test_the_randomness_of_a_step_is_its_own():
    """A function of seed, fold and iteration: none of them may be left out, or a resumed training would differ."""

    def drawn(seed: int, fold: int) -> list[float]:
        trainer = make()
        trainer.seed, trainer.fold = seed, fold
        return [float(torch.rand(1, generator=batch.generator("noise"))) for batch in train(trainer).batches]

    reference = drawn(11, 3)
    assert len(set(reference)) == 10 and drawn(11, 3) == reference
    for other in (drawn(12, 3), drawn(11, 4)):
        assert not set(other) & set(reference)


def test_the_sum_of_the_terms_is_what_is_stepped_on_and_all_are_logged():
    trainer = make()
    before = trainer.network.bias.detach().clone()
    terms = trainer.train_step(next(trainer.dataloader_train))
    prediction = float((trainer.network.weight.sum() + trainer.network.bias.sum()).detach())
    assert terms["total"] == pytest.approx(terms["first"] + terms["second"]) and terms["extra"] == 5.0
    # The gradient of 3 (w + b) is (3, 3); its norm is clipped to 1.
    assert float((before - trainer.network.bias).detach()) == pytest.approx(0.1 / 2**0.5)
    assert prediction < terms["first"]


def test_the_learning_rate_of_the_step_reaches_optimiser_and_losses():
    trainer = make()
    rates = train(trainer).rates
    assert rates[0] == pytest.approx(0.1 / 50) and rates[1] == pytest.approx(0.1 * 2 / 50 * 0.5 * (1 + 0.9510565))
    assert trainer.optimizer.param_groups[0]["lr"] == rates[-1]


def test_every_step_updates_the_weight_average():
    trainer = make()
    train(trainer)
    assert trainer.average.updates == 10
    assert not torch.equal(trainer.average.network.bias, trainer.network.bias)


class Overflow(torch.autograd.Function):
    """A finite value whose gradient is not."""

    @staticmethod
    def forward(context, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(context, gradient: Tensor) -> Tensor:
        return gradient * float("inf")


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("sound", [True, False])
def test_what_is_not_finite_is_noticed_before_the_step_and_the_cases_are_named(monkeypatch, what: str, sound: bool):
    trainer, saved = make(), []
    trainer.iteration = 4
    monkeypatch.setattr(trainer, "save_latest", lambda: saved.append(trainer.iteration))
    bad = float("nan") if what == "loss" else 1.0
    monkeypatch.setattr(trainer.loss, "forward", lambda network, batch: {"first": Overflow.apply(network.bias.sum()) * bad})
    if not sound:
        trainer.network.weight.data.fill_(float("nan"))
    before = [p.detach().clone() for p in trainer.network.parameters()]
    with pytest.raises(UserError, match=rf"The {what} is not finite at iteration 4 with patches of the cases case_1, case_2;"):
        trainer.train_step(next(trainer.dataloader_train))
    assert all(
        torch.equal(a, b.nan_to_num(7))
        for a, b in zip([p.nan_to_num(7) for p in before], trainer.network.parameters(), strict=True)
    )
    assert trainer.average.updates == 0 and saved == [4] * sound, "the last good state is kept, and no other"
    assert trainer.batches_left_out == sound, "so that the same batch does not come again"


def test_running_statistics_of_a_bad_batch_are_forgotten(monkeypatch):
    trainer = make()
    trainer.network = nn.Sequential(nn.BatchNorm2d(1, momentum=None), nn.Conv2d(1, 1, 1))
    trainer.average, trainer.iteration = WeightAverage(trainer.network), 4
    monkeypatch.setattr(trainer, "save_latest", lambda: None)
    batch = next(trainer.dataloader_train)
    trainer.train_step(batch)
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    with pytest.raises(UserError, match="go on from the last sound state and another batch with --c"):
        trainer.train_step(batch | {"data": batch["data"] * float("nan")})
    assert all(torch.equal(value, trainer.network.state_dict()[name]) for name, value in before.items())


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_ends_the_training_after_the_step_with_its_state_saved(monkeypatch, name: str):
    trainer, saved = make(), []
    monkeypatch.setattr(trainer, "save_checkpoint", lambda file: saved.append((Path(file).name, trainer.iteration)))
    trainer.output_folder = "nowhere"
    step = trainer.train_step

    def train_step(batch: dict) -> dict:
        if trainer.iteration == 2:
            os.kill(os.getpid(), getattr(signal, name))
        return step(batch)

    monkeypatch.setattr(trainer, "train_step", train_step)
    with (
        pytest.raises(Stopped, match=f"stopped by {name} after iteration 3.*--c"),
        noticed("SIGTERM", "SIGUSR1") as trainer._asked,
    ):
        train(trainer)
    assert saved == [("checkpoint_latest.pth", 3)]


def test_a_killed_process_that_loads_patches_is_one_sentence():
    trainer = make()

    def killed():
        raise RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed. ")
        yield

    trainer.dataloader_train = killed()
    with pytest.raises(UserError, match=r"loads patches was killed.*nnUNet_n_proc_DA.*--c"):
        train(trainer)


def test_the_two_samples_that_watch_a_training_are_two():
    """The network's samples are the noise itself: the first and the second draw of the same source."""
    trainer = make()
    trainer.method = SimpleNamespace(steps_while_training=3)
    asked = []

    def sample(maps: list[Tensor], noise, *, steps: int) -> Tensor:
        asked.append(steps)
        return noise(0, 2)

    network = SimpleNamespace(
        stride=(2, 2), encode=lambda image: [image.repeat(1, 2, 1, 1)], sample=sample, decode=lambda latent, maps: latent
    )
    image = torch.zeros(3, 1, 8, 8)
    logits, samples = trainer.predict_patch(network, image)
    assert logits.shape == (3, 2, 8, 8) and samples.shape == (2, 3, 2, 4, 4) and asked == [3, 3]
    assert (samples[0] - samples[1]).abs().mean() > 0.5
    assert torch.equal(trainer.predict_patch(network, image)[1], samples), "the same in every call of an epoch"
