"""What nnU-Net's ``dataset.json`` says about channels and structures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from nndiffseg.errors import UserError


def channel_names(dataset_json: Mapping[str, Any], where: str = "dataset.json") -> list[str]:
    """Names of the image channels, channel 0 first; nnU-Net still reads their old key, ``modality``.

    Raises:
        UserError: they are not numbered 0, 1, 2, ..., or a name is no text.
    """
    names = dataset_json.get("channel_names") or dataset_json.get("modality")
    if not isinstance(names, Mapping):
        raise UserError(f'{where} has no channel_names; write them like {{"0": "T1", "1": "T2"}}.')
    wanted = [str(i) for i in range(len(names))]
    if sorted(map(str, names)) != sorted(wanted):
        meant = list(names.values()) if all(isinstance(n, str) and n for n in names.values()) else [str(n) for n in names]
        right = dict(zip(wanted, meant, strict=True))
        raise UserError(
            f"{where} has the channel_names {json.dumps(dict(names))[:200]}, whose keys must be the numbers of the channels; "
            f"write {json.dumps(right)[:200]}."
        )
    if not all(isinstance(name, str) and name for name in names.values()):
        raise UserError(
            f"{where} has channel_names that are no text ({json.dumps(dict(names))[:200]}); give each channel a name."
        )
    return [names[k] for k in wanted]


def check_region_order(dataset_json: Mapping[str, Any], where: str) -> None:
    """Checks that ``regions_class_order`` paints regions that are these regions again, where there are regions.

    nnU-Net writes a segmentation by painting one region after the other, each with one label. A voxel of label ``v`` gets the
    label of the last region that contains ``v``, which must lie in the same regions as ``v``.

    Args:
        dataset_json: with checked labels.
        where: the start of the message.

    Raises:
        UserError: there is no such list, or a region would be written as something else; the sentence proposes an order.
    """
    labels, order = dataset_json["labels"], dataset_json.get("regions_class_order")
    if not any(isinstance(value, (list, tuple)) and len(value) > 1 for value in labels.values()):
        return
    regions = [(name, r) for name, r in (_as_set(*item) for item in labels.items() if item[0] != "ignore") if r != {0}]
    if not isinstance(order, list) or len(order) != len(regions) or not all(type(v) is int for v in order):
        raise UserError(
            f"{where} has regions, so regions_class_order must list {len(regions)} labels, one for each region; "
            f"{_proposal(regions)}."
        )
    if (wrong := _wrongly_painted(regions, order)) is not None:
        value, painted, name, inside = wrong
        raise UserError(
            f"{where} has a regions_class_order {list(order)} that does not give the regions back: label {value} is "
            f"written as {painted}, which is {'no' if inside else 'a'} part of {name}; {_proposal(regions)}."
        )


def _wrongly_painted(regions: Sequence[tuple[str, set[int]]], order: Sequence[int]) -> tuple[int, int, str, bool] | None:
    """The first label that is painted wrongly, as what, the region in which one of both lies, and whether it is the label."""
    for value in sorted(set().union(*(r for _, r in regions)) - {0}):
        painted = [label for label, (_, region) in zip(order, regions, strict=True) if value in region][-1]
        for name, region in regions:
            if (value in region) != (painted in region):
                return value, painted, name, value in region
    return None


def _as_set(name: str, value: Any) -> tuple[str, set[int]]:
    return name, {int(v) for v in (value if isinstance(value, (list, tuple)) else [value])}


def _proposal(regions: Sequence[tuple[str, set[int]]]) -> str:
    """What to write instead: for each region a label that no later one paints over."""
    own = [region.difference(*(later for _, later in regions[i + 1 :])) for i, (_, region) in enumerate(regions)]
    names = [name for name, _ in regions]
    if all(own) and _wrongly_painted(regions, proposed := [max(labels) for labels in own]) is None:
        return f"write {proposed}, one label for each of {', '.join(names)}"
    return "list the regions from the largest to the smallest, each inside one before it or apart from it"


def structures_of(dataset_json: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Labels that make up each structure or region, without background and ignore label."""
    structures = {}
    for name, value in dataset_json["labels"].items():
        labels = tuple(int(v) for v in (value if isinstance(value, (list, tuple)) else [value]))
        if name != "ignore" and set(labels) != {0}:
            structures[name] = labels
    return structures
