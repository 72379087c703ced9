"""An untrained model folder as stock nnU-Net leaves it, with nnU-Net's own kinds of values in the checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from nndiffseg.methods.protocol import planned_network

TRAINER = "nnUNetTrainer_5epochs"
DATASET = {
    "channel_names": {"0": "MRI"},
    "labels": {"background": 0, "whole": [1, 2], "core": [2]},
    "regions_class_order": [1, 2],
    "numTraining": 7,
    "file_ending": ".nii.gz",
    "licence": "CC0",
}
PLANS = {
    "dataset_name": "Dataset902_Stock",
    "plans_name": "nnUNetPlans",
    "experiment_planner_used": "ExperimentPlanner",
    "image_reader_writer": "SimpleITKIO",
    "label_manager": "LabelManager",
    "transpose_forward": [0, 1, 2],
    "transpose_backward": [0, 1, 2],
    "configurations": {
        "2d": {
            "data_identifier": "nnUNetPlans_2d",
            "preprocessor_name": "DefaultPreprocessor",
            "batch_size": 12,
            "patch_size": [32, 32],
            "spacing": [0.5, 1.0],
            "normalization_schemes": ["ZScoreNormalization"],
            "use_mask_for_norm": [False],
            **{f"resampling_fn_{what}": "resample_data_or_seg_to_shape" for what in ("data", "seg", "probabilities")},
            **{f"resampling_fn_{what}_kwargs": {"is_seg": what == "seg"} for what in ("data", "seg", "probabilities")},
            "architecture": {
                "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
                "arch_kwargs": {
                    "n_stages": 3,
                    "features_per_stage": [4, 8, 16],
                    "conv_op": "torch.nn.modules.conv.Conv2d",
                    "kernel_sizes": [[3, 3]] * 3,
                    "strides": [[1, 1], [2, 2], [2, 2]],
                    "n_conv_per_stage": [2, 2, 2],
                    "n_conv_per_stage_decoder": [2, 2],
                    "conv_bias": True,
                    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
                    "norm_op_kwargs": {"eps": 1e-5, "affine": True},
                    "dropout_op": None,
                    "dropout_op_kwargs": None,
                    "nonlin": "torch.nn.LeakyReLU",
                    "nonlin_kwargs": {"inplace": True},
                },
                "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
            },
            "batch_dice": True,
        }
    },
}


def write_stock_folder(results: Path, fold: str = "0") -> Path:
    """One trained fold with progress plot, log, debug.json and validation summary."""
    folder = results / PLANS["dataset_name"] / f"{TRAINER}__nnUNetPlans__2d"
    place = folder / f"fold_{fold}"
    (place / "validation").mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(PLANS))
    (folder / "dataset.json").write_text(json.dumps(DATASET))
    (folder / "dataset_fingerprint.json").write_text("{}")
    network = planned_network(PLANS["configurations"]["2d"]["architecture"], 1, 2)
    checkpoint = {
        "network_weights": network.state_dict(),
        "optimizer_state": {},
        "grad_scaler_state": None,
        "logging": {"mean_fg_dice": [np.float32(0.5)], "lrs": [1e-2]},
        "_best_ema": np.float64(0.5),
        "current_epoch": 5,
        "init_args": {
            "plans": PLANS,
            "configuration": "2d",
            "fold": 0,
            "dataset_json": DATASET,
            "device": torch.device("cpu"),
        },
        "trainer_name": TRAINER,
        "inference_allowed_mirroring_axes": (0, 1),
    }
    torch.save(checkpoint, place / "checkpoint_final.pth")
    (place / "progress.png").write_bytes(b"a plot")
    (place / "training_log_1.txt").write_text("/home/somebody/secret")
    (place / "debug.json").write_text(json.dumps({"torch_version": "2.7.0", "hostname": "secret"}))
    (place / "validation" / "summary.json").write_text(json.dumps(summary()))
    return folder


def summary() -> dict:
    """As nnU-Net writes it."""
    scores = {"Dice": 0.75, "IoU": float("nan"), "TP": 3}
    return {
        "foreground_mean": scores,
        "mean": {"(1, 2)": scores | {"Dice": 0.875}, "(2,)": scores | {"Dice": 0.625}},
        "metric_per_case": [
            {
                "metrics": {"(1, 2)": scores, "(2,)": scores},
                "prediction_file": f"/home/somebody/results/case_{i}.nii.gz",
                "reference_file": rf"C:\Users\somebody\raw\case_{i}.nii.gz",
            }
            for i in range(3)
        ],
    }
