"""Several runs predict one folder: each case by one of them, those of a killed run by the others."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nndiffseg import Predictor, predict_folder
from nndiffseg.cli.predict import main as predict
from nndiffseg.errors import UserError
from nndiffseg.inference import claims as claims_module
from nndiffseg.inference.claims import FOLDER, STALE, Claims, taking_part

HOLD = """
import sys, time
from pathlib import Path
from nndiffseg.inference.claims import taking_part
with taking_part(Path(sys.argv[1])) as claims:
    print(claims.take("a"), flush=True)
    time.sleep(60)
"""


# ---- claims -----------------------------------------------------------------------------------------------------------


def test_work_belongs_to_one_run_until_that_dies(tmp_path: Path) -> None:
    first = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None and first.stdout.readline() == "True\n"
        with taking_part(tmp_path) as claims:
            assert claims.take("b") and not claims.take("a")
            first.kill()
            first.wait()
            assert claims.take("a")
            claims.give_back("a", "key")
            assert claims.done("a") == "key" and claims.done("b") == "" == claims.done("c")
            assert claims.take("a"), "what is done may be done again"
    finally:
        first.kill()
        first.wait()
    assert list(tmp_path.iterdir()) == [], "the last run leaves nothing behind, neither of itself nor of dead ones"


def test_the_folder_stays_while_others_take_part(tmp_path: Path) -> None:
    first = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None and first.stdout.readline() == "True\n"
        with taking_part(tmp_path):
            pass
        with taking_part(tmp_path) as claims:
            assert not claims.take("a")
        assert (tmp_path / FOLDER / "work_a").is_file()
    finally:
        first.kill()
        first.wait()


def elsewhere(folder: Path, name: str, age: float) -> Path:
    file = folder / FOLDER / f"work_{name}"
    file.write_text(json.dumps({"host": "elsewhere", "process": 7}))
    os.utime(file, (time.time() - age, time.time() - age))
    return file


def test_a_claim_of_another_computer_counts_while_it_is_renewed(tmp_path: Path) -> None:
    with taking_part(tmp_path) as claims:
        elsewhere(tmp_path, "a", STALE / 2)
        elsewhere(tmp_path, "b", STALE + 60)
        assert not claims.take("a") and claims.take("b")
        elsewhere(tmp_path, "c", 0).write_text(json.dumps({"host": "elsewhere", "process": 7, "done": "key"}))
        assert claims.done("c") == "key" and claims.take("c")


def test_a_run_renews_what_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims_module, "BEAT", 0.05)
    with taking_part(tmp_path) as claims:
        assert claims.take("a")
        file = tmp_path / FOLDER / "work_a"
        os.utime(file, (0, 0))
        deadline = time.monotonic() + 10
        while file.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert file.stat().st_mtime > 0


def test_without_locks_a_live_process_of_this_computer_keeps_its_claim(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims_module, "try_lock", lambda _: None)
    child = subprocess.Popen(["sleep", "60"])
    try:
        claims = Claims(tmp_path / FOLDER)
        claims.join()
        for name, process in (("a", child.pid), ("b", 2**22 + 1)):
            (tmp_path / FOLDER / f"work_{name}").write_text(json.dumps({"host": socket.gethostname(), "process": process}))
        assert not claims.take("a") and claims.take("b")
        claims.leave()
    finally:
        child.kill()
        child.wait()


def test_where_there_are_no_locks_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims_module, "fcntl", None)
    with pytest.raises(UserError, match="-num_parts and -part_id"), taking_part(tmp_path):
        pass


# ---- predictions ------------------------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, object]:
    """Every file: arrays of images, the rest as text without the folder's name."""
    found: dict[str, object] = {}
    for file in sorted(f for f in folder.rglob("*") if f.is_file()):
        name = str(file.relative_to(folder))
        if name.endswith(".nii.gz"):
            found[name] = sitk.GetArrayFromImage(sitk.ReadImage(str(file))).tobytes()
        elif name.endswith(".npz"):
            found[name] = np.load(file)["probabilities"].tobytes()
        elif not name.endswith(".pkl"):
            found[name] = file.read_text().replace(str(folder), "OUT")
    return found


@pytest.fixture(scope="module")
def undisturbed(model_folder: Path, raw_images: Path, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    assert subprocess.run(command_of(model_folder, raw_images, out), stdout=subprocess.DEVNULL, check=False).returncode == 0
    return out


def command_of(model_folder: Path, raw_images: Path, out: Path, *more: str) -> list[str]:
    """Of a process of its own."""
    words = ["-i", raw_images, "-o", out, "-m", model_folder, "--samples", "3", "--seed", "5", "--save_samples"]
    words += ["--save_probabilities", "-device", "cpu", "--disable_progress_bar", *more]
    return [sys.executable, "-m", "nndiffseg.cli.predict", *map(str, words)]


def predictor_of(model_folder: Path) -> Predictor:
    return Predictor.from_folder(model_folder, device="cpu", samples=3, seed=5)


def test_of_two_runs_one_is_killed_and_the_other_completes_everything(
    model_folder: Path, raw_images: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """The command in two processes. The first is stopped within a case that it has claimed, and killed as the second waits."""
    out = tmp_path / "out"
    command = command_of(model_folder, raw_images, out, "--shared")
    with ExitStack() as stack:
        logs = [stack.enter_context((tmp_path / f"log_{n}").open("w+")) for n in range(2)]
        first = subprocess.Popen(command, stdout=logs[0], stderr=subprocess.STDOUT)
        stack.callback(first.wait)
        stack.callback(first.kill)
        wait_for(lambda: (out / "case_000.nii.gz").is_file() and (out / FOLDER / "work_case_001").is_file())
        first.send_signal(signal.SIGSTOP)
        assert not (out / "case_001.nii.gz").exists()
        second = subprocess.Popen(command, stdout=logs[1], stderr=subprocess.STDOUT)
        stack.callback(second.wait)
        stack.callback(second.kill)
        wait_for(lambda: "Waiting for 1 cases" in (tmp_path / "log_1").read_text())
        assert (out / "case_003.nii.gz").is_file() and not (out / "case_001.nii.gz").exists()
        first.kill()
        assert second.wait(120) == 0, (tmp_path / "log_1").read_text()
    assert "3 cases predicted" in (tmp_path / "log_1").read_text()
    found, wanted = contents(out), contents(undisturbed)
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if found[name] != wanted[name]] == []


def wait_for(condition, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_complete_cases_stay_and_bad_ones_are_named(model_folder, raw_images, undisturbed, tmp_path, capsys) -> None:
    images, out = (Path(shutil.copytree(source, tmp_path / source.name)) for source in (raw_images, undisturbed))
    (out / "report.html").unlink()
    before = {f: f.stat().st_mtime_ns for f in out.glob("*.nii.gz")}
    options = {"save_samples": True, "save_probabilities": True, "progress": False, "shared": True}
    assert predict_folder(predictor_of(model_folder), images, out, **options) == []
    assert {f: f.stat().st_mtime_ns for f in out.glob("*.nii.gz")} == before and (out / "report.html").is_file()
    bad = sitk.ReadImage(str(images / "case_002_0000.nii.gz"))
    array = sitk.GetArrayFromImage(bad)
    array[:] = np.nan
    changed = sitk.GetImageFromArray(array)
    changed.CopyInformation(bad)
    sitk.WriteImage(changed, str(images / "case_002_0000.nii.gz"))
    with pytest.raises(UserError, match=r"1 of 1 cases could not be predicted.*case_002"):
        predict_folder(predictor_of(model_folder), images, out, **options)
    assert "changed after their prediction" in capsys.readouterr().out
    assert not [f for f in out.iterdir() if f.name.startswith(".")]


def test_other_settings_are_refused(model_folder, raw_images, undisturbed, tmp_path) -> None:
    out = Path(shutil.copytree(undisturbed, tmp_path / "out"))
    other = Predictor.from_folder(model_folder, device="cpu", samples=3, seed=6)
    with pytest.raises(UserError, match="seed 5, not 6"):
        predict_folder(other, raw_images, out, save_samples=True, save_probabilities=True, progress=False, shared=True)
    assert not (out / FOLDER).exists()


def test_parts_and_sharing_are_one_or_the_other(raw_images, model_folder, tmp_path, capsys) -> None:
    words = ["-i", str(raw_images), "-o", str(tmp_path / "out"), "-m", str(model_folder), "-device", "cpu"]
    assert predict([*words, "--shared", "-num_parts", "2"]) == 2
    error = capsys.readouterr().err
    assert "leave out -num_parts and -part_id" in error and error.count("\n") == 1 and not (tmp_path / "out").exists()
