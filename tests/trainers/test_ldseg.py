"""LDSeg through the ordinary commands: it learns, resumes exactly, predicts; both latents, labels and regions, 2D and 3D."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nndiffseg import Predictor, predict_folder
from nndiffseg.cli import plan_and_preprocess, train
from nndiffseg.data.checkpoint import load_checkpoint
from nndiffseg.trainers.nnDiffSegTrainerLDSeg import nnDiffSegTrainerLDSeg
from nndiffseg.training import epoch_log as log

TRAINER, PLANS = nnDiffSegTrainerLDSeg.__name__, "nnDiffSegPlansS"
SETTINGS = [("2d", False, "planned"), ("3d_fullres", True, "paper")]


@pytest.fixture(scope="module", params=SETTINGS, ids=["2d labels planned", "3d regions paper"])
def setting(request, tmp_path_factory, make_dataset) -> tuple[Path, str]:
    """A preprocessed tiny dataset and a configuration."""
    configuration, regions, latent = request.param
    base = tmp_path_factory.mktemp("nn")
    make_dataset(base / "raw", cases=4, splits=True, regions=regions)
    flags = [f"--{kind}={base / kind}" for kind in ("raw", "preprocessed", "results")]
    assert (
        plan_and_preprocess.main(
            [
                "-d",
                "901",
                "-pl",
                "DiffSegPlannerS",
                "-c",
                configuration,
                "--latent",
                latent,
                "-np",
                "1",
                "-npfp",
                "1",
                "--no_pbar",
                *flags,
            ]
        )
        == 0
    )
    path = base / "preprocessed" / "Dataset901_Tiny" / f"{PLANS}.json"
    plans = json.loads(path.read_text())
    section = plans["configurations"][configuration]["diffusion"]
    section["settings"]["samples"] = 2
    section["options"] = {"ldseg": {"steps": 3} | section.get("options", {}).get("ldseg", {})}  # all would take longer
    plans["configurations"][configuration]["batch_size"] = 2 if regions else 6
    path.write_text(json.dumps(plans))
    return base, configuration


@pytest.fixture(autouse=True)
def in_this_process(setting, monkeypatch):
    """Starting worker processes would take longer than these trainings; the planner, done by now, wants some."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")


def arguments(base: Path, configuration: str, results: str, *more: str) -> list[str]:
    return [
        "901",
        configuration,
        "0",
        "-p",
        PLANS,
        "-tr",
        TRAINER,
        "-device",
        "cpu",
        "--disable_progress_bar",
        *(f"--{kind}={base / kind}" for kind in ("raw", "preprocessed")),
        f"--results={base / results}",
        *more,
    ]


def model(base: Path, configuration: str, results: str) -> Path:
    return base / results / "Dataset901_Tiny" / f"{TRAINER}__{PLANS}__{configuration}"


def test_it_learns_and_predicts(setting, tmp_path):
    base, configuration = setting
    iterations = "20" if configuration == "2d" else "8"
    assert train.main(arguments(*setting, "learn", "--epochs", "2", "--iterations_per_epoch", iterations)) == 0
    folder = model(*setting, "learn")
    first, last = (log.read(folder / "fold_0")[i]["losses"] for i in (0, -1))
    assert set(first) == {"segmentation", "noise", "latent", "total"}
    assert last["segmentation"] < first["segmentation"] - 0.1
    # Latents are nearly constant at first, so the noise's loss may rise; by guessing zero it would be 3/8 (1/2 is recycled,
    # of the rest 1/4 has no noise).
    assert 0 < last["noise"] < 0.375
    assert (folder / "fold_0" / "validation" / "summary.json").is_file()
    predictor = Predictor.from_folder(folder, device="cpu", samples=2, mirroring=False)
    assert (predictor.model.folds[0].network.default_sampler, predictor.model.folds[0].network.default_steps) == ("ddim", 3)
    images = base / "raw" / "Dataset901_Tiny" / "imagesTr"
    assert predict_folder(predictor, images, tmp_path, num_parts=4, save_samples=True, progress=False) == ["case_000"]
    files = ("case_000", "uncertainty/case_000_total", "samples/case_000_s00", "samples/case_000_s01")
    arrays = [sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / f"{name}.nii.gz"))) for name in files]
    assert all(a.shape == (20, 24, 20) for a in arrays)
    assert (arrays[2] != arrays[3]).any(), "two samples have different noise"
    assert np.isfinite(arrays[1]).all()


def test_a_stopped_training_resumes_where_it_stopped(setting, monkeypatch):
    if setting[1] != "2d":
        pytest.skip("once is enough: what is resumed does not depend on the configuration")
    monkeypatch.setattr(nnDiffSegTrainerLDSeg, "perform_actual_validation", lambda *_: None)  # not what is tested here
    length = ("--epochs", "2", "--iterations_per_epoch", "3")
    assert train.main(arguments(*setting, "whole", *length)) == 0
    step = nnDiffSegTrainerLDSeg.train_step

    def interrupted(self, batch):
        if self.iteration == 4:
            self.save_checkpoint(str(Path(self.output_folder) / "checkpoint_latest.pth"))
            raise KeyboardInterrupt
        return step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(nnDiffSegTrainerLDSeg, "train_step", interrupted)
        assert train.main(arguments(*setting, "stopped", *length)) != 0
    whole, stopped = (model(*setting, name) / "fold_0" for name in ("whole", "stopped"))
    assert load_checkpoint(stopped / "checkpoint_latest.pth")["iteration"] == 4
    assert train.main(arguments(*setting, "stopped", *length, "--c")) == 0
    keys = ("losses", "dice_deterministic", "dice_samples", "spread", "iteration")
    expected, resumed = ([{k: row[k] for k in keys} for row in log.read(folder)] for folder in (whole, stopped))
    assert resumed == expected
    a, b = (load_checkpoint(f / "checkpoint_final.pth")["network_weights"] for f in (whole, stopped))
    assert all(torch.equal(a[k], b[k]) for k in a)


def make_trainer(setting: tuple[Path, str], **options) -> nnDiffSegTrainerLDSeg:
    """An initialised trainer without data loaders, with options as an ablation has them."""
    base, configuration = setting
    folder = base / "preprocessed" / "Dataset901_Tiny"
    plans, dataset = (json.loads((folder / name).read_text()) for name in (f"{PLANS}.json", "dataset.json"))
    with pytest.MonkeyPatch.context() as patch:
        for kind in ("raw", "preprocessed", "results"):
            patch.setenv(f"nnUNet_{kind}", str(base / kind))
        section = plans["configurations"][configuration]["diffusion"]["options"]
        section["ldseg"] |= options
        made = nnDiffSegTrainerLDSeg({**plans, "continue_training": False}, configuration, 0, dataset, torch.device("cpu"))
        made.initialize()
    return made


def make_batch(made: nnDiffSegTrainerLDSeg) -> dict:
    generator = torch.Generator().manual_seed(0)
    patch, regions = made.configuration_manager.patch_size, made.label_manager.has_regions
    heads = made.label_manager.num_segmentation_heads
    target = torch.randint(0, 2 if regions else heads, (2, heads if regions else 1, *patch), generator=generator)
    return {"data": torch.randn(2, 1, *patch, generator=generator), "target": [target.float()]}


@pytest.mark.parametrize("attribute", ["learned_label_encoder", "learned_image_encoder"])
def test_options_replace_the_encoders_by_down_sampling(setting, attribute):
    made = make_trainer(setting, **{attribute: False})
    part = attribute.removeprefix("learned_")
    assert not list(getattr(made.network, part).parameters())
    assert list(getattr(make_trainer(setting).network, part).parameters())
    terms = made.train_step(make_batch(made))
    assert all(np.isfinite(v) for v in terms.values())


def test_the_loss_is_the_published_sum(setting):
    made = make_trainer(setting, recycling=0.0, deterministic_share=0.0)
    batch = made.as_batch(make_batch(made))
    seen = {}
    made.network.register_forward_hook(lambda _m, _i, out: seen.update(out=out))
    terms = made.loss(made.network, batch)
    out = seen["out"]
    torch.testing.assert_close(terms["noise"], (out.noise - out.estimate).square().mean())
    target, loss = batch.targets[0], made.loss.segmentation.full
    cross_entropy = loss.ce(out.logits, target if made.label_manager.has_regions else target[:, 0].long())
    torch.testing.assert_close(terms["segmentation"], cross_entropy + 2 * loss.dc(out.logits, target))
    assert float(terms["latent"].detach()) == 0, "nothing was recycled"


def test_recycled_items_pay_the_error_of_x0_in_the_noise_losss_place(setting):
    made = make_trainer(setting, recycling=1.0, latent_weight=0.5)
    batch = made.as_batch(make_batch(made))
    seen = {}
    made.network.register_forward_hook(lambda _m, _i, out: seen.update(out=out))
    terms = made.loss(made.network, batch)
    assert float(terms["noise"].detach()) == 0
    torch.testing.assert_close(terms["latent"], 0.5 * (seen["out"].x0 - seen["out"].latent).square().mean())
