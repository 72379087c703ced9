"""Planners on real and generated datasets, read back by nnU-Net's own plans handler."""

from __future__ import annotations

import contextlib
import copy
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
    ResEncUNetPlanner,
)
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from stock_folder import PLANS

from nndiffseg import planners
from nndiffseg.data.check import read_dataset_json, training_cases
from nndiffseg.data.folders import Folders, configure_folders
from nndiffseg.data.preprocessing import FINGERPRINT, extract_fingerprint
from nndiffseg.errors import UserError
from nndiffseg.methods.latent.method import LatentDiffusion
from nndiffseg.methods.protocol import MethodPlan
from nndiffseg.methods.settings import DiffusionSettings
from nndiffseg.planners import DiffSegPlanner, DiffSegPlannerL, DiffSegPlannerS
from nndiffseg.planning import memory
from nndiffseg.planning.cascade import plan_cascade
from nndiffseg.planning.cost import Architecture
from nndiffseg.planning.section import Section


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return configure_folders(tmp_path / "raw", tmp_path / "preprocessed", tmp_path / "results")


CACHE: dict[str, bytes] = {}


def fingerprint(folder: Path, folders: Folders, key: str | None = None) -> str:
    """Extracts the fingerprint, once for all datasets of the same ``key``: nnU-Net draws 1e8 voxels for it."""
    file = folders.preprocessed / folder.name / FINGERPRINT
    if key in CACHE:
        file.parent.mkdir(parents=True)
        file.write_bytes(CACHE[key])
        return folder.name
    content = read_dataset_json(folder)
    extract_fingerprint(training_cases(folder, content), content, file.parent, progress=False)
    if key is not None:
        CACHE[key] = file.read_bytes()
    return folder.name


def plan(planner: type[ResEncUNetPlanner], dataset: str, **options: Any) -> Any:
    with contextlib.redirect_stdout(io.StringIO()):
        made = planner(dataset, **options)
        made.plan_experiment()
    return made


def read(folders: Folders, dataset: str, name: str) -> dict[str, Any]:
    return json.loads((folders.preprocessed / dataset / f"{name}.json").read_text())


@pytest.fixture
def tiny(make_dataset: Callable[..., Path], folders: Folders) -> str:
    return fingerprint(make_dataset(folders.raw, cases=4), folders, "tiny")


@pytest.fixture
def hippocampus_plans(hippocampus: Path, tmp_path: Path) -> Callable[..., Any]:
    folders = configure_folders(hippocampus.parent, tmp_path / "preprocessed", tmp_path / "results")
    fingerprint(hippocampus, folders, "hippocampus")
    return lambda planner, **options: plan(planner, hippocampus.name, **options)


@pytest.mark.parametrize("planner", [DiffSegPlannerS, DiffSegPlanner, DiffSegPlannerL])
def test_hippocampus_gets_a_stride_4_latent(hippocampus_plans: Callable[..., Any], planner: type) -> None:
    made = hippocampus_plans(planner)
    section = made.plans["configurations"]["3d_fullres"]["diffusion"]
    settings = DiffusionSettings.from_plan(section["settings"])
    assert settings.latent_stride == (4, 4, 4)
    assert 8 <= settings.latent_channels <= 16
    assert section["cost"]["samples_to_image_ratio"] <= (3.0 if planner is DiffSegPlannerS else 1.0)
    assert len(section["rate_distortion"]) > 10
    assert section["reason"] in " ".join(made.report.split())
    assert set(section["thickness"]) == {"Anterior", "Posterior"}


def test_hippocampus_image_network_of_size_m_is_nnunets(hippocampus_plans: Callable[..., Any]) -> None:
    ours = hippocampus_plans(DiffSegPlanner).plans["configurations"]["3d_fullres"]
    stock = hippocampus_plans(ResEncUNetPlanner).plans["configurations"]["3d_fullres"]
    assert ours["architecture"] == stock["architecture"]
    assert ours["patch_size"] == stock["patch_size"]
    assert ours["batch_size"] <= stock["batch_size"]


def test_size_s_is_small(hippocampus_plans: Callable[..., Any]) -> None:
    configurations = hippocampus_plans(DiffSegPlannerS).plans["configurations"]
    kwargs = configurations["3d_fullres"]["architecture"]["arch_kwargs"]
    assert list(kwargs["features_per_stage"]) == [16, 32, 64, 128]
    assert list(kwargs["n_blocks_per_stage"]) == [1, 2, 2, 2]
    assert configurations["3d_fullres"]["batch_size"] <= 2
    assert configurations["2d"]["batch_size"] <= 16
    assert not any("trainers" in c["diffusion"] for c in configurations.values()), "every method fits 3 GB here"


@pytest.mark.parametrize("name", planners.PLANNERS)
def test_plans_hold_everything_and_round_trip(tiny: str, folders: Folders, name: str) -> None:
    made = plan(getattr(planners, name), tiny)
    plans = read(folders, tiny, made.plans_identifier)
    assert made.plans_identifier == name.replace("DiffSegPlanner", "nnDiffSegPlans")
    assert set(plans["configurations"]) == {"2d", "3d_fullres"}
    for name_c, configuration in plans["configurations"].items():
        settings = DiffusionSettings.from_configuration(configuration)
        assert json.loads(json.dumps(settings.to_plan())) == configuration["diffusion"]["settings"]
        assert configuration["data_identifier"] == f"nnUNetPlans_{name_c}"
        assert configuration["preprocessor_name"] == "DefaultPreprocessor"
        assert configuration["diffusion"]["cost"]["training_memory_gb"]["all_networks"] > 0


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_stock_nnunet_and_nndiffseg_build_the_planned_networks(tiny: str, folders: Folders, configuration: str) -> None:
    plan(DiffSegPlannerS, tiny)
    manager = PlansManager(read(folders, tiny, "nnDiffSegPlansS")).get_configuration(configuration)
    image = torch.zeros(1, 1, *manager.patch_size)
    stock = get_network_from_plans(
        manager.network_arch_class_name,
        manager.network_arch_init_kwargs,
        manager.network_arch_init_kwargs_req_import,
        1,
        3,
        deep_supervision=False,
    )
    model = LatentDiffusion(MethodPlan.of(manager, 1, 3)).network().eval()
    with torch.no_grad():
        assert stock(image).shape == model(image).shape == (1, 3, *manager.patch_size)


def test_nnunets_own_plans_stay_untouched(tiny: str, folders: Folders) -> None:
    plan(ResEncUNetPlanner, tiny)
    file = folders.preprocessed / tiny / "nnUNetResEncUNetPlans.json"
    before = file.read_bytes()
    plan(DiffSegPlanner, tiny)
    assert file.read_bytes() == before
    for name in ("nnUNetPlans", "nnUNetResEncUNetPlans"):
        with pytest.raises(UserError, match="belongs to nnU-Net"):
            DiffSegPlanner(tiny, plans_name=name)


@pytest.mark.parametrize("name", ["../elsewhere", "a__b", "", ".hidden", "two words"])
def test_names_that_break_folders_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="cannot name plans"):
        planners.check_plans_name(name)


def test_foreign_plans_are_not_overwritten(tiny: str, folders: Folders) -> None:
    plan(ResEncUNetPlanner, tiny, plans_name="mine")
    with pytest.raises(UserError, match="not made by nndiffseg"):
        plan(DiffSegPlanner, tiny, plans_name="mine")


def test_custom_configurations_survive_planning_again(tiny: str, folders: Folders) -> None:
    made = plan(DiffSegPlannerS, tiny)
    file = folders.preprocessed / tiny / "nnDiffSegPlansS.json"
    plans = json.loads(file.read_text())
    plans["configurations"]["my_3d"] = {"inherits_from": "3d_fullres", "batch_size": 3}
    file.write_text(json.dumps(plans))
    made = plan(DiffSegPlannerS, tiny)
    assert made.plans["configurations"]["my_3d"]["batch_size"] == 3
    assert not list(file.parent.glob(".*tmp"))


def test_planning_again_works_on_a_read_only_original(tiny: str, folders: Folders) -> None:
    (folders.raw / tiny / "dataset.json").chmod(0o444)
    plan(DiffSegPlannerS, tiny)
    copy = folders.preprocessed / tiny / "dataset.json"
    copy.chmod(0o444)
    plan(DiffSegPlannerS, tiny)
    assert copy.read_bytes() == (folders.raw / tiny / "dataset.json").read_bytes()


def test_another_target_spacing_keeps_its_own_data(tiny: str, folders: Folders) -> None:
    made = plan(DiffSegPlannerS, tiny, overwrite_target_spacing=[2.0, 2.0, 2.0], plans_name="coarse")
    assert made.plans["configurations"]["3d_fullres"]["data_identifier"] == "coarse_3d_fullres"
    assert made.plans["configurations"]["2d"]["data_identifier"] == "coarse_2d"


def test_data_of_differently_preprocessing_nnunet_plans_are_not_shared(tiny: str, folders: Folders) -> None:
    plan(ResEncUNetPlanner, tiny)
    file = folders.preprocessed / tiny / "nnUNetResEncUNetPlans.json"
    plans = json.loads(file.read_text())
    plans["configurations"]["3d_fullres"]["normalization_schemes"] = ["CTNormalization"]
    file.write_text(json.dumps(plans))
    made = plan(DiffSegPlannerS, tiny)
    assert made.plans["configurations"]["3d_fullres"]["data_identifier"] == "nnDiffSegPlansS_3d_fullres"
    assert made.plans["configurations"]["2d"]["data_identifier"] == "nnUNetPlans_2d"


def test_two_dimensional_datasets_get_2d_only(make_dataset: Callable[..., Path], folders: Folders) -> None:
    dataset = fingerprint(make_dataset(folders.raw, shape=(64, 48), file_ending=".png"), folders)
    configurations = plan(DiffSegPlannerS, dataset).plans["configurations"]
    assert set(configurations) == {"2d"}
    assert len(configurations["2d"]["diffusion"]["settings"]["latent_stride"]) == 2


def test_thick_slices_give_anisotropic_latents(make_dataset: Callable[..., Path], folders: Folders) -> None:
    folder = make_dataset(folders.raw, shape=(48, 64, 12), spacing=(1.0, 1.0, 5.0))
    made = plan(DiffSegPlannerS, fingerprint(folder, folders))
    assert made.plans["transpose_forward"] == [2, 0, 1]
    settings = made.plans["configurations"]["3d_fullres"]["diffusion"]["settings"]
    first, *others = settings["latent_stride"]
    assert first < min(others)
    strides = made.plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["strides"]
    product = torch.tensor(strides[: settings["latent_stage"] + 1]).prod(0).tolist()
    assert list(settings["latent_stride"]) == product


def test_large_images_get_a_cascade_as_nnunet_plans_it(make_dataset: Callable[..., Path], folders: Folders) -> None:
    folder = make_dataset(folders.raw, cases=2, shape=(64, 64, 64))
    made = plan(DiffSegPlannerS, fingerprint(folder, folders), gpu_memory_target_in_gb=0.1)
    configurations = made.plans["configurations"]
    assert set(configurations) == {"2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres"}
    assert configurations["3d_lowres"]["data_identifier"] == "nnDiffSegPlansS_3d_lowres"
    manager = PlansManager(read(folders, folder.name, "nnDiffSegPlansS"))
    low, full, cascade = (manager.get_configuration(n) for n in ("3d_lowres", "3d_fullres", "3d_cascade_fullres"))
    assert low.next_stage_names == ["3d_cascade_fullres"] and full.next_stage_names is None
    assert cascade.previous_stage_name == "3d_lowres" and cascade.data_identifier == full.data_identifier
    assert configurations["3d_cascade_fullres"]["inherits_from"] == "3d_fullres"
    assert cascade.patch_size == full.patch_size and cascade.batch_size == full.batch_size
    own, inherited = (c.configuration["diffusion"] for c in (cascade, full))
    assert own["settings"] == inherited["settings"]
    memory_of = [d["cost"]["training_memory_gb"]["all_networks"] for d in (inherited, own)]
    assert memory_of[0] < memory_of[1] < 1.2 * memory_of[0], "two channels more, of many features"
    assert "3d_cascade_fullres: 3d_fullres with the segmentation of 3d_lowres as 2 more channels" in made.report
    assert set(own.get("trainers", {})) == set(inherited.get("trainers", {}))
    _check_many_labels(made, inherited)


def _check_many_labels(made: Any, inherited: dict[str, Any]) -> None:
    """The input of three hundred labels takes memory from the batch; that of one label fits beside them."""
    plans = copy.deepcopy(made.plans)
    plans["configurations"]["3d_fullres"] |= {"patch_size": [64, 64, 64], "batch_size": 4}
    arch = Architecture.of(plans["configurations"]["3d_fullres"], 1, 3)
    settings = DiffusionSettings.from_plan(inherited["settings"])
    section = Section(arch, (1.0,) * 3, made.size, settings, "", {}, [], {})
    few, many = (plan_cascade(plans, section, 1, labels, 2.0, made._image_network_gb) for labels in (1, 300))
    assert not {"patch_size", "batch_size"} & set(few.configuration)
    assert few.batch == 4 and many.batch < 4 and many.configuration["batch_size"] == many.batch
    assert many.image_network_gb / many.batch > 1.5 * few.image_network_gb / few.batch


def test_regions_are_planned_for(make_dataset: Callable[..., Path], folders: Folders) -> None:
    dataset = fingerprint(make_dataset(folders.raw, regions=True), folders, "tiny")
    made = plan(DiffSegPlannerS, dataset)
    assert made.heads == 2
    worst = {p["worst"] for p in made.plans["configurations"]["3d_fullres"]["diffusion"]["rate_distortion"]}
    assert worst <= {"whole", "core"}


def test_ignored_voxels_are_no_structure_of_the_plans(make_dataset: Callable[..., Path], folders: Folders) -> None:
    """Half of the slices are ignored: structures are as thick as they are, and boundaries are those of the whole labels."""
    sections = []
    for name, ignore in (("Dataset901_Tiny", False), ("Dataset902_Half", True)):
        made = plan(DiffSegPlannerS, fingerprint(make_dataset(folders.raw, name=name, ignore=ignore), folders, "tiny"))
        assert made.heads == 3
        sections.append(made.plans["configurations"]["3d_fullres"]["diffusion"])
    whole, half = sections
    assert set(half["thickness"]) == {"shell", "core"} and {p["worst"] for p in half["rate_distortion"]} <= {"shell", "core"}
    for name, thickness in half["thickness"].items():
        assert thickness["median_mm"] == pytest.approx(whole["thickness"][name]["median_mm"], abs=1.01)
    for a, b in zip(half["rate_distortion"], whole["rate_distortion"], strict=True):
        assert a["dice_mean"] == pytest.approx(b["dice_mean"], abs=0.08)


def test_the_light_networks_take_memory_from_the_image_network(make_dataset: Callable[..., Path], folders: Folders) -> None:
    folder = make_dataset(folders.raw, cases=2, shape=(64, 64, 64))
    dataset = fingerprint(folder, folders)
    size = [1, 1]
    for i, planner in enumerate((DiffSegPlanner, ResEncUNetPlanner)):
        made = plan(planner, dataset, gpu_memory_target_in_gb=0.6)
        configuration = made.plans["configurations"]["3d_fullres"]
        size[i] = int(torch.tensor(configuration["patch_size"]).prod()) * configuration["batch_size"]
        if planner is DiffSegPlanner:
            assert configuration["diffusion"]["cost"]["training_memory_gb"]["all_networks"] < 0.75
            _check_methods(configuration, made.report)
    assert size[0] < size[1]


def _check_methods(configuration: dict[str, Any], report: str) -> None:
    """The other methods keep to the same memory with patches that are multiples of the network's strides."""
    entries = configuration["diffusion"]["trainers"]
    assert set(entries) == {f"nnDiffSegTrainer{name}" for name in ("CDAL", "LDSeg", "MedSegDiffV2")}
    stride = torch.tensor(configuration["architecture"]["arch_kwargs"]["strides"]).prod(0)
    for entry in entries.values():
        patch, planned = (torch.tensor(p) for p in (entry["patch_size"], entry["planned"]["patch_size"]))
        assert planned.tolist() == list(configuration["patch_size"]) and entry["planned"]["target_gb"] == 0.6
        assert (patch % stride == 0).all() and (patch <= planned).all() and entry["batch_size"] >= 2
        assert entry["training_memory_gb"] <= 0.6
    changed = entries["nnDiffSegTrainerMedSegDiffV2"]
    assert changed["patch_size"] != list(configuration["patch_size"]) and changed["batch_size"] == 2
    assert memory.sentence(changed) in " ".join(report.split())


def test_no_processes_for_augmentation_are_no_threads_of_the_planning(monkeypatch):
    """nnU-Net's estimate sets as many threads of torch as ``nnUNet_n_proc_DA`` says, and 0 is an error."""
    kwargs = PLANS["configurations"]["2d"]["architecture"]["arch_kwargs"]
    imported = ("conv_op", "norm_op", "dropout_op", "nonlin")
    arguments = ((32, 32), 1, 3, "dynamic_network_architectures.architectures.unet.PlainConvUNet", kwargs, imported)
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    theirs = ResEncUNetPlanner.static_estimate_VRAM_usage(*arguments)
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    assert DiffSegPlanner.static_estimate_VRAM_usage(*arguments) == theirs > 0
