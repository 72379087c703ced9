"""Validates a fold with the stochastic predictor and fits what is left to fit, without using a case twice.

Fitted on validation cases are the weight that fuses deterministic head and samples, and the scale of the reported volumes.
So that no case is evaluated with a number that it helped to choose (cross-fitting), each is exported with numbers fitted on
the half that it does not belong to. Cases of one group (:mod:`nndiffseg.data.groups`) stay together. The checkpoint gets the
numbers fitted on all cases.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder

from nndiffseg.calibration.fusion import FusionTable, fit_fusion_weight, fusion_table, mean_dice
from nndiffseg.calibration.volumes import VolumeTable, fit_volume_scales, structure_voxels
from nndiffseg.data.checkpoint import load_checkpoint, save_atomically
from nndiffseg.data.files import write_json
from nndiffseg.data.groups import halves_of, read_groups
from nndiffseg.export.writer import CaseGeometry, ExportJob, export_case
from nndiffseg.inference.predictor import Predictor
from nndiffseg.methods.fitted import FittedNumbers, set_fitted
from nndiffseg.uncertainty.evaluation import evaluate_predictions, structures_of
from nndiffseg.uncertainty.statistics import CaseStatistics
from nndiffseg.uncertainty.volumes import MM3_PER_ML, by_structure

if TYPE_CHECKING:
    from nndiffseg.training.trainer import DiffusionTrainer

CACHE = ".parts"


class CaseTables(NamedTuple):
    """One predicted case under every candidate of the numbers that need predictions."""

    fusion: FusionTable
    volumes: VolumeTable


def validate_fold(trainer: DiffusionTrainer, save_probabilities: bool = False) -> None:
    """Writes ``validation/`` with segmentations, uncertainty, nnU-Net's ``summary.json`` and ``uncertainty.json``.

    Under DistributedDataParallel the first rank does all of it.
    """
    if trainer.local_rank == 0:
        _validate(trainer, save_probabilities)
    if trainer.is_ddp:
        dist.barrier()


def _validate(trainer: DiffusionTrainer, save_probabilities: bool) -> None:
    assert trainer.average is not None
    network: Any = trainer.average.network
    folder = Path(trainer.output_folder) / "validation"
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier training of this fold
    folder.mkdir(parents=True)
    predictor = Predictor.from_network(
        network,
        trainer.plans_manager,
        trainer.configuration_name,
        trainer.dataset_json,
        type(trainer).__name__,
        trainer.inference_allowed_mirroring_axes,
        device=trainer.device,
        fold=trainer.fold,
        seed=trainer.seed,
    )
    job = ExportJob(
        folder,
        trainer.plans_manager.plans,
        trainer.configuration_name,
        trainer.dataset_json,
        save_probabilities=save_probabilities,
        settings=predictor.settings(),
    )
    groups = read_groups(Path(trainer.preprocessed_dataset_folder_base))
    tables = _predict_in_halves(trainer, predictor, job, groups)
    weight, scales = _fit(network, tables, groups)
    fitted: dict[str, float | Sequence[float]] = {"fusion_weight": weight, "volume_scale": scales}
    for each in (network, trainer.bare_network):
        set_fitted(each, fitted)
    _judge(trainer, folder, [t.fusion for t in tables], fitted)
    _store_fitted(Path(trainer.output_folder) / trainer.validated_checkpoint, fitted, network)


def _fit(network: Any, tables: Sequence[CaseTables], groups: dict[str, str]) -> tuple[float, tuple[float, ...]]:
    """Fusion weight and volume scales: the numbers that need predictions."""
    calibrated = isinstance(network, FittedNumbers)  # the network of someone's own trainer may be something else
    scales = fit_volume_scales([t.volumes for t in tables], groups) if calibrated else (1.0,)
    return fit_fusion_weight([t.fusion for t in tables]), scales


def _store_fitted(path: Path, fitted: Iterable[str], network: Any) -> None:
    """Puts the fitted numbers into the checkpoint that was validated, and changes nothing else in it."""
    if not path.is_file():
        return
    checkpoint = load_checkpoint(path)
    for weights in (checkpoint["network_weights"], checkpoint["network_weights_raw"]):
        buffers = dict(network.named_buffers(recurse=False))
        weights |= {name: buffers[name].cpu() for name in fitted if name in buffers}
    save_atomically(checkpoint, path)


def _predict_in_halves(
    trainer: DiffusionTrainer, predictor: Predictor, job: ExportJob, groups: dict[str, str]
) -> list[CaseTables]:
    """Exports every case with numbers fitted on others; returns what to fit them on."""
    _, keys = trainer.do_split()
    halves = halves_of(keys, groups)
    cache = job.output / CACHE
    cache.mkdir()
    tables: list[list[CaseTables]] = [[], []]
    try:
        for key, statistics, table, properties in _predict(trainer, predictor, halves[0]):
            tables[0].append(table)
            _store(cache / key, statistics, properties)
        first = _fit(predictor.network, tables[0], groups)
        for key, statistics, table, properties in _predict(trainer, predictor, halves[1]):
            tables[1].append(table)
            export_case(job, key, statistics.with_fitted(*first), properties)
        # With a single group there is no other half; its own weight is then the only one there is.
        second = _fit(predictor.network, tables[1] or tables[0], groups)
        for key in halves[0]:
            statistics, properties = _restore(cache / key)
            export_case(job, key, statistics.with_fitted(*second), properties)
    finally:
        shutil.rmtree(cache, ignore_errors=True)
    return tables[0] + tables[1]


def _predict(
    trainer: DiffusionTrainer, predictor: Predictor, keys: list[str]
) -> Iterator[tuple[str, CaseStatistics, CaseTables, dict[str, Any]]]:
    dataset = trainer.dataset_class(trainer.preprocessed_dataset_folder, keys)
    for key in keys:
        trainer.print_to_log_file(f"predicting {key}")
        data, segmentation, _, properties = dataset.load_case(key)
        statistics = predictor.predict_preprocessed(np.asarray(data[:]), key, keep_parts=True)
        reference = torch.from_numpy(np.asarray(segmentation[:]))[0].long().clamp_min(0)
        assert statistics.deterministic is not None and statistics.sampled is not None
        fusion = fusion_table(
            statistics.deterministic.cpu(),
            statistics.sampled.cpu(),
            _onehot(trainer, reference),
            regions=trainer.label_manager.has_regions,
        )
        geometry = CaseGeometry(properties, trainer.plans_manager, trainer.configuration_manager)
        tables = CaseTables(fusion, _volumes(trainer, key, statistics.labels, reference.numpy(), geometry))
        yield key, statistics, tables, properties


def _volumes(
    trainer: DiffusionTrainer, key: str, labels: np.ndarray, reference: np.ndarray, geometry: CaseGeometry
) -> VolumeTable:
    """Volumes of samples ``(N, *spatial)`` and reference ``(*spatial)``."""
    ml = geometry.voxel_volume(reference.shape) / MM3_PER_ML
    structures = structures_of(trainer.dataset_json).values()
    return VolumeTable(key, ml * structure_voxels(labels, structures), ml * structure_voxels(reference[None], structures))


def _onehot(trainer: DiffusionTrainer, reference: torch.Tensor) -> torch.Tensor:  # (*spatial) -> (heads, *spatial)
    if trainer.label_manager.has_regions:
        regions = [r if isinstance(r, (list, tuple)) else [r] for r in trainer.label_manager.foreground_regions]
        return torch.stack([torch.isin(reference, torch.tensor(r)) for r in regions])
    return F.one_hot(reference, trainer.label_manager.num_segmentation_heads).movedim(-1, 0).bool()


def _store(path: Path, statistics: CaseStatistics, properties: dict[str, Any]) -> None:
    assert statistics.deterministic is not None and statistics.sampled is not None
    torch.save(
        {
            "deterministic": statistics.deterministic.half(),
            "sampled": statistics.sampled.half(),
            "labels": statistics.labels,
            "properties": properties,
            "regions": statistics.regions,
        },
        path,
    )


def _restore(path: Path) -> tuple[CaseStatistics, dict[str, Any]]:
    # weights_only=False: this process wrote the file a moment ago, with nnU-Net's properties in it.
    saved = torch.load(path, weights_only=False)
    deterministic, sampled = saved["deterministic"].float(), saved["sampled"].float()
    statistics = CaseStatistics(sampled, {}, saved["labels"], (0.0,), deterministic, sampled, saved["regions"])
    return statistics, saved["properties"]


def _judge(
    trainer: DiffusionTrainer, folder: Path, tables: list[FusionTable], fitted: dict[str, float | Sequence[float]]
) -> None:
    manager = trainer.label_manager
    references = Path(trainer.preprocessed_dataset_folder_base) / "gt_segmentations"
    metrics = compute_metrics_on_folder(
        str(references),
        str(folder),
        str(folder / "summary.json"),
        trainer.plans_manager.image_reader_writer_class(),
        trainer.dataset_json["file_ending"],
        manager.foreground_regions if manager.has_regions else manager.foreground_labels,
        manager.ignore_label,
        chill=True,
        num_processes=1,
    )
    by_weight = mean_dice(tables)
    uncertainty = evaluate_predictions(folder, references, dataset_json=trainer.dataset_json)["summary"]
    scales = by_structure(np.atleast_1d(fitted["volume_scale"]).tolist(), structures_of(trainer.dataset_json))
    result = {
        **fitted,
        "volume_scale": scales,
        "dice_fused_cross_fitted": metrics["foreground_mean"]["Dice"],
        "dice_deterministic": by_weight[-1],
        "dice_samples": by_weight[0],
        **uncertainty,
    }
    write_json(result, folder / "uncertainty.json")
    for label in metrics["mean"]:
        trainer.logger.log_summary(f"final_val/class_{label}_dice", metrics["mean"][label]["Dice"])
    trainer.print_to_log_file("Validation complete", also_print_to_console=True)
    trainer.print_to_log_file(
        f"Mean Validation Dice:  {metrics['foreground_mean']['Dice']:.4f} (deterministic head alone {by_weight[-1]:.4f}, "
        f"mean of samples alone {by_weight[0]:.4f}); fitted: "
        + ", ".join(
            f"{name.replace('_', ' ')} {'/'.join(f'{v:.2f}' for v in np.atleast_1d(value))}" for name, value in fitted.items()
        ),
        also_print_to_console=True,
    )
