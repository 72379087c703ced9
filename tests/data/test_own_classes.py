"""Normalisations and readers of the user's own: found where the user has put them, and nowhere else."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nnunetv2
import nnunetv2.imageio
import numpy as np
import pytest
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from tiny_model import model_folder, raw_images, results  # noqa: F401

from nndiffseg.cli.predict import main
from nndiffseg.data import own_classes
from nndiffseg.data.cases import preprocess
from nndiffseg.data.images import find_reader
from nndiffseg.data.plan_names import check_plan_names
from nndiffseg.errors import UserError

CLASSES = """
from pathlib import Path

from nnunetv2.preprocessing.normalization.default_normalization_schemes import ImageNormalization

Path(__file__).with_name("imported").touch()


class HalfNormalization(ImageNormalization):
    leaves_pixels_outside_mask_at_zero_if_use_mask_for_norm_is_true = False

    def run(self, image, seg=None):
        return image / 2


class NoNormalizationAtAll:
    pass
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the user's classes."""
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "own_normalization.py").write_text(CLASSES)
    monkeypatch.setenv("nnUNet_extTrainer", str(folder))
    return folder


def with_schemes(model: Path, *schemes: Any) -> dict[str, Any]:
    plans = json.loads((model / "plans.json").read_text())
    for configuration in plans["configurations"].values():
        if "normalization_schemes" in configuration:
            configuration["normalization_schemes"] = list(schemes)
    return plans


def test_a_normalisation_of_ones_own_is_allowed_where_the_user_has_put_it(
    own: Path,
    model_folder: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plans = with_schemes(model_folder, "ZScoreNormalization", "HalfNormalization")
    check_plan_names(plans, "The plans")
    assert not (own / "imported").exists(), "the check must not run the user's files"
    for name in ("HalfNorm", "Normalization", "own_normalization.HalfNormalization", "os", "HalfNormalization(", 3, None):
        with pytest.raises(UserError, match="normalization_schemes"):
            check_plan_names(with_schemes(model_folder, "ZScoreNormalization", name), "The plans")
    monkeypatch.delenv("nnUNet_extTrainer")
    with pytest.raises(UserError, match="HalfNormalization"):
        check_plan_names(plans, "The plans")


def test_it_normalises_its_channel_and_nnunet_the_others(own: Path, model_folder: Path) -> None:  # noqa: F811
    dataset_json = json.loads((model_folder / "dataset.json").read_text())
    image = np.random.default_rng(0).normal(100, 20, (2, 20, 24, 20)).astype(np.float32)
    plain, mixed = (
        preprocess(
            copy.deepcopy(image),
            {"spacing": [1.0, 1.0, 1.0]},
            PlansManager(with_schemes(model_folder, "ZScoreNormalization", second)),
            "3d_fullres",
            dataset_json,
        )[0]
        for second in ("ZScoreNormalization", "HalfNormalization")
    )
    assert np.array_equal(plain[0], mixed[0])
    assert np.allclose(mixed[1], image[1] / 2) and not np.allclose(plain[1], mixed[1])
    with pytest.raises(UserError, match="no class derived from nnU-Net's ImageNormalization"):
        plans = PlansManager(with_schemes(model_folder, "ZScoreNormalization", "NoNormalizationAtAll"))
        preprocess(image, {"spacing": [1.0, 1.0, 1.0]}, plans, "3d_fullres", dataset_json)


def test_a_model_with_its_own_normalisation_predicts_where_the_class_is(
    own: Path,
    model_folder: Path,  # noqa: F811
    raw_images: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copied = tmp_path / "model"
    shutil.copytree(model_folder, copied)
    (copied / "plans.json").write_text(json.dumps(with_schemes(model_folder, "ZScoreNormalization", "HalfNormalization")))
    files = [str(raw_images / f"case_000_000{c}.nii.gz") for c in range(2)]
    rest = ["-f", "0", "--samples", "1", "--disable_tta", "-device", "cpu", f"--results={tmp_path}", f"--raw={tmp_path}"]
    for model, name in ((model_folder, "plain"), (copied, "own")):
        out = tmp_path / f"{name}.nii.gz"
        assert main(["-i", *files, "-o", str(out), "-m", str(model), *rest]) == 0
    assert (tmp_path / "plain_total.nii.gz").read_bytes() != (tmp_path / "own_total.nii.gz").read_bytes()
    monkeypatch.delenv("nnUNet_extTrainer")
    capsys.readouterr()
    assert main(["-i", *files, "-o", str(tmp_path / "none.nii.gz"), "-m", str(copied), *rest]) == 2
    error = capsys.readouterr().err
    assert "HalfNormalization" in error and error.count("\n") == 1 and not (tmp_path / "none.nii.gz").exists()


def test_a_reader_that_the_user_has_added_to_nnunet_is_used(
    make_dataset: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nnU-Net looks for readers in its package alone; here a copy of that folder stands in front of it."""
    package = tmp_path / "nnunetv2"
    shutil.copytree(Path(nnunetv2.imageio.__path__[0]), package / "imageio")
    content = "from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO\n\n\nclass OwnIO(SimpleITKIO):\n    pass\n"
    (package / "imageio" / "own_reader_writer.py").write_text(content)
    image = make_dataset(tmp_path / "raw", cases=2) / "imagesTr" / "case_000_0000.nii.gz"
    asked = {"overwrite_image_reader_writer": "OwnIO", "file_ending": ".nii.gz"}
    with pytest.raises(UserError, match="unknown reader 'OwnIO'"):
        find_reader(asked, image)
    monkeypatch.setattr(own_classes, "find_spec", lambda _: SimpleNamespace(submodule_search_locations=[str(package)]))
    monkeypatch.setattr(nnunetv2, "__path__", [str(package), *nnunetv2.__path__])
    monkeypatch.setattr(nnunetv2.imageio, "__path__", [*nnunetv2.imageio.__path__, str(package / "imageio")])
    reader = find_reader(asked, image)
    assert reader.__name__ == "OwnIO" and reader().read_images((str(image),))[0].shape == (1, 20, 24, 20)
    for name in ("OwnIO2", "own_reader_writer", "OwnIO.read", "os.system"):
        with pytest.raises(UserError, match="unknown reader"):
            find_reader(asked | {"overwrite_image_reader_writer": name}, image)
