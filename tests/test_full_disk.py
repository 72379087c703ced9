"""A full disk: one sentence and exit code 2 from every command, nothing half-written, and what was there stays.

The disk is a small tmpfs, which only root may mount. `pytest -n 0 -m slow tests/test_full_disk.py`
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import command_stages
import pytest
from command_stages import Stage, content, contents, copied, differences, files_of, undisturbed
from command_world import (
    DATASET,
    MODEL,
    Command,
    finish,
    world,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

SIZE = 256 * 2**20
OWN_MODEL = f"BASE/{MODEL}/fold_0/validation"
EVALUATE = Command(
    "evaluate",
    (
        *("-i", OWN_MODEL, "-r", f"BASE/raw/{DATASET}/labelsTr", "-djfile", f"BASE/raw/{DATASET}/dataset.json"),
        *("-o", "BASE/evaluation", "--disable_progress_bar"),
    ),
)
DEMO = Command(
    "demo",
    (
        *("--output", "BASE/demo", "--minutes", "0.1", "--cases", "8", "--test_cases", "2", "--samples", "2"),
        *("-device", "cpu", "-num_threads", "1"),
    ),
)
EXPORT = Command("export", (f"BASE/{MODEL}", "BASE/model.zip", "--overwrite"))
STAGES = {
    **command_stages.STAGES,
    "evaluation": Stage(EVALUATE, (Path("evaluation"),)),
    "export": Stage(EXPORT, (Path("model.zip"),)),
}
#: of what a command writes, so much fits
SHARES = (0.0, 0.3, 0.6, 0.9)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """An empty disk of 256 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"needs to mount a tmpfs, which is not allowed here: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: Path, left: int) -> Path:
    """Fills the disk up to so many bytes."""
    status = os.statvfs(place)
    ballast = place / "ballast"
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, status.f_bavail * status.f_bsize - left // status.f_bsize * status.f_bsize)
    return ballast


def check_sentence(code: int, text: str) -> None:
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(errors) == 1 and "Traceback" not in text, text
    assert "No space left on the disk" in errors[0], text


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("name", STAGES)
def test_a_full_disk_is_one_sentence_and_the_command_goes_on_when_there_is_space(
    make_dataset, disk: Path, name: str, share: float
) -> None:
    stage = STAGES[name]
    wanted = undisturbed(make_dataset, stage)
    base = copied(world(make_dataset), disk / "base", stage)
    before = {f: f.read_bytes() for f in files_of(base, stage)}
    ballast = fill(disk, int(share * wanted.size))
    code, text = finish(stage.command, base)
    check_sentence(code, text)
    left = files_of(base, stage)
    assert not [f for f in left if f.name.endswith(".tmp")]
    for file in left:  # whole, the old one or the new one; a checkpoint or log may be that of an earlier epoch
        found, new = content(file, base), wanted.contents.get(str(file.relative_to(base)))
        assert before.get(file) == file.read_bytes() or found == new or file.suffix in (".pth", ".jsonl"), file
    ballast.unlink()
    code, text = finish(stage.command, base, *stage.command.again)
    assert code == 0, text
    assert differences(contents(base, stage), wanted.contents) == []


def test_a_full_disk_ends_the_demo_in_one_sentence_at_every_stage(disk: Path) -> None:
    """Its training is bounded by time, so that no two runs have the same result; the whole demo runs when there is space."""
    kept, base = int(0.95 * SIZE), disk
    for left in (0, 100_000, 2_000_000, 4_000_000, 8_000_000):
        ballast = fill(disk, left)
        code, text = finish(DEMO, base)
        check_sentence(code, text)
        assert not list((disk / "demo").rglob("*.tmp"))
        ballast.unlink()
    assert os.statvfs(disk).f_bavail * os.statvfs(disk).f_bsize > kept // 2
    code, text = finish(DEMO, base)
    assert code == 0, text
    assert (disk / "demo" / "report.html").is_file()
