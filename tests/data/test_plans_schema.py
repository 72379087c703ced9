"""Plans of strangers are as nnU-Net writes them, or refused in one sentence, before anything is built from them."""

from __future__ import annotations

import copy
import time
from typing import Any

import pytest
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from stock_folder import PLANS

from nndiffseg.data.plans_schema import check_plans
from nndiffseg.errors import UserError
from nndiffseg.methods.protocol import planned_network

OLD = {
    "UNet_class_name": "PlainConvUNet",
    "UNet_base_num_features": 4,
    "unet_max_num_features": 16,
    "n_conv_per_stage_encoder": [2, 2, 2],
    "n_conv_per_stage_decoder": [2, 2],
    "num_pool_per_axis": [2, 2],
    "pool_op_kernel_sizes": [[1, 1], [2, 2], [2, 2]],
    "conv_kernel_sizes": [[3, 3]] * 3,
}


def changed(place: str, value: Any, plans: dict[str, Any] = PLANS) -> dict[str, Any]:
    """The plans with another value at ``a.b.c``; None takes the key out."""
    content = copy.deepcopy(plans)
    *above, last = place.split(".")
    part = content
    for key in above:
        part = part[key]
    if value is None:
        del part[last]
    else:
        part[last] = value
    return content


def test_plans_of_nnunet_pass_in_milliseconds():
    start = time.monotonic()
    for _ in range(10):
        check_plans(PLANS, "The plans")
    assert (time.monotonic() - start) / 10 < 0.1


def test_plans_from_before_nnunet_2_5_pass_and_are_bounded_too():
    configuration = {k: v for k, v in PLANS["configurations"]["2d"].items() if k != "architecture"} | OLD
    old = PLANS | {"configurations": {"2d": configuration}}
    check_plans(old, "The plans")
    architecture = PlansManager(copy.deepcopy(old)).get_configuration("2d").configuration["architecture"]
    assert sum(p.numel() for p in planned_network(architecture, 1, 2).parameters()) > 0
    with pytest.raises(UserError, match="3 instead of 4 stages"):
        check_plans(changed("configurations.2d.n_conv_per_stage_encoder", [2] * 4, old), "The plans")


def test_what_a_configuration_inherits_counts():
    plans = changed("configurations.large", {"inherits_from": "2d", "batch_size": 4})
    check_plans(plans, "The plans")
    with pytest.raises(UserError, match=r"no valid patch_size of 'large'"):
        check_plans(changed("configurations.large.patch_size", [32], plans), "The plans")


ARCHITECTURE = "configurations.2d.architecture.arch_kwargs"


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("dataset_name", None, "no valid dataset_name"),
        ("image_reader_writer", None, "no valid image_reader_writer"),
        ("transpose_forward", [0, 1], "no valid transpose_forward"),
        ("transpose_forward", [0, 0, 1], "order is not undone"),
        ("transpose_backward", [2, 1, 0], "order is not undone"),
        ("configurations", {}, "no valid configurations"),
        ("configurations.2d.patch_size", [32], "no valid patch_size"),
        ("configurations.2d.patch_size", [32, -32], "no valid patch_size.1"),
        ("configurations.2d.patch_size", [32, "32"], "no valid patch_size.1"),
        ("configurations.2d.patch_size", [2**16, 2**16], "larger patches"),
        ("configurations.2d.patch_size", [30, 32], "patch that its strides do not divide"),
        ("configurations.2d.batch_size", 10**9, "no valid batch_size"),
        ("configurations.2d.batch_size", True, "no valid batch_size"),
        ("configurations.2d.spacing", [0, 1], "no valid spacing"),
        ("configurations.2d.spacing", [float("nan"), 1], "no valid spacing"),
        ("configurations.2d.spacing", [float("inf"), 1], "no valid spacing"),
        ("configurations.2d.spacing", None, "no valid spacing"),
        ("configurations.2d.use_mask_for_norm", [True, False], "of different length"),
        ("configurations.2d.normalization_schemes", ["CTNormalization"], "without the intensities of channel 0"),
        ("configurations.2d.resampling_fn_data_kwargs", {"order": 10**6}, "no valid resampling_fn_data_kwargs.order"),
        ("configurations.2d.resampling_fn_data_kwargs", {"unknown": 1}, "no valid resampling_fn_data_kwargs.unknown"),
        ("configurations.2d.diffusion", {"options": []}, "no valid diffusion.options"),
        (f"{ARCHITECTURE}.n_stages", 10**9, "no valid architecture.arch_kwargs.n_stages"),
        (f"{ARCHITECTURE}.n_stages", 4, "3 instead of 4 stages"),
        (f"{ARCHITECTURE}.features_per_stage", [10**9, 8, 16], "no valid architecture.arch_kwargs.features_per_stage"),
        (f"{ARCHITECTURE}.features_per_stage", [8192, 8192, 8192], "more weights than any network has"),
        (f"{ARCHITECTURE}.kernel_sizes", [[3, 3], [3, 3], [2, 3]], "even size"),
        (f"{ARCHITECTURE}.strides", [[1, 1, 1]] * 3, "other than 2 axes"),
        (f"{ARCHITECTURE}.conv_op", "torch.nn.Conv3d", "other than 2 axes"),
        (f"{ARCHITECTURE}.n_conv_per_stage", None, "no number of convolutions"),
        (f"{ARCHITECTURE}.n_conv_per_stage_decoder", [2, 10**9], "no valid architecture"),
        (f"{ARCHITECTURE}.input_channels", 3, "no valid architecture.arch_kwargs.input_channels"),
        (f"{ARCHITECTURE}.norm_op_kwargs", {"eps": "tiny"}, "no valid architecture.arch_kwargs.norm_op_kwargs.eps"),
    ],
)
def test_what_no_planner_writes_is_refused(place, value, message):
    with pytest.raises(UserError, match=message) as raised:
        check_plans(changed(place, value), "The plans")
    assert "\n" not in str(raised.value)


def test_a_class_that_the_plans_do_not_ask_to_import_is_one_sentence():
    plans = changed("configurations.2d.architecture._kw_requires_import", ["norm_op", "dropout_op", "nonlin"])
    with pytest.raises(UserError, match="no network that nnU-Net can build"):
        planned_network(plans["configurations"]["2d"]["architecture"], 1, 2)
