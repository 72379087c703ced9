"""From a stock nnU-Net's folder to calibrated predictions: the commands as a user types them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from stock_world import StockWorld, make_stock_world
from tiny_model import write_model

from nndiffseg.calibration import Calibration
from nndiffseg.cli.calibrate import main as calibrate
from nndiffseg.cli.calibrate import table_of
from nndiffseg.cli.predict import main as predict
from nndiffseg.diffusion.coherent import LENGTHS
from nndiffseg.inference.model_folder import load_model
from nndiffseg.report.calibration_page import write_calibration_report

pytestmark = pytest.mark.seconds


@pytest.fixture(scope="module", params=["labels", pytest.param("regions", marks=pytest.mark.slow)])
def world(request, make_dataset, tmp_path_factory) -> StockWorld:
    """Ten cases in two folds, with kept probabilities, calibrated once."""
    made = make_stock_world(
        make_dataset,
        tmp_path_factory.mktemp(request.param),
        cases=10,
        regions=request.param == "regions",
        spacing=(2.0, 1.0, 1.5),
    )
    made.keep_probabilities()
    assert calibrate([str(made.model), "--disable_progress_bar", *made.flags]) == 0
    return made


def read(file: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


def test_over_confident_probabilities_get_a_temperature_and_better_scores(world):
    found = json.loads((world.model / "calibration" / "check.json").read_text())
    raw, scaled = (found["probabilities"][name] for name in ("as they come", "temperature"))
    assert scaled["nll"] < raw["nll"] and scaled["ece"] < raw["ece"]
    assert set(found["probabilities"]) == {"as they come", "temperature", "isotonic regression"}
    calibration = Calibration.from_json(json.loads((world.model / "calibration.json").read_text()))
    assert max(calibration.temperature) > 1.2 and sum(calibration.length_weights) == pytest.approx(1)
    assert calibration.groups == 10 and calibration.folds == ("0", "1")
    assert all(q is not None for q in calibration.volume_quantiles)
    assert found["samples"]["coherent"]["energy_outlines"] <= found["samples"]["voxel by voxel"]["energy_outlines"] + 0.02


def test_the_report_stands_alone(world):
    page = (world.model / "calibration" / "report.html").read_text()
    assert "Probabilities near the structures" in page and "data:image/png" in page and "http" not in page
    assert world.model.name in page


def test_predictions_have_nnunets_voxels_and_calibrated_maps_and_samples(world, tmp_path):
    """Two folds with mirroring, through nnU-Net's own command in a process of its own."""
    images = tmp_path / "in"
    images.mkdir()
    for case in ("case_000", "case_007"):
        shutil.copy(world.images / f"{case}_0000.nii.gz", images)
    arguments = ["-i", str(images), "-m", str(world.model)]
    ours, again, theirs = (tmp_path / name for name in ("ours", "again", "theirs"))
    more = ["--samples", "6", "--save_samples", "--save_probabilities", "-device", "cpu"]  # with a progress bar
    assert predict([*arguments, "-o", str(ours), *more, *world.flags]) == 0
    command = "from nnunetv2.inference.predict_from_raw_data import predict_entry_point_modelfolder as f; f()"
    flags = ["-f", "0", "1", "-device", "cpu", "-npp", "1", "-nps", "1"]
    subprocess.run([sys.executable, "-c", command, *arguments, "-o", str(theirs), *flags], check=True, capture_output=True)
    for case in ("case_000", "case_007"):
        assert np.array_equal(read(ours / f"{case}.nii.gz"), read(theirs / f"{case}.nii.gz"))
        assert len(np.unique(read(ours / f"{case}.nii.gz"))) > 1
        total, epistemic = (read(ours / "uncertainty" / f"{case}_{kind}.nii.gz") for kind in ("total", "epistemic"))
        assert total.min() >= 0 and total.max() <= 1 and (epistemic <= total + 1e-6).all()
        about = json.loads((ours / "uncertainty" / f"{case}.json").read_text())
        assert about["settings"]["sampler"] == "coherent" and about["settings"]["folds"] == ["0", "1"]
        assert all(s["interval_promised"] for s in about["structures"].values())
        assert about["expected_dice_interval_90"][0] <= about["expected_dice"] <= about["expected_dice_interval_90"][1]
    assert predict([*arguments, "-o", str(again), *more[:3], "--disable_progress_bar", "-device", "cpu", *world.flags]) == 0
    for n in range(6):
        name = f"samples/case_007_s{n:02d}.nii.gz"
        assert np.array_equal(read(ours / name), read(again / name))
    assert not np.array_equal(read(ours / "samples/case_007_s00.nii.gz"), read(ours / "samples/case_007_s01.nii.gz"))


def test_what_is_not_calibrated_is_not_predicted(make_dataset, tmp_path, capsys):
    world = make_stock_world(make_dataset, tmp_path, folds=1)
    out = tmp_path / "out"
    assert predict(["-i", str(world.images), "-o", str(out), "-m", str(world.model), "-device", "cpu", *world.flags]) == 2
    assert "run nndiffseg_calibrate" in capsys.readouterr().err and not out.exists()
    shutil.move(world.model / "fold_0", world.model / "fold_all")
    assert predict(["-i", str(world.images), "-o", str(out), "-m", str(world.model), "-device", "cpu", *world.flags]) == 2
    error = capsys.readouterr().err
    assert "train folds 0 to 4" in error and "run nndiffseg_calibrate" not in error and not out.exists()


def test_cases_whose_probabilities_were_not_kept_are_predicted(make_dataset, tmp_path, capsys):
    """A 2D configuration of 3D images, one fold, two cases: no interval can be promised of so few."""
    world = make_stock_world(make_dataset, tmp_path, "2d", folds=1)
    before = {f: f.read_bytes() for f in world.model.rglob("*") if f.is_file()}
    assert calibrate([str(world.model), "--disable_progress_bar", "-device", "cpu", *world.flags]) == 0
    said = capsys.readouterr().out
    assert "2 of 2 validation cases have no kept probabilities" in said and "not promised" in said
    assert all(f.read_bytes() == content for f, content in before.items())
    added = {str(f.relative_to(world.model)) for f in world.model.rglob("*") if f.is_file()} - {
        str(f.relative_to(world.model)) for f in before
    }
    assert added == {"calibration.json", "calibration/check.json", "calibration/report.html"}
    images = tmp_path / "in"
    images.mkdir()
    shutil.copy(world.images / "case_003_0000.nii.gz", images)
    flags = ["-m", str(world.model), "--samples", "3", "--disable_progress_bar", "-device", "cpu", *world.flags]
    assert predict(["-i", str(images), "-o", str(tmp_path / "out"), "--flag_below", "1", *flags]) == 0
    assert "Expected Dice below 1: case_003 (" in capsys.readouterr().out
    assert 'class="flag"' in (tmp_path / "out" / "report.html").read_text()
    about = json.loads((tmp_path / "out" / "uncertainty" / "case_003.json").read_text())
    assert not any(s["interval_promised"] for s in about["structures"].values())
    assert about["expected_dice"] == about["agreement"] and about["expected_dice_interval_90"] is None


def _another_network(world: StockWorld) -> None:
    file = world.model / "fold_0" / "checkpoint_final.pth"
    content = torch.load(file, weights_only=False)
    content["network_weights"]["extra.weight"] = torch.zeros(1)
    torch.save(content, file)


def _damage(world: StockWorld) -> None:
    (world.model / "fold_0" / "validation").mkdir()
    (world.model / "fold_0" / "validation" / "case_000.npz").write_bytes(b"PK\x03\x04 half")


def _other_shape(world: StockWorld) -> None:
    (world.model / "fold_0" / "validation").mkdir()
    np.savez(world.model / "fold_0" / "validation" / "case_000.npz", probabilities=np.zeros((3, 2, 2, 2), np.float32))


def _not_finite(world: StockWorld) -> None:
    (world.model / "fold_0" / "validation").mkdir()
    file = world.preprocessed / world.dataset / "gt_segmentations" / "case_000.nii.gz"
    p = np.full((3, *read(file).shape), np.nan, np.float32)
    np.savez(world.model / "fold_0" / "validation" / "case_000.npz", probabilities=p)


def _unknown_label(world: StockWorld) -> None:
    file = world.preprocessed / world.dataset / "gt_segmentations" / "case_000.nii.gz"
    image = sitk.ReadImage(str(file))
    array = sitk.GetArrayFromImage(image)
    array[0, 0, 0] = 9
    changed = sitk.GetImageFromArray(array)
    changed.CopyInformation(image)
    sitk.WriteImage(changed, str(file))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_not_finite, "holds no probabilities from 0 to 1"),
        (_unknown_label, "label of case_000 holds 9"),
        (lambda w: (w.preprocessed / w.dataset / "splits_final.json").unlink(), "splits_final.json is missing"),
        (lambda w: (w.preprocessed / w.dataset / "splits_final.json").write_text("[]"), "holds no folds"),
        (
            lambda w: (w.preprocessed / w.dataset / "gt_segmentations" / "case_000.nii.gz").unlink(),
            "case_000.nii.gz is missing",
        ),
        (_another_network, "not those of the network in the plans"),
        (_damage, "case_000.npz cannot be read"),
        (_other_shape, r"probabilities of case_000 are \(3, 2, 2, 2\)"),
        (lambda w: shutil.rmtree(w.model / "fold_0"), "holds no checkpoint yet"),
        (lambda w: shutil.move(w.model / "fold_0", w.model / "fold_all"), "Fold all was trained on all cases"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_no_calibration(make_dataset, tmp_path, capsys, spoil, message):
    world = make_stock_world(make_dataset, tmp_path, folds=1)
    spoil(world)
    capsys.readouterr()
    assert calibrate([str(world.model), "--disable_progress_bar", "-device", "cpu", *world.flags]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert pytest.importorskip("re").search(message, error), error
    assert not (world.model / "calibration.json").exists()


def test_samples_of_a_stock_model_know_no_steps(world, tmp_path, capsys):
    arguments = ["-i", str(world.images), "-o", str(tmp_path / "o"), "-m", str(world.model), "-device", "cpu", *world.flags]
    assert predict([*arguments, "--steps", "3"]) == 2
    assert "leave out --steps and --sampler" in capsys.readouterr().err


def test_an_own_model_is_calibrated_on_the_tables_of_all_its_folds(make_dataset, tmp_path, capsys):
    from nndiffseg.calibration import CaseTable, write_table
    from nndiffseg.calibration.fusion import WEIGHTS
    from nndiffseg.calibration.temperature import LOG_TEMPERATURES

    folder, rng = write_model(make_dataset, tmp_path), np.random.default_rng(0)
    for fold in range(2):
        tables = folder / f"fold_{fold}" / "validation" / "tables"
        tables.mkdir(parents=True)
        for i in range(6):
            dice = np.broadcast_to(rng.uniform(0.7, 0.9, 2), (len(WEIGHTS), 2))
            curve = np.broadcast_to((LOG_TEMPERATURES - np.log(2)) ** 2, (len(WEIGHTS), 1, len(LOG_TEMPERATURES)))
            drawn, true = 10 + rng.standard_normal((2, 16)), 10 + rng.standard_normal((2, 1))
            write_table(CaseTable(f"c{fold}{i}", dice, np.zeros(len(WEIGHTS)), drawn, true, curve, dice), tables)
    flags = [f"--{kind}={tmp_path / kind}" for kind in ("raw", "preprocessed", "results")]
    assert calibrate([str(folder), *flags]) == 0
    assert "rank correlation 1.00" in capsys.readouterr().out
    model = load_model(folder)
    assert {fold.calibration for fold in model.folds} == {model.folds[0].calibration}
    assert model.folds[0].calibration.temperature == (pytest.approx(2, rel=0.02),)
    assert model.folds[0].calibration.groups == 12 and model.folds[0].calibration.folds == ("0", "1")
    assert load_model(folder, [1]).folds[0].calibration.groups == 12
    shutil.rmtree(folder / "fold_1" / "validation")
    assert calibrate([str(folder), *flags]) == 2
    assert "validate the fold with nndiffseg_train --val" in capsys.readouterr().err
    shutil.move(folder / "fold_0", folder / "fold_all")
    assert calibrate([str(folder), "-f", "all", *flags]) == 2
    error = capsys.readouterr().err
    assert "Fold all was trained on all cases, so none is left to calibrate it on" in error and error.count("\n") == 1


def test_an_own_models_sampler_is_chosen_on_what_all_its_folds_observed(make_dataset, tmp_path, capsys):
    """The trained samples are noise, so the coherent ones around the head win."""
    from nndiffseg.calibration import CaseTable, write_table
    from nndiffseg.calibration.fusion import WEIGHTS
    from nndiffseg.calibration.temperature import LOG_TEMPERATURES
    from nndiffseg.calibration.voxels import LabelKind, observe
    from nndiffseg.calibration.voxels_file import write_voxels

    folder, rng = write_model(make_dataset, tmp_path), np.random.default_rng(0)
    model, shape = load_model(folder), (6, 7, 8)
    kind = LabelKind.of(model.plans.get_label_manager(model.dataset_json), model.dataset_json)
    for fold in range(2):
        validation = folder / f"fold_{fold}" / "validation"
        for sub in ("tables", "voxels"):
            (validation / sub).mkdir(parents=True)
        for i in range(4):
            case, truth, everywhere = f"c{fold}{i}", np.zeros((1, *shape), np.uint8), np.ones(shape, bool)
            truth[0, 2:4, 2 : 4 + i % 2, 2:6] = 1
            truth[0, 3, 3, 3:5] = 2
            p = torch.from_numpy(np.stack([truth[0] == k for k in range(3)])).float() * 0.7 + 0.1
            drawn = rng.integers(0, 3, (16, *shape)).astype(np.uint8)
            observed = observe(
                case, p, truth, everywhere, everywhere, kind, spacing=(1, 1, 1), voxel_ml=1.0, sampled=p, drawn=drawn
            )
            write_voxels(observed, validation / "voxels")
            dice, curve = np.full((len(WEIGHTS), 2), 0.8), np.tile(LOG_TEMPERATURES**2, (len(WEIGHTS), 1, 1))
            volumes = [kind.members(torch.from_numpy(x).long()).flatten(2).sum(2).double().numpy() for x in (drawn, truth)]
            write_table(CaseTable(case, dice, np.zeros(len(WEIGHTS)), *volumes, curve, dice), validation / "tables")
    flags = ["--disable_progress_bar", *(f"--{kind}={tmp_path / kind}" for kind in ("raw", "preprocessed", "results"))]
    assert calibrate([str(folder), *flags]) == 0
    output = capsys.readouterr().out
    assert "samples: coherent (score 0." in output and "Brier" not in output  # nothing is known of the probabilities
    chosen = load_model(folder).folds[0].calibration
    assert chosen.coherent_share == 1 and chosen.fusion_weight == 1 and sum(chosen.length_weights) == pytest.approx(1)
    scores = json.loads((folder / "calibration" / "check.json").read_text())["sampler_scores"]
    assert scores["coherent"] < scores["mixture"] < scores["diffusion"]
    page = (folder / "calibration" / "report.html").read_text(encoding="utf8")
    assert "100 % coherent" in page and f"diffusion {scores['diffusion']:.4f}" in page and "Fusion" not in page
    shutil.rmtree(folder / "fold_1" / "validation" / "voxels")
    assert calibrate([str(folder), *flags]) == 0
    assert "Fold 1 was validated by an older version" in capsys.readouterr().out
    assert load_model(folder).folds[0].calibration.coherent_share == 0


def test_a_calibrated_nnunet_is_found_by_its_names_and_another_is_not(world, tmp_path, capsys):
    from nndiffseg.inference.model_folder import trained_models

    assert [m.folder for m in trained_models(world.results)] == [world.model]
    copy = tmp_path / "results" / world.dataset / world.model.name
    copy.parent.mkdir(parents=True)
    shutil.copytree(world.model, copy)
    (copy / "calibration.json").unlink()
    assert trained_models(tmp_path / "results") == []


def test_the_unit_of_images_without_a_size_in_mm_is_pixels(tmp_path):
    check = {
        "cases": 2,
        "complete_cases": 2,
        "error_auroc": None,
        "probabilities": {"temperature": {"nll": 0.1, "brier": 0.2, "ece": 0.3}},
        "samples": {"coherent": {"energy_outlines": 0.5, "energy_volumes_ml": 0.25, "agreement": 0.9}},
        "volumes": [{"coverage_90": None, "width": None}],
        "dice": {"spearman": None, "coverage_90": None, "points": []},
    }
    calibration = Calibration(length_weights=[1 / len(LENGTHS)] * len(LENGTHS), folds=["0"])
    assert "250.0000" in (text := table_of(calibration, check, ["cell"], "pixels")) and "of volumes, pixels" in text
    for reader, unit, energy in (("NaturalImage2DIO", "pixels", "250.0000"), ("SimpleITKIO", "ml", "0.2500")):
        model = tmp_path / reader
        (model / "calibration").mkdir(parents=True)
        (model / "plans.json").write_text(json.dumps({"image_reader_writer": reader}))
        page = write_calibration_report(model / "calibration" / "report.html", "m", calibration, check, ["cell"]).read_text()
        assert f"of volumes, {unit}<" in page and energy in page
