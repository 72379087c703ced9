"""Validation and calibration with nnU-Net's ignore label: no number changes with what is predicted under it."""

from __future__ import annotations

from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nndiffseg.calibration.fit import fit
from nndiffseg.calibration.tables import read_tables, write_table
from nndiffseg.calibration.voxels import LabelKind
from nndiffseg.calibration.voxels_file import read_voxels, write_voxels
from nndiffseg.nn.heads import Heads
from nndiffseg.training import scored_case
from nndiffseg.uncertainty.statistics import CaseParts, label_map

SHAPE = (8, 12, 10)
#: of the slices
IGNORED = slice(4, 8)
DATASETS = {
    "labels": {"labels": {"background": 0, "shell": 1, "core": 2, "ignore": 3}},
    "regions": {"labels": {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}, "regions_class_order": [1, 2]},
}


def trainer_of(name: str) -> Any:
    dataset_json = DATASETS[name]
    manager = LabelManager(dataset_json["labels"], dataset_json.get("regions_class_order"))
    heads = Heads(manager.num_segmentation_heads, manager.has_regions)
    return SimpleNamespace(
        method=SimpleNamespace(plan=SimpleNamespace(heads=heads)),
        label_manager=manager,
        dataset_json=dataset_json,
        plans_manager=SimpleNamespace(transpose_forward=[0, 1, 2], original_median_spacing_after_transp=[1.0] * 3),
        configuration_manager=SimpleNamespace(spacing=[1.0] * 3),
    )


def truth() -> np.ndarray:
    label = np.zeros(SHAPE, np.int16)
    label[1:7, 2:10, 2:8] = 1
    label[2:6, 4:8, 4:7] = 2
    return label


def parts_of(trainer: Any, seed: int) -> CaseParts:
    generator, heads = torch.Generator().manual_seed(seed), trainer.method.plan.heads
    logits = torch.randn(2, heads.number, *SHAPE, generator=generator)
    p = [heads.probabilities(x, 0) for x in logits]
    labels = torch.stack([label_map(heads.probabilities(torch.randn(x.shape, generator=generator), 0), trainer.label_manager)
                          for x in (*p, *p)])  # fmt: skip
    return CaseParts(p[0], p[1], labels.numpy().astype(np.uint8), heads.regions)


def joined(a: CaseParts, b: CaseParts, where: slice) -> CaseParts:
    """``a`` with the slices of ``b`` in ``where``."""

    def join(x: Any, y: Any) -> Any:
        z = x.clone() if isinstance(x, torch.Tensor) else x.copy()
        z[:, where] = y[:, where]
        return z

    return CaseParts(join(a.deterministic, b.deterministic), join(a.sampled, b.sampled), join(a.labels, b.labels), a.regions)


def scored(trainer: Any, parts: CaseParts, ignored: slice, tmp_path: Any, name: str = "case") -> tuple[Any, Any]:
    """Table and voxels of a case, written and read again."""
    label = truth()
    label[ignored] = 3
    properties = {
        "spacing": [1.0] * 3,
        "shape_before_cropping": SHAPE,
        "shape_after_cropping_and_before_resampling": SHAPE,
    }
    case = scored_case.ScoredCase.of(trainer, name, parts, label, properties)
    write_table(scored_case.table_of(trainer, case), tmp_path)
    (table,) = (t for t in read_tables(tmp_path) if t.case == name)
    (tmp_path / "voxels").mkdir(exist_ok=True)
    write_voxels(scored_case.voxels_of(trainer, case), tmp_path / "voxels")
    kind = LabelKind.of(trainer.label_manager, trainer.dataset_json)
    (voxels,) = read_voxels(tmp_path / "voxels", [name], kind) or ()
    return table, voxels


def same(a: Any, b: Any) -> bool:
    return all(np.array_equal(*(np.asarray(getattr(x, f.name)) for x in (a, b)), equal_nan=f.name != "case")
               for f in fields(a) if f.name != "case")  # fmt: skip


@pytest.mark.parametrize("name", DATASETS)
def test_no_number_changes_with_the_prediction_under_the_ignore_label(name, tmp_path):
    trainer = trainer_of(name)
    one, other = (parts_of(trainer, seed) for seed in (0, 1))
    table, voxels = scored(trainer, one, IGNORED, tmp_path)
    assert not table.complete and not voxels.complete
    for found, reference in zip(scored(trainer, joined(one, other, IGNORED), IGNORED, tmp_path), (table, voxels), strict=True):
        assert same(found, reference)
    outside = slice(0, 1)
    for found, reference in zip(scored(trainer, joined(one, other, outside), IGNORED, tmp_path), (table, voxels), strict=True):
        assert not same(found, reference), "elsewhere it counts"


def test_scores_are_those_of_the_annotated_half_alone(tmp_path):
    trainer = trainer_of("labels")
    parts = parts_of(trainer, 0)
    table, _ = scored(trainer, parts, IGNORED, tmp_path)
    half = CaseParts(parts.deterministic[:, :4], parts.sampled[:, :4], parts.labels[:, :4], False)
    hard = half.deterministic.argmax(0).numpy()
    for k in (1, 2):
        both, sizes = ((hard == k) & (truth()[:4] == k)).sum(), (hard == k).sum() + (truth()[:4] == k).sum()
        assert table.dice[-1, k - 1] == pytest.approx(2 * both / sizes)
        assert table.true_ml[k - 1, 0] == pytest.approx((truth()[:4] == k).sum() / 1000)
        assert table.sampled_ml[k - 1] == pytest.approx((half.labels == k).sum((1, 2, 3)) / 1000)
    p = half.deterministic.gather(0, torch.from_numpy(truth()[:4]).long()[None])
    assert table.nll[-1] == pytest.approx(float(-p.log().mean()), rel=1e-4)


def test_cases_without_any_annotated_voxel_change_no_fit(tmp_path):
    trainer = trainer_of("labels")
    tables = [scored(trainer, parts_of(trainer, i), slice(0), tmp_path, f"case_{i}")[0] for i in range(8)]
    assert all(t.complete for t in tables)
    empty, voxels = scored(trainer, parts_of(trainer, 9), slice(None), tmp_path, "empty")
    assert not empty.complete and not len(voxels.where)
    alone, both = fit(tables), fit([*tables, empty])
    for name in ("fusion_weight", "temperature", "volume_scale", "dice", "volume_quantiles"):
        assert getattr(both, name) == pytest.approx(getattr(alone, name)) if name != "dice" else both.dice == alone.dice, name


def test_intervals_of_volumes_are_fitted_to_complete_cases_alone(tmp_path):
    trainer = trainer_of("labels")
    whole = [scored(trainer, parts_of(trainer, i), slice(0), tmp_path, f"case_{i}")[0] for i in range(12)]
    half = [scored(trainer, parts_of(trainer, i), IGNORED, tmp_path, f"half_{i}")[0] for i in range(12)]
    assert fit([*whole, *half]).volume_quantiles == fit(whole).volume_quantiles != (None, None)
    assert fit(half).volume_quantiles == (None, None) and fit(half).volume_scale != 1
