"""The second stage of a cascade predicts from what the first one found, from its files or by itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from cascade_world import FIRST, SECOND, CascadeWorld, make_world, write_models
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nndiffseg.cli.predict import main
from nndiffseg.data.cases import find_cases
from nndiffseg.errors import UserError
from nndiffseg.inference.predictor import Predictor
from nndiffseg.inference.sampling import SamplingOptions
from nndiffseg.inference.stages import PreviousStage, Stage, evenly, on_grid, read_stages, with_previous

OPTIONS = ("--samples", "6", "-device", "cpu", "--disable_progress_bar", "-step_size", "1", "--disable_tta")


@pytest.fixture(scope="module")
def world(make_dataset: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> CascadeWorld:
    made = make_world(make_dataset, tmp_path_factory.mktemp("cascade"), preprocess=False, cases=2, shape=(20, 26, 22))
    write_models(made)
    (made.root / "in").mkdir()
    shutil.copy(made.images / "case_000_0000.nii.gz", made.root / "in")
    return made


@pytest.fixture(scope="module")
def first(world: CascadeWorld) -> Path:
    """What the first stage predicted of the images, with samples."""
    out = world.root / "first"
    assert (
        main(["-i", str(world.root / "in"), "-o", str(out), "-c", FIRST, "-d", "901", "--save_samples", *OPTIONS, *world.flags])
        == 0
    )
    return out


@pytest.fixture(scope="module")
def alone(world: CascadeWorld) -> Path:
    """What the second stage predicted without being given anything."""
    out = world.root / "alone"
    assert (
        main(
            ["-i", str(world.root / "in"), "-o", str(out), "-c", SECOND, "-d", "901", "--save_samples", *OPTIONS, *world.flags]
        )
        == 0
    )
    return out


def second(world: CascadeWorld, out: Path, *flags: str) -> int:
    return main(
        ["-i", str(world.root / "in"), "-o", str(out), "-m", str(world.model(SECOND)), "--save_samples", *OPTIONS, *flags]
    )


def array(file: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


def write(values: np.ndarray, geometry: sitk.Image, file: Path) -> None:
    image = sitk.GetImageFromArray(values)
    image.CopyInformation(geometry)
    sitk.WriteImage(image, str(file))


def change(file: Path, change: Callable[[sitk.Image], sitk.Image]) -> None:
    sitk.WriteImage(change(sitk.ReadImage(str(file))), str(file))


def images_of(folder: Path) -> list[Path]:
    return [file.relative_to(folder) for file in sorted(folder.rglob("*.nii.gz"))]


def test_the_first_stages_files_and_the_first_stage_itself_give_the_same(world: CascadeWorld, first: Path, alone: Path) -> None:
    out = world.root / "given"
    assert second(world, out, "-prev_stage_predictions", str(first)) == 0
    names = images_of(alone)
    assert len(names) == 1 + 3 + 6 and names == images_of(out)
    for name in names:
        assert (array(alone / name) == array(out / name)).all(), name
    settings = [
        json.loads((o / "uncertainty" / "case_000.json").read_text())["settings"]["previous_stage"] for o in (alone, out)
    ]
    assert [s["stage"] for s in settings] == [FIRST, FIRST] and settings[0]["model_sha256"] and not settings[1]["model_sha256"]


@pytest.fixture(scope="module")
def predictor(world: CascadeWorld) -> Predictor:
    return Predictor.from_folder(world.model(SECOND), device="cpu", samples=6, step_size=1, mirroring=False)


def given(predictor: Predictor, world: CascadeWorld, folder: Path) -> Stage:
    """The first case, with what the first stage predicted in a folder."""
    (case,) = find_cases(world.root / "in", predictor.dataset_json)
    (case,) = with_previous([case], folder, predictor.dataset_json, FIRST)
    return read_stages(case, predictor.plans.plans, SECOND, predictor.dataset_json)


def test_samples_start_from_samples_of_the_first_stage(
    world: CascadeWorld, first: Path, predictor: Predictor, tmp_path: Path
) -> None:
    """Other samples there change samples here, and nothing else does; without any, all start from the segmentation."""
    other = tmp_path / "other"
    shutil.copytree(first, other)
    change(other / "samples" / f"case_000_s{evenly(6)[1]:02d}.nii.gz", lambda image: image * 0)
    one, two = (predictor.predict_stage(given(predictor, world, folder), "case_000") for folder in (first, other))
    # two folds have three samples each, which start from the first three of the four
    assert [n for n in range(6) if (one.labels[n] != two.labels[n]).any()] == [2, 3]
    assert (one.probabilities != two.probabilities).any()
    shutil.rmtree(other / "samples")
    stage = given(predictor, world, other)
    assert stage.previous is not None and stage.previous.starts == 0
    none = predictor.predict_stage(stage, "case_000")
    assert all((one.labels[n] != none.labels[n]).any() for n in range(6))


def test_a_changed_prediction_of_the_first_stage_is_predicted_again(world: CascadeWorld, first: Path, tmp_path, capsys) -> None:
    folder, out = tmp_path / "first", tmp_path / "out"
    shutil.copytree(first, folder)
    shutil.rmtree(folder / "samples")
    flags = ("-prev_stage_predictions", str(folder), "--continue_prediction")
    assert second(world, out, *flags) == 0
    assert "all samples there start from the segmentation" in capsys.readouterr().out
    change(folder / "case_000.nii.gz", lambda image: image * 0)
    assert second(world, out, *flags) == 0
    text = capsys.readouterr().out
    assert "predicted again: case_000." in text and "1 cases predicted" in text
    assert second(world, out, *flags[2:]) == 2
    assert "previous_stage" in capsys.readouterr().err


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 0.8, 1.1)])
def test_label_maps_are_preprocessed_as_nnunet_preprocesses_the_files(world: CascadeWorld, tmp_path: Path, spacing) -> None:
    plans = PlansManager(json.loads((world.model(SECOND) / "plans.json").read_text()))
    content = json.loads((world.model(SECOND) / "dataset.json").read_text())
    files = tmp_path / "image.nii.gz", tmp_path / "label.nii.gz"
    for file, folder, name in zip(files, ("imagesTr", "labelsTr"), ("case_000_0000", "case_000"), strict=True):
        image = sitk.ReadImage(str(world.images.parent / folder / f"{name}.nii.gz"))
        image.SetSpacing(spacing)
        values = sitk.GetArrayFromImage(image)
        values[:4] = 0 if folder == "imagesTr" else values[:4]  # outside the image for nnU-Net, which crops it
        write(values, image, file)
    image_file, label = map(str, files)
    configuration = plans.get_configuration(SECOND)
    data, theirs, properties = DefaultPreprocessor(False).run_case([image_file], label, plans, configuration, content)
    ours = on_grid([array(files[1])], properties, plans, SECOND, data.shape[1:]).segmentation
    onehot = [convert_labelmap_to_one_hot(labels, [1, 2]) for labels in (theirs[0], ours)]
    assert (onehot[0] == onehot[1]).all() and onehot[1].any((1, 2, 3)).all()
    assert properties["shape_before_cropping"] != properties["shape_after_cropping_and_before_resampling"]


def test_python_runs_both_stages(world: CascadeWorld, alone: Path, predictor: Predictor) -> None:
    prediction = predictor.predict(world.images / "case_000_0000.nii.gz", case_id="case_000", return_samples=True)
    assert (prediction.segmentation == array(alone / "case_000.nii.gz")).all()
    assert prediction.samples is not None
    assert (prediction.samples[3] == array(alone / "samples" / "case_000_s03.nii.gz")).all()
    with pytest.raises(UserError, match="second stage of a cascade and needs what 3d_lowres found"):
        predictor.predict_preprocessed(np.zeros((1, 20, 26, 22), np.float32), "x")


def test_the_bar_counts_the_tiles_of_both_stages(world: CascadeWorld, first: Path, predictor: Predictor) -> None:
    (case,), plans = find_cases(world.root / "in", predictor.dataset_json), predictor.plans.plans
    for stage in (given(predictor, world, first), read_stages(case, plans, SECOND, predictor.dataset_json)):
        calls: list[int] = []
        predictor.predict_stage(stage, "case_000", on_tile=lambda calls=calls: calls.append(1))
        assert len(calls) == predictor.tiles_of(stage) > 0


def test_nnunets_own_prediction_is_the_head_of_the_second_stage(world: CascadeWorld, first: Path) -> None:
    theirs = nnUNetPredictor(tile_step_size=1, use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False, verbose=False)
    theirs.initialize_from_trained_model_folder(str(world.model(SECOND)), (0,))
    ours = Predictor.from_folder(world.model(SECOND), [0], device="cpu", step_size=1, mirroring=False, precision="float32")
    stage, plans = given(ours, world, first), theirs.plans_manager
    image, label = str(world.images / "case_000_0000.nii.gz"), str(first / "case_000.nii.gz")
    data, seg, _ = DefaultPreprocessor(False).run_case([image], label, plans, theirs.configuration_manager, theirs.dataset_json)
    onehot = convert_labelmap_to_one_hot(seg[0], theirs.label_manager.foreground_labels, data.dtype)
    logits = theirs.predict_logits_from_preprocessed_data(torch.from_numpy(np.vstack((data, onehot)))).float()
    head = ours.predict_parts(stage.data, "case_000", stage.previous).deterministic
    # nnU-Net sums in half precision, which is coarse far from the centres of tiles
    error = (torch.softmax(logits, 0) - head).abs().mean()
    wrong = (torch.softmax(logits, 0) - head.flip(1)).abs().mean()
    assert error < 0.05 * wrong


def test_the_second_stages_noise_is_not_the_first_ones(world: CascadeWorld) -> None:
    """Else what moved a sample of the first stage would move those that start from it once more, the same way."""
    names = {Predictor.from_folder(world.model(c), device="cpu")._noise_name("case_000") for c in (FIRST, SECOND)}
    assert names == {"case_000", "case_000 after 3d_lowres"}


def test_passes_of_the_image_network() -> None:
    """The head sees the segmentation in all mirrorings; each sample of the first stage costs one pass more."""
    options = SamplingOptions(mirror_axes=(0, 1, 2))
    without = options.passes(range(16))
    assert len(without) == 8 and sum(p.share for p in without) == pytest.approx(1) and without[3].samples == [3, 11]
    passes = options.passes(range(16), 4)
    assert [p.start for p in passes] == [0] * 8 + [1, 2, 3, 4]
    assert sum(p.share for p in passes) == pytest.approx(1) and not any(p.share for p in passes[8:])
    assert sorted(n for p in passes for n in p.samples) == list(range(16)) and passes[9].samples == [1, 5, 9, 13]
    assert len({p.flip for p in passes[8:]}) == 4
    assert [p.start for p in options.passes([0, 5, 10], 4)] == [0, 0, 0, 1, 2, 3]
    assert all(p.start == 0 for p in options.passes(range(16), 0))
    assert evenly(16) == [0, 4, 8, 12] and evenly(3) == [0, 1, 2] and evenly(0) == []


def test_labels_above_255_are_maps_too() -> None:
    labels = np.full((2, 3, 4), 300, np.uint16)
    assert (PreviousStage(labels, labels[None]).start(1) == 300).all()


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "no such folder": (lambda folder: shutil.rmtree(folder), "There is no folder"),
    "a case is missing": (
        lambda folder: (folder / "case_000.nii.gz").unlink(),
        "holds no prediction of 3d_lowres for 1 of 1 cases, such as case_000",
    ),
    "another grid": (lambda folder: change(folder / "case_000.nii.gz", lambda image: image[2:]), "differ in geometry"),
    "no label": (
        lambda folder: change(folder / "samples" / "case_000_s00.nii.gz", lambda image: image * 0 + 7),
        "holds the value 7, which is no label",
    ),
    "no image": (lambda folder: (folder / "case_000.nii.gz").write_text("x"), "case_000.nii.gz"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_predictions_of_the_first_stage_are_told(world, first, tmp_path, capsys, what) -> None:
    spoil, sentence = BAD[what]
    shutil.copytree(first, tmp_path / "first")
    spoil(tmp_path / "first")
    assert second(world, tmp_path / "out", "-prev_stage_predictions", str(tmp_path / "first")) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1
    assert not (tmp_path / "out" / "case_000.nii.gz").exists()


def test_a_missing_first_stage_is_told(world, tmp_path, capsys) -> None:
    arguments = ["-i", str(world.root / "in"), "-o", str(tmp_path / "out"), *OPTIONS]
    moved = tmp_path / world.model(SECOND).name
    shutil.copytree(world.model(SECOND), moved)
    assert main([*arguments, "-m", str(moved)]) == 2
    assert "is the second stage of a cascade, and its first one is not in" in capsys.readouterr().err
    shutil.copytree(world.model(FIRST), tmp_path / world.model(FIRST).name)
    shutil.rmtree(tmp_path / world.model(FIRST).name / "fold_1")
    assert main([*arguments, "-m", str(moved)]) == 2
    assert "holds no fold_1/checkpoint_final.pth" in capsys.readouterr().err
    plans = tmp_path / world.model(FIRST).name / "plans.json"
    content = json.loads(plans.read_text())
    content["configurations"][FIRST]["spacing"][0] *= 2
    plans.write_text(json.dumps(content))
    assert main([*arguments, "-m", str(moved), "-f", "0"]) == 2
    assert "train both stages with the same plans" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_predictions_of_a_first_stage_are_refused_by_what_is_no_second_one(world, first, tmp_path, capsys) -> None:
    arguments = ["-i", str(world.root / "in"), "-o", str(tmp_path / "out"), "-m", str(world.model(FIRST)), *OPTIONS]
    assert main([*arguments, "-prev_stage_predictions", str(first)]) == 2
    assert "3d_lowres is no second stage of a cascade" in capsys.readouterr().err
