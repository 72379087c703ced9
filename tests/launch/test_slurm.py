"""Jobs of Slurm: what is asked for, and what is told where that is refused. The commands of Slurm are small scripts here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from nndiffseg.errors import UserError
from nndiffseg.launch.fold_task import FoldTask
from nndiffseg.launch.slurm import JOBS, FinishTask, Resources, check_not_queued, check_slurm, minutes_of, submit

RESOURCES = Resources(90, 1, 4, 2.5, "gpu", {"account": "abc"})


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Makes a command of Slurm; the only ones that are found, beside those of the system."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def make(name: str, script: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    make("srun", "exit 1")
    return make


def tasks(model: Path, number: int) -> list[FoldTask]:
    return [FoldTask(f"fold {n}", model / f"fold_{n}", (), model / "log") for n in range(number)]


COUNT = 'n=$(cat {0}/count 2>/dev/null || echo 10); n=$((n + 1)); echo $n > {0}/count; cp "$1" {0}/job_$n.sh'


def test_folds_are_an_array_and_the_rest_comes_after_it(tmp_path: Path, commands) -> None:
    commands("sbatch", f"{COUNT.format(tmp_path)}; echo Submitted batch job $n")
    models = [tmp_path / "a", tmp_path / "b"]
    finish = {model: FinishTask((model.name,)) for model in models}
    submitted = submit(tasks(models[0], 5), finish, tmp_path / "slurm", RESOURCES, "name")
    assert [submitted[model].jobs for model in models] == [["11", "12"], ["11", "13"]]
    array, after = (set((tmp_path / f"job_{n}.sh").read_text().splitlines()) for n in (11, 12))
    both = {"account=abc", "cpus-per-task=4", "partition=gpu", "time=90", "mem=2560MB", "job-name=name", "signal=USR2@120"}
    for wanted, lines in ((both | {"array=0-4%5", "gpus-per-node=1"}, array), (both | {"dependency=afterany:11"}, after)):
        assert {f"#SBATCH --{option}" for option in wanted} <= lines
    assert not any(line.startswith(("#SBATCH --gpus", "#SBATCH --array")) for line in after)
    assert json.loads((models[1] / JOBS).read_text()) == ["11", "13"]
    pickles = sorted(f.name for f in (tmp_path / "slurm").glob("*_submitted.pkl"))
    assert pickles == [*(f"11_{n}_submitted.pkl" for n in range(5)), "12_submitted.pkl", "13_submitted.pkl"]


def test_where_all_folds_are_trained_nothing_is_waited_for(tmp_path: Path, commands) -> None:
    commands("sbatch", f"{COUNT.format(tmp_path)}; echo Submitted batch job $n")
    submitted = submit([], {tmp_path / "a": FinishTask(())}, tmp_path / "slurm", RESOURCES, "name")
    assert submitted[tmp_path / "a"].jobs == ["11"] and "dependency" not in (tmp_path / "job_11.sh").read_text()


def test_what_slurm_refuses_is_told_in_its_words(tmp_path: Path, commands) -> None:
    commands("sbatch", "echo sbatch: error: invalid partition specified: gpu >&2; exit 1")
    with pytest.raises(UserError, match="invalid partition specified: gpu; change --partition"):
        submit(tasks(tmp_path / "a", 2), {tmp_path / "a": FinishTask(())}, tmp_path / "slurm", RESOURCES, "name")
    assert not (tmp_path / "a" / JOBS).exists()


def test_what_is_queued_is_not_queued_again(tmp_path: Path, commands) -> None:
    check_not_queued(tmp_path)
    (tmp_path / JOBS).parent.mkdir()
    (tmp_path / JOBS).write_text(json.dumps(["11", "12"]))
    commands(
        "squeue", 'case "$*" in *12*) echo 12 R;; *) echo slurm_load_jobs error: Invalid job id specified >&2; exit 1;; esac'
    )
    with pytest.raises(UserError, match=r"queued or running \(jobs 12\); .* scancel 12"):
        check_not_queued(tmp_path)
    commands("squeue", "exit 1")
    check_not_queued(tmp_path)
    (tmp_path / JOBS).write_text('["1; rm"]')
    with pytest.raises(UserError, match="holds no numbers of jobs"):
        check_not_queued(tmp_path)


def test_a_machine_without_slurm_is_told(tmp_path: Path, commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(UserError, match=r"There is no sbatch on this machine.*--launcher local"):
        check_slurm()


def test_what_follows_fails_with_its_command(capfd) -> None:
    with pytest.raises(UserError, match="exit code 2"):
        FinishTask(("4", "2d", "--folds", "all"))()
    assert "Fold all leaves no case out" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("90:30", 90), ("1:30:00", 90), ("24:00:00", 1440), ("2-0", 2880), ("2-12:30", 3630), ("1-0:0:59", 1440)],
)
def test_times_are_slurms(text: str, minutes: int) -> None:
    assert minutes_of(text) == minutes


@pytest.mark.parametrize("text", ["", "1h", "-5", "0", "0:59", "1:2:3:4", "1-"])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="--time"):
        minutes_of(text)
