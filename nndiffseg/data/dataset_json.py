"""What nnU-Net's ``dataset.json`` says about channels and structures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def channel_names(dataset_json: Mapping[str, Any]) -> list[str]:
    """Names of the image channels, channel 0 first; nnU-Net still reads their old key, ``modality``."""
    names = dataset_json.get("channel_names") or dataset_json["modality"]
    return [str(names[k]) for k in sorted(names, key=int)]


def structures_of(dataset_json: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Labels that make up each structure or region, without background and ignore label."""
    structures = {}
    for name, value in dataset_json["labels"].items():
        labels = tuple(int(v) for v in (value if isinstance(value, (list, tuple)) else [value]))
        if name != "ignore" and set(labels) != {0}:
            structures[name] = labels
    return structures
