"""Programs that start in the checkout's root, where the folder ``nndiffseg`` hides whatever is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.seconds

ROOT = Path(__file__).resolve().parents[1]


def test_the_leaves_beside_the_package_are_found() -> None:
    code = "import nndiffseg.trainers, nndiffseg.planners, nndiffseg.dataset_conversion; print(nndiffseg.__file__)"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).parent == ROOT / "nndiffseg"
