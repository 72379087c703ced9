"""Plans name classes and functions that nnU-Net imports: only those that its own plans can hold are let through."""

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
from nnunetv2.experiment_planning.experiment_planners import default_experiment_planner, resencUNet_planner
from nnunetv2.experiment_planning.experiment_planners.resampling import planners_no_resampling, resample_with_torch
from nnunetv2.experiment_planning.experiment_planners.residual_unets import residual_encoder_unet_planners as residual
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from tiny_model import model_folder, raw_images, results  # noqa: F401

from nndiffseg import planners
from nndiffseg.cli.plan_and_preprocess import main as plan_command
from nndiffseg.data import plan_names
from nndiffseg.data.check import read_dataset_json, training_cases
from nndiffseg.data.checkpoint import load_checkpoint
from nndiffseg.data.folders import configure_folders
from nndiffseg.data.images import find_reader
from nndiffseg.data.plan_names import check_plan_names
from nndiffseg.data.preprocessing import extract_fingerprint, preprocess_configuration
from nndiffseg.errors import UserError
from nndiffseg.inference.model_folder import trained_models
from nndiffseg.methods.protocol import MethodPlan
from nndiffseg.planning.memory import image_network_bytes
from nndiffseg.report.slices import report_reader
from nndiffseg.trainers import nnDiffSegTrainer
from nndiffseg.uncertainty.evaluation import evaluate_predictions

STOCK = (
    default_experiment_planner.ExperimentPlanner,
    resencUNet_planner.ResEncUNetPlanner,
    residual.ResEncUNetPlanner,
    residual.nnUNetPlannerResEncM,
    residual.nnUNetPlannerResEncL,
    residual.nnUNetPlannerResEncXL,
    resample_with_torch.nnUNetPlannerResEncL_torchres,
    planners_no_resampling.nnUNetPlannerResEncL_noResampling,
)
OWN = tuple(getattr(planners, name) for name in planners.PLANNERS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, make_dataset: Callable[..., Path]) -> Path:
    """A tiny dataset and its fingerprint."""
    base = tmp_path_factory.mktemp("planned")
    raw = make_dataset(base / "raw", cases=4)
    content = read_dataset_json(raw)
    extract_fingerprint(training_cases(raw, content), content, base / "preprocessed" / raw.name, progress=False)
    return base


@pytest.fixture
def plans(model_folder: Path) -> dict[str, Any]:  # noqa: F811
    """Plans of the smallest planner, to be spoilt."""
    return json.loads((model_folder / "plans.json").read_text())


def architecture(plans: dict[str, Any], configuration: str = "3d_fullres") -> dict[str, Any]:
    return plans["configurations"][configuration]["architecture"]


def refusal(plans: Any) -> str:
    with pytest.raises(UserError) as error:
        check_plan_names(plans, "The plans of a stranger")
    sentence = str(error.value)
    assert sentence.startswith("The plans of a stranger ") and sentence.endswith(".") and "\n" not in sentence
    assert len(sentence) < 400
    return sentence


# ---- plans of nnU-Net and nndiffseg -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "planner", [*STOCK, *OWN], ids=lambda planner: f"{planner.__module__.split('.')[-1]}-{planner.__name__}"
)
def test_plans_of_every_planner_pass(folders: Path, planner: type) -> None:
    configure_folders(folders / "raw", folders / "preprocessed", folders / "results", quiet=True)
    with contextlib.redirect_stdout(io.StringIO()):
        made = planner(901)
        made.plan_experiment()
    file = folders / "preprocessed" / "Dataset901_Tiny" / f"{made.plans_identifier}.json"
    check_plan_names(made.plans, "The plans")
    check_plan_names(json.loads(file.read_text()), str(file))


def test_a_configuration_that_inherits_and_changes_sizes_only_passes(plans: dict[str, Any]) -> None:
    plans["configurations"]["3d_small_batch"] = {"inherits_from": "3d_fullres", "batch_size": 1}
    check_plan_names(plans, "The plans")


@pytest.mark.parametrize("network", ["PlainConvUNet", "ResidualEncoderUNet"])
def test_plans_from_before_nnunet_named_the_architecture_pass_as_nnunet_completes_them(network: str) -> None:
    old = {
        "UNet_class_name": network,
        "UNet_base_num_features": 8,
        "unet_max_num_features": 16,
        "n_conv_per_stage_encoder": [1, 1],
        "n_conv_per_stage_decoder": [1],
        "num_pool_per_axis": [1, 1],
        "pool_op_kernel_sizes": [[1, 1], [2, 2]],
        "conv_kernel_sizes": [[3, 3], [3, 3]],
        "patch_size": [16, 16],
    }
    plans = {"configurations": {"2d": old}}
    check_plan_names(plans, "The plans")
    with pytest.warns(UserWarning, match="old nnU-Net plans"):
        manager = PlansManager(plans).get_configuration("2d")
    plan_names.check_architecture(manager.configuration["architecture"], "The plans")


@pytest.mark.parametrize("key", sorted(plan_names.ARCHITECTURE_NAMES))
def test_every_name_that_is_let_through_exists_and_is_a_module_of_torch_or_a_block(key: str) -> None:
    from pydoc import locate

    for name in plan_names.ARCHITECTURE_NAMES[key]:
        found = locate(name)
        assert isinstance(found, type) and issubclass(found, torch.nn.Module), name


# ---- foreign plans ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("nonlin", "subprocess.Popen"),
        ("nonlin", "torch.nn.modules.conv.Conv3d"),
        ("nonlin", "torch.nn.LeakyReLU\n"),
        ("nonlin", ["torch.nn.LeakyReLU"]),
        ("conv_op", "os.system"),
        ("norm_op", "builtins.eval"),
        ("dropout_op", "planted_module.Dropout"),
        ("block", "runpy.run_path"),
        ("n_stages", "os.system"),
        ("norm_op_kwargs", "builtins.exec"),
        ("norm_op_kwargs", {"nonlin": "subprocess.Popen"}),
        ("anything", "torch.nn.LeakyReLU"),
    ],
)
def test_a_foreign_name_among_the_networks_arguments_is_refused(plans: dict[str, Any], key: str, value: Any) -> None:
    section = architecture(plans)
    section["arch_kwargs"][key] = value
    section["_kw_requires_import"] = [*section["_kw_requires_import"], key]
    assert key in refusal(plans) or "nonlin" in refusal(plans)


def test_a_foreign_name_is_refused_though_the_plans_ask_for_no_import(plans: dict[str, Any]) -> None:
    architecture(plans)["_kw_requires_import"] = []
    architecture(plans)["arch_kwargs"]["nonlin"] = "subprocess.Popen"
    assert "'subprocess.Popen'" in refusal(plans)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("network_class_name", "os.system"),
        ("network_class_name", "planted_module.dynamic_network_architectures.architectures.unet.PlainConvUNet"),
        ("network_class_name", None),
        ("network_class_name", ["dynamic_network_architectures.architectures.unet.PlainConvUNet"]),
        ("arch_kwargs", "subprocess.Popen"),
        ("arch_kwargs", {1: 2}),
        ("arch_kwargs", {"norm_op_kwargs": {1: 2}}),
        ("_kw_requires_import", "nonlin"),
        ("_kw_requires_import", [1]),
        ("_kw_requires_import", None),
        ("_kw_requires_import", ["absent"]),
    ],
)
def test_a_foreign_architecture_is_refused(plans: dict[str, Any], key: str, value: Any) -> None:
    architecture(plans)[key] = value
    refusal(plans)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("preprocessor_name", "np"),
        ("preprocessor_name", ["DefaultPreprocessor"]),
        ("resampling_fn_data", "recursive_find_python_class"),
        ("resampling_fn_seg", "join"),
        ("resampling_fn_probabilities", None),
        ("normalization_schemes", ["np"]),
        ("normalization_schemes", "ZScoreNormalization"),
        ("normalization_schemes", None),
        ("UNet_class_name", "os.system"),
        ("architecture", "os.system"),
        ("inherits_from", 3),
        ("inherits_from", "absent"),
        ("inherits_from", "3d_fullres"),
    ],
)
def test_a_foreign_name_in_a_configuration_is_refused(plans: dict[str, Any], key: str, value: Any) -> None:
    plans["configurations"]["3d_fullres"][key] = value
    refusal(plans)


def test_configurations_that_inherit_from_each_other_are_refused(plans: dict[str, Any]) -> None:
    plans["configurations"] |= {"a": {"inherits_from": "b"}, "b": {"inherits_from": "c"}, "c": {"inherits_from": "b"}}
    assert "inherit" in refusal(plans)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("image_reader_writer", "os"),
        ("image_reader_writer", {}),
        ("label_manager", "torch"),
        ("experiment_planner_used", "os.system"),
        ("configurations", []),
        ("configurations", {"2d": None}),
    ],
)
def test_a_foreign_name_at_the_top_of_the_plans_is_refused(plans: dict[str, Any], key: str, value: Any) -> None:
    plans[key] = value
    refusal(plans)


@pytest.mark.parametrize("content", [None, [], "x", {}, {"configurations": None}])
def test_what_are_no_plans_is_refused(content: Any) -> None:
    refusal(content)


@pytest.mark.parametrize("name", ["..", "../..", "/etc", "a/b", "", 3, None])
@pytest.mark.parametrize("key", ["dataset_name", "plans_name", "data_identifier"])
def test_a_name_that_becomes_a_folder_and_leads_elsewhere_is_refused(plans: dict[str, Any], key: str, name: Any) -> None:
    section = plans["configurations"]["3d_fullres"] if key == "data_identifier" else plans
    section[key] = name
    assert key in refusal(plans)


@pytest.mark.parametrize("name", ["..", "../x", "a/b"])
def test_a_configuration_whose_name_leads_elsewhere_is_refused(plans: dict[str, Any], name: str) -> None:
    plans["configurations"][name] = {"inherits_from": "2d"}
    refusal(plans)


def test_a_long_name_is_shortened(plans: dict[str, Any]) -> None:
    architecture(plans)["arch_kwargs"]["nonlin"] = "x" * 100_000
    assert "xxx" in refusal(plans)


def test_every_configuration_is_checked_not_only_the_one_in_use(plans: dict[str, Any]) -> None:
    plans["configurations"]["spare"] = copy.deepcopy(plans["configurations"]["2d"])
    architecture(plans, "spare")["arch_kwargs"]["nonlin"] = "subprocess.Popen"
    assert "spare" in refusal(plans)


# ---- the places where plans, checkpoints and dataset.json are read ----------------------------------------------------


@pytest.fixture
def evil(plans: dict[str, Any], tmp_path: Path) -> tuple[dict[str, Any], Path]:
    """Plans that make a file where a network is built from them, and that file."""
    mark = tmp_path / "mark"
    for configuration in plans["configurations"]:
        architecture(plans, configuration)["arch_kwargs"] |= {
            "nonlin": "subprocess.Popen",
            "nonlin_kwargs": {"args": ["touch", str(mark)]},
        }
    return plans, mark


def test_the_plans_do_what_they_threaten_where_nobody_checks(evil: tuple[dict[str, Any], Path]) -> None:
    plans, mark = evil
    section = architecture(plans)
    with contextlib.suppress(TypeError):  # a process is no layer
        get_network_from_plans(section["network_class_name"], section["arch_kwargs"], section["_kw_requires_import"], 2, 3)
    assert _appears(mark)


def _appears(file: Path) -> bool:
    import time

    for _ in range(100):
        if file.exists():
            return True
        time.sleep(0.05)
    return False


def test_a_trainer_refuses_foreign_plans(evil: tuple[dict[str, Any], Path], model_folder: Path) -> None:  # noqa: F811
    plans, mark = evil
    dataset_json = json.loads((model_folder / "dataset.json").read_text())
    with pytest.raises(UserError, match=r"subprocess\.Popen"):
        nnDiffSegTrainer(plans, "3d_fullres", 0, dataset_json, torch.device("cpu"))
    assert not mark.exists()


def test_no_network_is_built_from_foreign_plans(evil: tuple[dict[str, Any], Path]) -> None:
    plans, mark = evil
    manager = PlansManager(plans).get_configuration("3d_fullres")
    with pytest.raises(UserError, match=r"subprocess\.Popen"):
        MethodPlan.of(manager, 2, 3).unet()
    with pytest.raises(UserError, match=r"subprocess\.Popen"):
        image_network_bytes(manager, 2, 3)
    assert not mark.exists()


def test_preprocessing_refuses_foreign_plans_before_it_removes_anything(plans: dict[str, Any], tmp_path: Path) -> None:
    plans["configurations"]["2d"]["preprocessor_name"] = "np"
    data = tmp_path / plans["configurations"]["2d"]["data_identifier"]
    data.mkdir()
    with pytest.raises(UserError, match="preprocessor_name"):
        preprocess_configuration([], {}, plans, "2d", tmp_path, clean=True, progress=False)
    assert data.is_dir()


def test_planning_again_takes_over_no_foreign_configuration(
    folders: Path, evil: tuple[dict[str, Any], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    plans, mark = evil
    plans["configurations"]["custom"] = plans["configurations"]["3d_fullres"]
    file = folders / "preprocessed" / "Dataset901_Tiny" / "foreign.json"
    file.write_text(json.dumps(plans))
    flags = [f"--{kind}={folders / kind}" for kind in ("raw", "preprocessed", "results")]
    words = ["-d", "901", "-pl", "DiffSegPlannerS", "-overwrite_plans_name", "foreign", "--no_check", "--no_pp", "--no_pbar"]
    before = file.read_text()
    code = plan_command([*words, *flags])
    file.unlink()
    error = capsys.readouterr().err
    assert code == 2 and "subprocess.Popen" in error and error.count("\n") == 1, (code, error, before[:80])
    assert not mark.exists()


def test_a_model_with_foreign_plans_is_not_offered(evil: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    folder = tmp_path / "results" / "Dataset901_Tiny" / "nnDiffSegTrainer__X__3d_fullres"
    (folder / "fold_0").mkdir(parents=True)
    (folder / "fold_0" / "checkpoint_final.pth").touch()
    (folder / "plans.json").write_text(json.dumps(evil[0]))
    assert trained_models(tmp_path / "results") == []


@pytest.fixture
def checkpoint(model_folder: Path) -> dict[str, Any]:  # noqa: F811
    return torch.load(model_folder / "fold_0" / "checkpoint_final.pth", weights_only=True)


def test_a_checkpoint_with_its_own_plans_loads(checkpoint: dict[str, Any], plans: dict[str, Any], tmp_path: Path) -> None:
    checkpoint["init_args"]["plans"] = plans
    torch.save(checkpoint, tmp_path / "x.pth")
    assert load_checkpoint(tmp_path / "x.pth")["trainer_name"] == "nnDiffSegTrainer"


def test_a_checkpoint_with_foreign_plans_is_refused(
    checkpoint: dict[str, Any], evil: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    checkpoint["init_args"]["plans"] = evil[0]
    torch.save(checkpoint, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"x\.pth.*subprocess\.Popen"):
        load_checkpoint(tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("trainer_name", "os.path"),
        ("trainer_name", "../trainer"),
        ("trainer_name", 3),
        ("trainer_name", ""),
        ("init_args", None),
        ("init_args", {"configuration": ["2d"]}),
        ("init_args", {}),
    ],
)
def test_a_checkpoint_with_a_foreign_trainer_is_refused(
    checkpoint: dict[str, Any], tmp_path: Path, key: str, value: Any
) -> None:
    torch.save(checkpoint | {key: value}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"x\.pth"):
        load_checkpoint(tmp_path / "x.pth")


@pytest.mark.parametrize("name", ["np", "recursive_find_python_class", "os.system", 3])
def test_readers_of_strangers_are_refused(make_dataset: Callable[..., Path], tmp_path: Path, name: Any) -> None:
    raw = make_dataset(tmp_path, cases=1, shape=(8, 8, 8))
    content = json.loads((raw / "dataset.json").read_text()) | {"overwrite_image_reader_writer": name}
    (raw / "dataset.json").write_text(json.dumps(content))
    image, labels = raw / "imagesTr" / "case_000_0000.nii.gz", raw / "labelsTr"
    with pytest.raises(UserError, match="unknown reader"):
        read_dataset_json(raw)
    with pytest.raises(UserError, match="unknown reader"):
        find_reader(content, image)
    with pytest.raises(UserError, match="unknown reader"):
        evaluate_predictions(labels, labels, dataset_json=content)
    (raw / "plans.json").write_text(json.dumps({"configurations": {}, "image_reader_writer": name}))
    with pytest.raises(UserError, match="image_reader_writer"):
        report_reader(raw, content, image)


def test_a_reader_of_nnunets_is_used(make_dataset: Callable[..., Path], tmp_path: Path) -> None:
    raw = make_dataset(tmp_path, cases=1, shape=(8, 8, 8))
    for name in sorted(plan_names.READERS):
        assert find_reader({"overwrite_image_reader_writer": name}, raw / "imagesTr" / "x").__name__ == name
