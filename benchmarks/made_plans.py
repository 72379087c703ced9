"""Plans of any image size and number of classes, made without a dataset, for measurements of time and memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.compare.planning import PLANNERS, PLANS

#: per planner: first and largest number of features (2D, 3D), blocks of the encoder's first stages
WIDTHS = {
    "S": (16, (128, 128), (1, 2, 2, 2, 2, 2, 2)),
    "M": (32, (512, 320), (1, 3, 4, 6, 6, 6, 6)),
    "L": (32, (512, 320), (1, 3, 4, 6, 6, 6, 6)),
}
LARGEST_PATCH = {2: 512, 3: 128}
BATCH = 2
#: stage of the latent: stride 4
LATENT_STAGE = 2


@dataclass(frozen=True)
class Point:
    """One setting: edge length of the image, its axes, samples, sampling steps (None: the planner's), classes."""

    size: int
    axes: int
    samples: int = 16
    steps: int | None = None
    classes: int = 3


def made_plans(point: Point, planner: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Plans with one configuration ``made``, and dataset.json, for images of this kind.

    What nnU-Net's planner would measure on a dataset is fixed here: one channel, isotropic spacing, a batch of two, pooling
    by two along all axes down to an edge of 4 to 7 voxels.
    """
    patch = (min(point.size, LARGEST_PATCH[point.axes]),) * point.axes
    arch = _architecture(point.axes, patch[0], planner)
    configuration = _configuration(point, arch, patch)
    configuration["diffusion"] = {"settings": _light(point, configuration["architecture"], patch, planner), "regions": False}
    plans = {
        "dataset_name": "Dataset999_Made",
        "plans_name": PLANS[planner],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "label_manager": "LabelManager",
        "original_median_spacing_after_transp": [1.0] * 3,
        "experiment_planner_used": PLANNERS[planner],
        "foreground_intensity_properties_per_channel": {},
        "configurations": {"made": configuration},
    }
    labels = {"background": 0, **{f"structure {i}": i for i in range(1, point.classes)}}
    return plans, {"channel_names": {"0": "noise"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}


def _architecture(axes: int, edge: int, planner: str) -> dict[str, Any]:
    """Arguments of nnU-Net's residual-encoder U-Net for a patch of this edge."""
    first, largest, blocks = WIDTHS[planner]
    depth = min(len(blocks), edge.bit_length() - 2)
    return {
        "n_stages": depth,
        "features_per_stage": [min(first * 2**s, largest[0 if axes == 2 else 1]) for s in range(depth)],
        "conv_op": f"torch.nn.modules.conv.Conv{axes}d",
        "kernel_sizes": [[3] * axes] * depth,
        "strides": [[1] * axes] + [[2] * axes] * (depth - 1),
        "n_blocks_per_stage": list(blocks[:depth]),
        "n_conv_per_stage_decoder": [1] * (depth - 1),
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{axes}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }


def _light(point: Point, architecture: dict[str, Any], patch: tuple[int, ...], planner: str) -> dict[str, Any]:
    """Settings of the light networks, as the planner chooses them."""
    import nndiffseg.planners as planners
    from nndiffseg.planning.cost import Architecture
    from nndiffseg.planning.decisions import candidate

    size = getattr(planners, PLANNERS[planner]).size
    channels = 8 if point.classes <= 10 else 16  # more classes need a wider latent
    return candidate(Architecture(architecture, 1, point.classes, patch), LATENT_STAGE, size, channels).settings.to_plan()


def _configuration(point: Point, arch: dict[str, Any], patch: tuple[int, ...]) -> dict[str, Any]:
    """nnU-Net's part of the configuration."""
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    kinds = ("data", "seg", "probabilities")
    return {
        "data_identifier": "made",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": BATCH,
        "patch_size": list(patch),
        "median_image_size_in_voxels": [point.size] * point.axes,
        "spacing": [1.0] * point.axes,
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "batch_dice": point.axes == 2,
        **{f"resampling_fn_{k}": "resample_data_or_seg_to_shape" for k in kinds},
        **{f"resampling_fn_{k}_kwargs": {**resampling, "is_seg": k == "seg"} for k in kinds},
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
            "arch_kwargs": arch,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }
