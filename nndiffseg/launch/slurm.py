"""Folds as an array of Slurm jobs, and what is done when all of them have ended, through submitit."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nndiffseg.data.files import read_json, write_json
from nndiffseg.errors import UserError
from nndiffseg.launch.fold_task import FoldTask

#: seconds before the time limit at which a training is told to save its state
WARNING_SECONDS = 120
#: how often one task is queued again after its time limit; a task that needs more is probably stuck
REQUEUES = 50
#: of a model folder: the jobs that were submitted last
JOBS = Path("cross_validation", "jobs.json")


@dataclass(frozen=True)
class Resources:
    """What a task asks for.

    Attributes:
        minutes: time limit of one run; a training that needs more is queued again.
        gpus, cpus: numbers.
        memory_gb: None for the cluster's default.
        partition: None for the cluster's default.
        others: further options of sbatch, such as ``{"account": "abc"}``.
    """

    minutes: int
    gpus: int
    cpus: int
    memory_gb: float | None = None
    partition: str | None = None
    others: Mapping[str, str] = field(default_factory=dict)

    def parameters(self, *, gpus: bool) -> dict[str, Any]:
        """As submitit takes them."""
        given: dict[str, Any] = {
            "timeout_min": self.minutes,
            "cpus_per_task": self.cpus,
            "mem_gb": self.memory_gb,
            "gpus_per_node": self.gpus if gpus and self.gpus else None,
            "slurm_partition": self.partition,
        }
        return {name: value for name, value in given.items() if value is not None}


@dataclass
class FinishTask:
    """Runs ``nndiffseg_cross_validate ... --report_only`` in a process of its own.

    Attributes:
        words: its arguments.
    """

    words: tuple[str, ...]

    def __call__(self) -> None:
        """Raises UserError where it fails; what it says stands in the job's log."""
        code = subprocess.run([sys.executable, "-u", "-m", "nndiffseg.cli.cross_validate", *self.words], check=False).returncode
        if code:
            raise UserError(f"It ended with exit code {code}; the sentence above says why.")


@dataclass(frozen=True)
class Submitted:
    """Ids of the jobs: the array of folds, None where none is to be trained, and the one after it."""

    folds: str | None
    finish: str

    @property
    def jobs(self) -> list[str]:
        return [job for job in (self.folds, self.finish) if job is not None]


def minutes_of(text: str) -> int:
    """A time limit in minutes, from Slurm's forms: ``90``, ``1:30:00``, ``2-0``, ``2-12:00``.

    Raises:
        UserError: it is none of these, or less than a minute.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d\d?))?(?::(\d\d?))?", text)
    if match is None:
        raise UserError(f"--time takes minutes, hours:minutes:seconds or days-hours, not {text!r}.")
    days, *parts = (None if part is None else int(part) for part in match.groups())
    first, second, third = (part or 0 for part in parts)
    if days is not None:
        seconds = 86400 * days + 3600 * first + 60 * second + third
    elif parts[2] is not None:
        seconds = 3600 * first + 60 * second + third
    else:
        seconds = 60 * first + second
    if seconds < 60:
        raise UserError(f"--time must be a minute or more, not {text}.")
    return seconds // 60


def check_slurm() -> None:
    """Says before any work that jobs cannot be submitted from here.

    Raises:
        UserError: there is no Slurm, or submitit is not installed.
    """
    try:
        import submitit  # noqa: F401
    except ImportError:
        raise UserError('--launcher slurm needs submitit; install it with pip install "nndiffseg[slurm]".') from None
    if missing := [command for command in ("sbatch", "srun", "squeue") if shutil.which(command) is None]:
        raise UserError(
            f"There is no {missing[0]} on this machine; run the command where jobs are submitted, or use --launcher local."
        )


def check_not_queued(model: Path) -> None:
    """Checks that the jobs that were submitted last for a model have ended.

    Raises:
        UserError: some are still queued or running.
    """
    file = model / JOBS
    jobs = read_json(file, "remove it") if file.is_file() else []
    if not (isinstance(jobs, list) and all(isinstance(job, str) and job.isdigit() for job in jobs)):
        raise UserError(f"{file} holds no numbers of jobs; remove it.")
    # One that ended long ago is unknown to Slurm, so each is asked for alone.
    alive = [job for job in jobs if _squeue(job)]
    if alive:
        raise UserError(
            f"The cross-validation of {model.name} is still queued or running (jobs {', '.join(alive)}); wait for it, or end "
            f"it with scancel {' '.join(alive)}."
        )


def _squeue(job: str) -> str:
    return subprocess.run(["squeue", "-h", "-j", job], capture_output=True, text=True, check=False).stdout.strip()


def submit(
    tasks: Sequence[FoldTask], finish: Mapping[Path, FinishTask], folder: Path, resources: Resources, name: str
) -> dict[Path, Submitted]:
    """Submits folds as one array, and for each model what follows when all of its tasks have ended, failed ones included.

    Args:
        tasks: folds of all models.
        finish: model folder -> its task.
        folder: for submitit's scripts and logs; all nodes must see it.
        resources: of a fold; the others get no GPU.
        name: of the jobs.

    Returns:
        Model folder -> ids of its jobs.

    Raises:
        UserError: Slurm refuses.
    """
    from submitit import AutoExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    def executor(*, gpus: bool, **more: str) -> AutoExecutor:
        made = AutoExecutor(folder=folder, cluster="slurm", slurm_max_num_timeout=REQUEUES)
        other = {"slurm_additional_parameters": {**resources.others, **more}}
        made.update_parameters(name=name, slurm_signal_delay_s=WARNING_SECONDS, **other, **resources.parameters(gpus=gpus))
        return made

    folder.mkdir(parents=True, exist_ok=True)
    try:
        array = None
        if tasks:
            array = executor(gpus=True).submit_array(tasks)[0].job_id.split("_")[0]
        after = {"dependency": f"afterany:{array}"} if array else {}
        done = {model: Submitted(array, executor(gpus=False, **after).submit(task).job_id) for model, task in finish.items()}
    except (FailedJobError, FailedSubmissionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"Slurm refuses the jobs: {reason}; change --partition, --time, --gpus, --cpus or --memory.") from None
    for model, submitted in done.items():
        write_json(submitted.jobs, model / JOBS)
    return done
