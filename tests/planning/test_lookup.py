"""Classes of planning by name: nnU-Net's, the user's own, and nothing that is no class."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nndiffseg.ext_path import ext_path
from nndiffseg.planning import lookup
from nndiffseg.planning.lookup import find_class


def test_nnunets_own_are_found_and_the_users_in_folders_that_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_module.py").write_text("import os\nnumber = 3\nclass OwnClass:\n    pass\n")
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join(["", str(tmp_path / "absent"), str(ext_path()), str(tmp_path)]))
    assert find_class("DatasetFingerprintExtractor").__module__.startswith("nnunetv2.experiment_planning")
    assert find_class("OwnClass").__name__ == "OwnClass"
    for name in ("number", "os", "Absent", "nnDiffSegTrainer"):  # the last is in the folder for stock nnU-Net
        assert find_class(name) is None, name


@pytest.mark.parametrize("name", ["subprocess.Popen", "../own", "__class__", "", 3])
def test_what_is_no_name_imports_nothing(name: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "recursive_find_python_class", lambda *_, **__: pytest.fail("looked for it"))
    assert find_class(name) is None
