"""Plans and preprocessed data of a comparison are made where they are missing."""

from __future__ import annotations

import json
import subprocess
from types import SimpleNamespace

from benchmarks import fair_table
from benchmarks.compare import planning
from nndiffseg.cli import plan_and_preprocess
from nndiffseg.cli.common import folders_from


def test_a_split_of_the_raw_dataset_is_used(make_dataset, tmp_path, monkeypatch):
    """nnU-Net's own random split might divide what belongs together."""
    planned = []

    def here(command, **options):  # in this process, which has imported everything
        planned.append(command[4:])
        code = plan_and_preprocess.main([*command[3:], "-np", "1", "-npfp", "1", "--no_pbar"])
        return subprocess.CompletedProcess(command, code, "")

    monkeypatch.setattr(planning, "subprocess", SimpleNamespace(run=here, PIPE=None, STDOUT=None))
    make_dataset(tmp_path / "raw", cases=4, shape=(32, 40), file_ending=".png", splits=True)
    flags = [f"--{kind}={tmp_path / kind}" for kind in ("raw", "preprocessed", "results")]
    folders = folders_from(fair_table.parser().parse_args(["--dataset", "901", *flags]))
    for _ in range(2):  # the second time everything is there
        planning.prepare(folders, "Dataset901_Tiny", "S", "2d")
    assert [c[-1] for c in planned] == ["--no_pp", "--no_check"]
    base = tmp_path / "preprocessed" / "Dataset901_Tiny"
    used, given = (json.loads((d / "splits_final.json").read_text()) for d in (base, tmp_path / "raw/Dataset901_Tiny"))
    assert used == given
    assert (base / "nnDiffSegPlansS.json").is_file() and any((base / "nnUNetPlans_2d").iterdir())
