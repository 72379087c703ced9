"""Predicts every case of a folder and leaves a folder that nnU-Net's own tools understand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nndiffseg.data.cases import Case, Files, Inputs, cases_of, cases_of_files, check_headers
from nndiffseg.data.files import check_space, write_json
from nndiffseg.data.listing import list_images
from nndiffseg.data.memory import LittleMemoryError, little_memory_told
from nndiffseg.data.parallel import Backlog, WorkerKilledError, in_order
from nndiffseg.errors import UserError
from nndiffseg.export.staple import check_fusion
from nndiffseg.export.writer import ExportJob, export_case, remove_staging
from nndiffseg.inference.case_predictor import CasePredictor, check_finite_answer
from nndiffseg.inference.prediction import Prediction
from nndiffseg.inference.predictor import Predictor
from nndiffseg.inference.resume import IMAGE, image_key, left_to_predict
from nndiffseg.inference.shared import predict_shared
from nndiffseg.inference.stages import Stage, read_stages, with_previous

#: of the commands: ask for one process each
FLAGS = "-npp 1 -nps 1"
#: so many names are printed
NAMED = 10
#: for a case that even the smallest chunks leave too little memory for
REMEDY = f"give fewer --samples and {FLAGS}"


def predict_folder(
    predictor: CasePredictor,
    inputs: Inputs,
    output_folder: str | Path,
    *,
    save_samples: bool = False,
    save_probabilities: bool | Sequence[str] = False,
    fuse: str = "mean",
    continue_prediction: bool = False,
    prev_stage_predictions: str | Path | None = None,
    flag_below: float | None = None,
    num_parts: int = 1,
    part_id: int = 0,
    shared: bool = False,
    preprocessing_processes: int = 1,
    export_processes: int = 1,
    progress: bool = True,
    verbose: bool = False,
) -> list[str]:
    """Predicts every case of a folder, or cases whose files are named one by one.

    A case's files appear together, the segmentation last, so a killed run leaves whole cases only. Bad headers stop
    the run before it starts; a case whose voxels turn out to be bad is left out, and named in the error at the end.

    Args:
        predictor: the model and how to sample.
        inputs: a folder of images named ``CASE_0000.nii.gz`` (the dataset's file ending); or for each case its files
            (:func:`~nndiffseg.data.cases.cases_of_files`).
        output_folder: made where it does not exist; docs/reference/files.md says what it will hold.
        save_samples: also write the samples' label maps.
        save_probabilities: see :class:`~nndiffseg.export.writer.ExportJob`.
        fuse: how samples become the segmentation, ``mean`` or ``staple`` (:mod:`nndiffseg.export.staple`).
        prev_stage_predictions: folder with what the first stage of a cascade predicted for the same cases, for its second one;
            None to run the first stage too.
        flag_below: mark cases with a lower expected Dice in the report.
        continue_prediction: leave out cases all of whose files exist, made with these settings from these images.
        num_parts, part_id: predict every ``num_parts``-th case from ``part_id`` on.
        shared: divide the cases with other runs into the same output, as they come (:mod:`nndiffseg.inference.shared`).
        preprocessing_processes, export_processes: worker processes; 0 or 1 works in this process.
        progress, verbose: show a progress bar; say which cases there are.

    Returns:
        Ids of the cases that were predicted in this run.

    Raises:
        UserError: bad input (see above), where the other cases are complete then; or ``continue_prediction`` of another
            model or other settings.
    """
    output = Path(output_folder).expanduser()
    check_fusion(fuse)
    every_case = cases_of(inputs, predictor.dataset_json)
    _tell_left_out(inputs, predictor.dataset_json["file_ending"])
    own_cases = _part(every_case, num_parts, part_id)
    job = _job(predictor, output, save_samples, save_probabilities, fuse)
    if (stage := predictor.configuration.previous_stage_name) is not None or prev_stage_predictions is not None:
        own_cases = _after_stage(predictor, job, own_cases, stage, prev_stage_predictions)
    if shared and num_parts > 1:
        raise UserError("--shared divides the cases as they come; leave out -num_parts and -part_id.")
    numbers = predictor.number_of_samples, len(predictor.folds)
    cases = left_to_predict(job, own_cases, *numbers) if continue_prediction and not shared else own_cases
    check_headers(cases)
    _prepare_output(output, every_case, predictor, job)
    if verbose:
        print(f"{len(cases)} cases to predict: {', '.join(case.id for case in cases) or 'none'}.")

    def predict(some: Sequence[Case]) -> dict[str, str]:
        return _predict_cases(predictor, job, some, preprocessing_processes, export_processes, progress)

    def report() -> None:
        remove_staging(output)
        _write_report(output, predictor, every_case, flag_below, progress)

    if shared:
        done, bad = predict_shared(job, cases, numbers, max(1, preprocessing_processes), predict, report)
    else:
        done = [case.id for case in cases]
        try:
            bad = predict(cases)
        finally:
            remove_staging(output, [case.id for case in own_cases])  # of a killed run, too
        report()
        _tell_missing(output, predictor.dataset_json["file_ending"], own_cases, every_case)
    _tell(bad, len(done))
    return done


def _tell_left_out(inputs: Inputs, ending: str) -> None:
    """Names the files of a folder that are no images."""
    if isinstance(inputs, (str, Path)) and (remark := list_images(Path(inputs).expanduser(), ending).remark()) is not None:
        print(remark)


def _tell_missing(output: Path, ending: str, own_cases: Sequence[Case], every_case: Sequence[Case]) -> None:
    """Names the cases that other parts have still to predict."""
    own = {case.id for case in own_cases}
    missing = [c.id for c in every_case if c.id not in own and not (output / f"{c.id}{ending}").is_file()]
    if missing:
        more = ", ..." if len(missing) > NAMED else ""
        print(f"{len(missing)} of {len(every_case)} cases are left to other parts: {', '.join(missing[:NAMED])}{more}.")


def _after_stage(
    predictor: CasePredictor, job: ExportJob, cases: Sequence[Case], stage: str | None, folder: str | Path | None
) -> Sequence[Case]:
    """Cases with what the stage before predicted; the settings of ``job`` then say where that comes from.

    Raises:
        UserError: there is no stage before, or its predictions or its model are missing.
    """
    if stage is None:
        raise UserError(
            f"{predictor.configuration_name} is no second stage of a cascade, so leave out -prev_stage_predictions."
        )
    if folder is None:
        assert isinstance(predictor, Predictor)
        print(f"First stage: {predictor.previous.origin['model']}.")
        job.settings["previous_stage"] = {"stage": stage, "model_sha256": predictor.previous.model_key()}
        return cases
    cases = with_previous(cases, Path(folder).expanduser(), predictor.dataset_json, stage)
    if any(len(case.previous) == 1 for case in cases):
        print(
            f"{folder} holds no samples of some cases, so that all samples there start from the segmentation and show nothing "
            f"of the uncertainty of {stage}; predict it with --save_samples."
        )
    job.settings["previous_stage"] = {"stage": stage, "model_sha256": None}
    return cases


def predict_files(
    predictor: CasePredictor,
    files: Files,
    output_folder: str | Path | None = None,
    **options: Any,
) -> list[str] | list[Prediction]:
    """Predicts cases whose files are named one by one, such as ``[[ct_1, pet_1], [ct_2, pet_2]]``.

    Args:
        predictor: the model and how to sample.
        files: see :func:`~nndiffseg.data.cases.cases_of_files`.
        output_folder: what :func:`predict_folder` writes; without one, nothing is written.
        options: of :func:`predict_folder`; without a folder, of :meth:`CasePredictor.predict`.

    Returns:
        Ids of the cases in the folder; without one, all predictions, which stay in memory.

    Raises:
        UserError: bad input.
    """
    if output_folder is not None:
        return predict_folder(predictor, files, output_folder, **options)
    cases = cases_of_files(files, predictor.dataset_json)
    check_headers(cases)
    return [predictor.predict(case.files, case_id=case.id, **options) for case in cases]


def _tell(bad: Mapping[str, str], number: int) -> None:
    """Raises UserError where cases are bad; case -> sentence, of so many cases."""
    if bad:
        done = f"{len(bad)} of {number} cases could not be predicted ({number - len(bad)} are complete)"
        raise UserError(f"{done}: {' '.join(bad.values())}")


def _part(cases: Sequence[Case], num_parts: int, part_id: int) -> Sequence[Case]:
    if not (num_parts >= 1 and 0 <= part_id < num_parts):
        raise UserError(f"-part_id must lie between 0 and {num_parts - 1} for -num_parts {num_parts}, not {part_id}.")
    return cases[part_id::num_parts]


def _job(
    predictor: CasePredictor, output: Path, save_samples: bool, save_probabilities: bool | Sequence[str], fuse: str
) -> ExportJob:
    plans, configuration = predictor.plans.plans, predictor.configuration_name
    settings = {**predictor.settings(), "fuse": fuse, "model_sha256": predictor.model_key()}
    return ExportJob(output, plans, configuration, predictor.dataset_json, save_samples, save_probabilities, settings, fuse)


def _predict_cases(
    predictor: CasePredictor,
    job: ExportJob,
    cases: Sequence[Case],
    preprocessing_processes: int,
    export_processes: int,
    progress: bool,
) -> dict[str, str]:
    """Reads, predicts and exports the cases; returns what is wrong with those that were left out."""
    bad: dict[str, str] = {}
    arguments = [(case, job.plans, job.configuration, job.dataset_json) for case in cases]
    preprocessed = in_order(read_stages, arguments, preprocessing_processes, flags=FLAGS)
    with Backlog(export_processes, FLAGS, bad.update) as exports, closing(preprocessed):
        for case, result in zip(cases, preprocessed, strict=True):
            stage = statistics = None  # of the case before
            try:
                with little_memory_told(case.id, REMEDY):
                    stage = result()
                    statistics = _predict_with_bar(predictor, stage, case.id, progress)
            except WorkerKilledError:
                raise
            except UserError as error:
                bad[case.id] = str(error)
                continue
            exports.add(_export, job, case.id, statistics, stage.properties, {IMAGE: image_key(case)})
    return bad


def _export(job: ExportJob, case_id: str, *arguments: Any) -> dict[str, str]:
    """Exports a case; case -> sentence where memory is too small for it, so that the others go on."""
    try:
        with little_memory_told(case_id, REMEDY):
            export_case(job, case_id, *arguments)
    except LittleMemoryError as error:
        return {case_id: str(error)}
    return {}


def _predict_with_bar(predictor: CasePredictor, stage: Stage, case_id: str, progress: bool) -> Any:
    with tqdm(total=predictor.tiles_of(stage), desc=case_id, disable=not progress, dynamic_ncols=True) as bar:
        statistics = predictor.predict_stage(stage, case_id, on_tile=bar.update)
    check_finite_answer(statistics, case_id)
    return statistics


def _prepare_output(output: Path, cases: Sequence[Case], predictor: CasePredictor, job: ExportJob) -> None:
    """The three files beside the segmentations that nnU-Net's evaluation and post-processing read."""
    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file; give a folder for the output with -o.")
    folders = {str(file.parent): file.parent.resolve() for case in cases for file in case.files}
    if output.resolve() in folders.values():
        raise UserError("Input and output are the same folder; give another one for the output with -o.")
    check_space(output)
    output.mkdir(parents=True, exist_ok=True)
    write_json(predictor.dataset_json, output / "dataset.json")
    write_json(predictor.plans.plans, output / "plans.json")
    write_json(
        {
            "input_folder": ", ".join(folders),
            "output_folder": str(output),
            "save_samples": job.save_samples,
            "save_probabilities": job.save_probabilities,
            **job.settings,
        },
        output / "predict_from_raw_data_args.json",
    )


def _write_report(
    output: Path, predictor: CasePredictor, cases: Sequence[Case], flag_below: float | None, progress: bool
) -> None:
    ending = predictor.dataset_json["file_ending"]
    images = {case.id: list(case.files) for case in cases if (output / f"{case.id}{ending}").is_file()}
    if images:
        from nndiffseg.report.report import write_prediction_report  # loads matplotlib

        write_prediction_report(output, images, flag_below, progress=progress)
