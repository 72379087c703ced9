"""The cDAL trainer on real nnU-Net data loading: it learns, predicts, resumes exactly, and its switches do what they say."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nndiffseg import Predictor
from nndiffseg.cli import plan_and_preprocess, predict, train
from nndiffseg.data.checkpoint import load_checkpoint
from nndiffseg.errors import UserError
from nndiffseg.methods.cdal.method import CDAL
from nndiffseg.planning import memory
from nndiffseg.trainers.nnDiffSegTrainerCDAL import nnDiffSegTrainerCDAL
from nndiffseg.training import epoch_log as log
from nndiffseg.training import loop

PLANS, NAME = "nnDiffSegPlansS", "nnDiffSegTrainerCDAL"
DATASETS = {"Dataset901_Tiny": False, "Dataset902_Regions": True}


@pytest.fixture(scope="module")
def folders(tmp_path_factory, make_dataset):
    """Two tiny preprocessed datasets, the second one with regions."""
    base = tmp_path_factory.mktemp("nn")
    for name, regions in DATASETS.items():
        make_dataset(base / "raw", name=name, cases=2, shape=(6, 24, 20), splits=True, regions=regions)
        assert (
            plan_and_preprocess.main(
                ["-d", name, "-pl", "DiffSegPlannerS", "-np", "1", "-npfp", "1", "--no_pbar", *flags(base)]
            )
            == 0
        )
    return base


def flags(base: Path, results: str = "results") -> list[str]:
    return [f"--raw={base / 'raw'}", f"--preprocessed={base / 'preprocessed'}", f"--results={base / results}"]


def arguments(base: Path, results: str, *more: str) -> list[str]:
    return [
        "901",
        "2d",
        "0",
        "-p",
        PLANS,
        "-tr",
        NAME,
        "-device",
        "cpu",
        "--disable_progress_bar",
        *flags(base, results),
        *more,
    ]


def fold(base: Path, results: str) -> Path:
    return base / results / "Dataset901_Tiny" / f"{NAME}__{PLANS}__2d" / "fold_0"


def make_trainer(
    folders: Path,
    monkeypatch,
    *,
    dataset: str = "Dataset901_Tiny",
    configuration: str = "2d",
    **options,
) -> nnDiffSegTrainerCDAL:
    """An initialised trainer without data loaders."""
    for kind in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{kind}", str(folders / kind))
    base = folders / "preprocessed" / dataset
    plans, content = (json.loads((base / f"{name}.json").read_text()) for name in (PLANS, "dataset"))
    plans["continue_training"] = False
    plans["configurations"][configuration]["diffusion"]["options"] = {"cdal": options}
    made = nnDiffSegTrainerCDAL(plans, configuration, 0, content, torch.device("cpu"))
    made.initialize()
    return made


def make_batch(made: nnDiffSegTrainerCDAL, seed: int = 0, batch: int = 2) -> dict:
    patch, g = made.configuration_manager.patch_size, torch.Generator().manual_seed(seed)
    regions = made.label_manager.num_segmentation_heads if made.label_manager.has_regions else 0
    target = torch.randint(0, 2 if regions else 3, (batch, regions or 1, *patch), generator=g)
    return {"data": torch.randn(batch, 1, *patch, generator=g), "target": [target.float()]}


# ---- through the commands -----------------------------------------------------------------------------------------------


def test_scarce_memory_changes_patch_and_batch_in_training_and_in_every_prediction(folders, tmp_path):
    """Only -tr differs for the user; the model folder's plans say what was trained, so nnU-Net's own tools follow."""
    plans = json.loads((folders / "preprocessed" / "Dataset901_Tiny" / f"{PLANS}.json").read_text())
    configuration = plans["configurations"]["2d"]
    plans["plans_name"], configuration["batch_size"] = "tight", 6
    configuration["diffusion"]["settings"]["samples"] = 2
    needs = memory.plan_entries({NAME: CDAL}, PlansManager(plans), "2d", 1, 3, 1.0, 1e9)[NAME]
    gb = needs["training_memory_gb"] * 1.7 / configuration["batch_size"]  # less than two patches need
    configuration["diffusion"]["trainers"] = memory.plan_entries({NAME: CDAL}, PlansManager(plans), "2d", 1, 3, 1.0, gb)
    (folders / "preprocessed" / "Dataset901_Tiny" / "tight.json").write_text(json.dumps(plans))
    assert (
        train.main(
            ["tight" if a == PLANS else a for a in arguments(folders, "tight", "--epochs", "1", "--iterations_per_epoch", "2")]
        )
        == 0
    )
    out = folders / "tight" / "Dataset901_Tiny" / f"{NAME}__tight__2d"
    trained = json.loads((out / "plans.json").read_text())["configurations"]["2d"]
    assert trained["batch_size"] == 2 < configuration["batch_size"]
    assert np.prod(trained["patch_size"]) < np.prod(configuration["patch_size"])
    text = next((out / "fold_0").glob("training_log_*.txt")).read_text()
    assert text.count("more than the") == 1
    assert f"so it trains with the patch {'x'.join(map(str, trained['patch_size']))} and batch size 2" in text
    predictor = Predictor.from_folder(out, device="cpu", samples=2, mirroring=False, precision="float32")
    assert list(predictor.model.folds[0].network.patch) == trained["patch_size"] == predictor.configuration.patch_size
    image = np.random.default_rng(0).normal(size=(1, 4, 24, 20)).astype(np.float32)
    ours = predictor.predict_parts(image, "x").deterministic
    stock = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    stock.initialize_from_trained_model_folder(str(out), (0,), "checkpoint_final.pth")
    assert stock.configuration_manager.patch_size == trained["patch_size"]
    stock.network.load_state_dict(stock.list_of_parameters[0])
    theirs = stock.predict_sliding_window_return_logits(torch.from_numpy(image)).float().softmax(0)
    assert (ours.argmax(0) == theirs.argmax(0)).float().mean() > 0.9


def test_training_learns_predicts_and_validates(folders, monkeypatch):
    assert train.main(arguments(folders, "learn", "--epochs", "2", "--iterations_per_epoch", "25")) == 0
    out = fold(folders, "learn")
    rows = log.read(out)
    assert rows[-1]["losses"]["x0"] < 0.8 * rows[0]["losses"]["x0"]
    assert rows[-1]["losses"]["label"] < rows[0]["losses"]["label"]
    assert {"x0", "label", "discriminator", "r1", "total"} == set(rows[0]["losses"])
    assert (out / "validation" / "summary.json").is_file() and (out / "validation" / "uncertainty.json").is_file()
    images, predictions = folders / "images", []
    images.mkdir()
    shutil.copy(folders / "raw" / "Dataset901_Tiny" / "imagesTr" / "case_000_0000.nii.gz", images)
    for i in range(2):
        folder = folders / f"predicted_{i}"
        assert (
            predict.main(
                [
                    "-i",
                    str(images),
                    "-o",
                    str(folder),
                    "-m",
                    str(out.parent),
                    "--samples",
                    "3",
                    "--save_samples",
                    "-device",
                    "cpu",
                    *flags(folders),
                ]
            )
            == 0
        )
        predictions.append(folder)
    for name in ("case_000.nii.gz", "uncertainty/case_000_total.nii.gz", "samples/case_000_s02.nii.gz"):
        a, b = (_array(p / name) for p in predictions)
        assert np.array_equal(a, b) and a.shape == (6, 24, 20)
    first, second = (_array(predictions[0] / f"samples/case_000_s{n:02d}.nii.gz") for n in range(2))
    assert (first != second).any()
    settings = json.loads((predictions[0] / "uncertainty" / "case_000.json").read_text())["settings"]
    assert settings["steps"] == 4 and settings["sampler"] == "ancestral"


def _array(path: Path) -> np.ndarray:
    import SimpleITK as sitk

    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


@pytest.mark.slow
def test_an_interrupted_training_resumes_exactly_with_its_discriminator(folders, monkeypatch):
    length = ("--epochs", "2", "--iterations_per_epoch", "4")
    monkeypatch.setattr(nnDiffSegTrainerCDAL, "perform_actual_validation", lambda *_: None)  # not what is tested here
    assert train.main(arguments(folders, "whole", *length)) == 0
    step = nnDiffSegTrainerCDAL.train_step

    def interrupted(self, batch):
        if self.iteration == 6:
            raise KeyboardInterrupt
        return step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "CHECKPOINT_SECONDS", 0)  # a checkpoint after every iteration
        patch.setattr(nnDiffSegTrainerCDAL, "train_step", interrupted)
        assert train.main(arguments(folders, "stopped", *length)) != 0
    assert load_checkpoint(fold(folders, "stopped") / "checkpoint_latest.pth")["iteration"] == 6
    assert train.main(arguments(folders, "stopped", *length, "--c")) == 0
    keys = ("losses", "dice_deterministic", "dice_samples", "spread", "iteration")
    rows = [[{k: row[k] for k in keys} for row in log.read(fold(folders, name))] for name in ("whole", "stopped")]
    assert rows[0] == rows[1]
    a, b = (load_checkpoint(fold(folders, name) / "checkpoint_final.pth") for name in ("whole", "stopped"))
    for part in ("network_weights_raw", "network_weights", "optimizer_state", "loss_state"):
        _assert_equal(a[part], b[part])
    assert a["loss_state"]["_extra_state"]["state"], "the optimiser's moments belong to the state"


def _assert_equal(a, b) -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            _assert_equal(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            _assert_equal(x, y)
    else:
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


# ---- one step -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
@pytest.mark.parametrize("dataset", DATASETS)
def test_a_step_trains_both_networks(folders, monkeypatch, dataset, configuration):
    made = make_trainer(folders, monkeypatch, dataset=dataset, configuration=configuration)
    networks = {"generator": made.network, "discriminator": made.loss.discriminator}
    before = {name: copy.deepcopy(n.state_dict()) for name, n in networks.items()}
    for group in made.optimizer.param_groups:
        group["lr"] = 1e-3
    terms = made.train_step(make_batch(made))
    assert all(np.isfinite(v) for v in terms.values())
    for name, n in networks.items():
        moved = [k for k, p in n.named_parameters() if not torch.equal(p, before[name][k])]
        assert len(moved) > 0.5 * len(before[name])
    assert made.network.heads.regions == DATASETS[dataset]
    logits, samples = made.predict_patch(made.network.eval(), make_batch(made)["data"])
    heads = made.label_manager.num_segmentation_heads
    assert logits.shape == (2, heads, *made.configuration_manager.patch_size) and samples.shape == (2, *logits.shape)


def test_a_step_is_a_function_of_seed_fold_and_iteration(folders, monkeypatch):
    terms = []
    for number, (seed, iteration) in enumerate([(0, 3), (0, 3), (0, 4), (1, 3)]):
        made = make_trainer(folders, monkeypatch)
        made.seed, made.iteration = seed, iteration
        torch.manual_seed(number)  # the global generator must not matter
        terms.append(made.train_step(make_batch(made)))
    assert terms[0] == terms[1]
    assert all(terms[0][k] != other[k] for other in terms[2:] for k in ("x0", "discriminator"))


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_the_adversarial_switch_decides_whether_the_discriminator_reaches_the_generator(folders, monkeypatch, weight):
    made = make_trainer(folders, monkeypatch, adversarial_weight=weight, attention=False, deterministic_share=0.0)
    batch = make_batch(made)
    for p in made.loss.discriminator.parameters():
        p.data *= 1.5
    gradients = []
    for scale in (1.0, 2.0):
        made.loss.discriminator.head.weight.data *= scale
        made.network.zero_grad()
        terms = made.loss(made.network, made.as_batch(batch))
        assert ("adversarial" in terms) == (weight > 0)
        sum(terms.values()).backward()
        gradients.append(made.network.head.weight.grad.clone())
    assert torch.equal(*gradients) == (weight == 0), "another discriminator must matter only with a positive weight"
    assert all(p.grad is None and p.requires_grad for p in made.loss.discriminator.parameters())


def test_the_adversarial_term_is_the_non_saturating_loss_of_the_items_in_use(folders, monkeypatch):
    made = make_trainer(folders, monkeypatch)
    patch = made.configuration_manager.patch_size
    made.loss.discriminator.forward = lambda x_s, x_t, t: x_s.flatten(1).mean(1)  # type: ignore[method-assign]
    guess = torch.randn(2, 3, *patch)
    t, s = torch.full((2,), 0.25), torch.zeros(2)  # the last step: the fake x_s is the estimate itself
    value = made.loss._adversarial(
        made.network.schedule, guess, guess, t, s, torch.tensor([True, False]), torch.Generator().manual_seed(0)
    )
    expected = -torch.sigmoid(guess[0].mean()).log()
    torch.testing.assert_close(value, expected)


def test_attention_weakens_the_label_and_only_in_training(folders, monkeypatch):
    made = make_trainer(folders, monkeypatch)
    x0 = 2 * made.as_batch(make_batch(made)).onehot - 1
    t, s = torch.ones(2), torch.full((2,), 0.75)
    attended = made.loss._attended(made.network.schedule, x0, t, s, torch.Generator().manual_seed(0))
    ratio = attended / x0
    assert float(ratio.min()) > 0 and torch.equal(ratio.flatten(1).amax(1), torch.ones(2)) and float(ratio.std()) > 0.01
    without = make_trainer(folders, monkeypatch, attention=False)
    assert without.loss._attended(made.network.schedule, x0, t, s, torch.Generator().manual_seed(0)) is x0
    assert not any("discriminator" in key for key in made.network.state_dict()), "prediction knows no discriminator"


def test_the_deterministic_share_sees_neither_noise_nor_vector(folders, monkeypatch):
    made = make_trainer(folders, monkeypatch, deterministic_share=1.0)
    seen = {}
    forward = made.network.forward

    def record(image, x, t, vector):
        seen.update(x=x, t=t, vector=vector)
        return forward(image, x, t, vector)

    made.network.forward = record  # type: ignore[method-assign]
    batch = make_batch(made)
    terms = made.loss(made.network, made.as_batch(batch))
    assert not seen["x"].any() and not seen["vector"].any() and torch.equal(seen["t"], torch.ones(2))
    # These are the inputs of the deterministic answer, so the label term is nnU-Net's loss of that answer.
    torch.testing.assert_close(
        terms["label"], made.loss.segmentation.full(made.network.deterministic(batch["data"]), batch["target"][0])
    )


@pytest.mark.parametrize(("steps", "fine"), [(1, False), (2, True), (8, True), (9, False)])
def test_steps_range_from_two_to_eight(folders, monkeypatch, steps, fine):
    if fine:
        assert make_trainer(folders, monkeypatch, steps=steps).network.default_steps == steps
    else:
        with pytest.raises(UserError, match="invalid steps"):
            make_trainer(folders, monkeypatch, steps=steps)
