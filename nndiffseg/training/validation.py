"""Validates a fold with the stochastic predictor, and fits and applies its calibration without using a case twice.

1. Every validation case is predicted once. What fits need of it goes to ``validation/tables/CASE.npz``; head and samples stay
   apart on disk until the case is exported.
2. Each case is exported with a calibration that was fitted on the cases of other groups (cross-fitting,
   :func:`nndiffseg.calibration.cross_fit`), so that no case is evaluated with a number that it helped to choose.
3. The calibration fitted on all cases goes into the checkpoint and into ``calibration.json``. Fold ``all`` and its members have
   seen every case, so nothing is fitted on them.
4. ``summary.json`` is nnU-Net's, ``uncertainty.json`` holds the rest.

In a cascade the first stage's validation also writes what the second one starts from, and the second one's validation predicts
with it as a prediction does (:mod:`nndiffseg.training.stages`).

Several processes divide the cases in steps 1 and 2; what the first one needs of the others' lies in files.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from nndiffseg.calibration import Calibration, CaseTable, cross_fit, fit, read_tables, write_table
from nndiffseg.calibration.fusion import mean_dice
from nndiffseg.calibration.sampler_choice import ChosenSampler, choose_sampler
from nndiffseg.calibration.tables import FOLDER
from nndiffseg.calibration.voxels import LabelKind
from nndiffseg.calibration.voxels_file import FOLDER as VOXELS
from nndiffseg.calibration.voxels_file import read_voxels, write_voxels
from nndiffseg.data.checkpoint import load_checkpoint, save_atomically
from nndiffseg.data.files import write_json
from nndiffseg.data.folds import holds_out
from nndiffseg.data.groups import read_groups
from nndiffseg.errors import UserError
from nndiffseg.export.writer import ExportJob, export_case
from nndiffseg.inference.coherent import finest_edge
from nndiffseg.inference.predictor import Predictor
from nndiffseg.training.fold_folder import sole_user
from nndiffseg.training.ranks import Ranks
from nndiffseg.training.scored_case import ScoredCase, restore_parts, store_parts, table_of, voxels_of
from nndiffseg.training.stages import read_previous, write_next_stages
from nndiffseg.training.summary import write_summary
from nndiffseg.training.trained_fold import TrainedFold
from nndiffseg.uncertainty.evaluation import evaluate_predictions

#: head and samples of every case, until it is exported
PARTS = ".parts"
#: folder of a validation, until it is complete and then
UNFINISHED, COMPLETE = ".validation", "validation"
#: seconds in which a file of another computer must appear
APPEAR = 120.0
NOT_CALIBRATED = (
    "This training has seen every case, so the validation fits no calibration, and its figures say nothing about new cases."
)


def validate_fold(trainer: TrainedFold, save_probabilities: bool = False) -> None:
    """Writes ``validation/`` with tables, segmentations, uncertainty, ``summary.json`` and ``uncertainty.json``.

    Raises:
        UserError: another training works in the fold's folder, or a process does not see it.
    """
    with sole_user(trainer.output_folder) if trainer.ranks.first else nullcontext():
        _validate(trainer, save_probabilities)


def _validate(trainer: TrainedFold, save_probabilities: bool) -> None:
    ranks = trainer.ranks
    folder = Path(trainer.output_folder) / UNFINISHED
    if ranks.first:
        shutil.rmtree(folder, ignore_errors=True)  # of a killed validation
        for sub in (FOLDER, VOXELS, PARTS):
            (folder / sub).mkdir(parents=True)
    _meet(ranks, [folder / PARTS])
    try:
        _work(trainer, folder, save_probabilities)
        if ranks.first:
            _publish(folder, folder.with_name(COMPLETE))
    except BaseException:
        if ranks.first:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    ranks.wait()


def _publish(folder: Path, final: Path) -> None:
    """Puts a complete validation in the place of an earlier one, which is there until then."""
    earlier = final.with_name(f"{UNFINISHED}_earlier")
    shutil.rmtree(earlier, ignore_errors=True)
    if final.is_dir():
        final.rename(earlier)
    folder.rename(final)
    shutil.rmtree(earlier, ignore_errors=True)


def _work(trainer: TrainedFold, folder: Path, save_probabilities: bool) -> None:
    """Fills the folder of a validation, and gives the checkpoint its calibration."""
    ranks, predictor = trainer.ranks, _predictor(trainer)
    groups, fold = read_groups(Path(trainer.preprocessed_dataset_folder_base)), (trainer.fold_name,)
    unseen = holds_out(trainer.fold_name)
    if not unseen:
        trainer.print_to_log_file(NOT_CALIBRATED)
    try:
        _predict(trainer, predictor, folder)
        _meet(ranks, [folder / FOLDER / f"{case}.npz" for case in trainer.do_split()[1]])
        tables = read_tables(folder / FOLDER)
        chosen = ranks.told_by(0, _choose(trainer, folder, tables, groups) if unseen and ranks.first else None)
        job = ExportJob(
            folder,
            trainer.plans_manager.plans,
            trainer.configuration_name,
            trainer.dataset_json,
            save_probabilities=save_probabilities,
            settings=predictor.settings(),
        )
        if chosen is not None:
            calibrations = chosen.crossed
        else:
            calibrations = cross_fit(tables, groups, fold) if unseen else {t.case: Calibration() for t in tables}
        _export(trainer, predictor, job, calibrations)
        _meet(ranks, [folder / (case + job.file_ending) for case in calibrations])
    finally:
        if ranks.first:
            shutil.rmtree(folder / PARTS, ignore_errors=True)
    trainer.calibration = chosen.calibration if chosen is not None else fit(tables, groups, fold) if unseen else Calibration()
    if ranks.first:
        _store(trainer)
        _evaluate(trainer, folder, tables)


def _predictor(trainer: TrainedFold) -> Predictor:
    assert trainer.average is not None
    return Predictor.from_network(
        trainer.method,
        trainer.average.network,
        trainer.plans_manager,
        trainer.configuration_name,
        trainer.dataset_json,
        type(trainer).__name__,
        trainer.inference_allowed_mirroring_axes,
        device=trainer.device,
        fold=trainer.fold_name,
        seed=trainer.seed,
    )


# ---- 1. prediction ----------------------------------------------------------------------------------------------------


def _predict(trainer: TrainedFold, predictor: Predictor, folder: Path) -> None:
    """Writes a table and the parts of every validation case that is this process's."""
    _, keys = trainer.do_split()
    dataset = trainer.dataset_class(trainer.preprocessed_dataset_folder, keys)
    for key in _own(trainer, keys):
        trainer.print_to_log_file(f"predicting {key}")
        data, segmentation, _, properties = dataset.load_case(key)
        previous = read_previous(trainer, key) if trainer.is_cascaded else None
        parts = predictor.predict_parts(np.asarray(data[:]), key, previous)
        label = np.asarray(segmentation[:])[0].clip(0)  # (*spatial)
        case = ScoredCase.of(trainer, key, parts, label, properties)
        write_table(table_of(trainer, case), folder / FOLDER)
        if trainer.method.chooses_sampler:
            write_voxels(voxels_of(trainer, case), folder / VOXELS)
        del case
        store_parts(parts, folder / PARTS / f"{key}.npz")


def _own(trainer: TrainedFold, cases: Sequence[str]) -> Sequence[str]:
    """The cases that this process does."""
    return cases[trainer.ranks.index :: trainer.ranks.number]


def _meet(ranks: Ranks, files: Sequence[Path]) -> None:
    """Waits for the other processes, and for their files: network file systems show late what another computer wrote.

    Raises:
        UserError: it does not appear.
    """
    ranks.wait()
    last = time.monotonic() + APPEAR
    while ranks.number > 1 and (missing := [file for file in files if not file.exists()]):
        if time.monotonic() > last:
            raise UserError(
                f"{missing[0]} is missing; give --results a folder that all computers share, then run again with --val."
            )
        time.sleep(0.5)


def _choose(trainer: TrainedFold, folder: Path, tables: Sequence[CaseTable], groups: Mapping[str, str]) -> ChosenSampler | None:
    """None for published methods, whose samples are always their own, and for few groups of cases."""
    if not trainer.method.chooses_sampler:
        return None
    kind = LabelKind.of(trainer.label_manager, trainer.dataset_json)
    cases = read_voxels(folder / VOXELS, [t.case for t in tables], kind)
    assert cases is not None
    finest = finest_edge(trainer.configuration_manager)
    chosen = choose_sampler(cases, tables, kind, groups, (trainer.fold_name,), finest, seed=trainer.seed)
    if chosen is not None:
        trainer.print_to_log_file(f"samples: {chosen.in_words()}")
    return chosen


# ---- 2. export --------------------------------------------------------------------------------------------------------


def _export(trainer: TrainedFold, predictor: Predictor, job: ExportJob, calibrations: Mapping[str, Calibration]) -> None:
    """Exports every case that is this process's with the calibration that was fitted without it."""
    dataset = trainer.dataset_class(trainer.preprocessed_dataset_folder, sorted(calibrations))
    for case in _own(trainer, list(calibrations)):
        calibration, properties = calibrations[case], dataset.load_case(case)[-1]
        parts = restore_parts(job.output / PARTS / f"{case}.npz")
        statistics = predictor.statistics_of(parts, case, calibration)
        export_case(job, case, statistics, properties)
        write_next_stages(trainer, case, statistics, properties, job.output / f"{case}{job.file_ending}")


# ---- 3. and 4. calibration and evaluation -----------------------------------------------------------------------------


def _store(trainer: TrainedFold) -> None:
    """Puts the calibration beside the checkpoint that was validated, and into it; nothing else in it changes."""
    folder = Path(trainer.output_folder)
    path = folder / trainer.validated_checkpoint
    if path.is_file():
        save_atomically(load_checkpoint(path) | {"calibration": trainer.calibration.to_json()}, path)
    trainer.calibration.write(folder)


def _evaluate(trainer: TrainedFold, folder: Path, tables: Sequence[CaseTable]) -> None:
    manager, calibration = trainer.label_manager, trainer.calibration
    references = Path(trainer.preprocessed_dataset_folder_base) / "gt_segmentations"
    metrics = write_summary(
        references,
        folder,
        trainer.plans_manager.image_reader_writer_class(),
        trainer.dataset_json["file_ending"],
        manager.foreground_regions if manager.has_regions else manager.foreground_labels,
        manager.ignore_label,
        folder.with_name(COMPLETE),
    )
    dice = {"dice_fused_cross_fitted": metrics["foreground_mean"]["Dice"]}
    dice["dice_samples"], *_, dice["dice_deterministic"] = mean_dice(tables).tolist()
    uncertainty = evaluate_predictions(
        folder, references, dataset_json=trainer.dataset_json, reader=trainer.plans_manager.image_reader_writer_class
    )["summary"]
    write_json({"calibration": calibration.to_json(), **dice, **uncertainty}, folder / "uncertainty.json")
    for label in metrics["mean"]:
        trainer.logger.log_summary(f"final_val/class_{label}_dice", metrics["mean"][label]["Dice"])
    trainer.print_to_log_file("Validation complete", also_print_to_console=True)
    trainer.print_to_log_file(
        f"Mean Validation Dice:  {dice['dice_fused_cross_fitted']:.4f} (deterministic head alone "
        f"{dice['dice_deterministic']:.4f}, mean of samples alone {dice['dice_samples']:.4f}); calibration: fusion weight "
        f"{calibration.fusion_weight:.2f}, temperature {', '.join(f'{t:.2f}' for t in calibration.temperature)}, volume scale "
        f"{calibration.volume_scale:.2f}",
        also_print_to_console=True,
    )
