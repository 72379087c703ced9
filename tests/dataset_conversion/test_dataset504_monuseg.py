"""MoNuSeg: polygons become nuclei at the right place; the publishers' own files."""

from __future__ import annotations

import json

import numpy as np
import pytest
from dataset_replicas import monuseg
from PIL import Image

from nndiffseg.cli import convert, plan_and_preprocess
from nndiffseg.dataset_conversion.Dataset504_MoNuSeg import MONUSEG, nuclei
from nndiffseg.errors import UserError


def pixels(file):
    return np.asarray(Image.open(file))


def test_polygons_are_filled_in_x_and_y(tmp_path):
    monuseg(tmp_path / "source")
    folder = MONUSEG.convert(tmp_path / "source", tmp_path / "raw", progress=False)
    expected = np.zeros((16, 16), np.uint8)
    expected[3:9, 2:7] = 1
    np.testing.assert_array_equal(pixels(folder / "labelsTs" / "TCGA-2Z-A9J9-01A-01-TS1.png"), expected)


def test_annotations_without_polygons_or_with_broken_ones_are_refused(tmp_path):
    file = tmp_path / "a.xml"
    file.write_text("<Annotations/>")
    with pytest.raises(UserError, match=r"a\.xml holds no polygons of nuclei"):
        nuclei((file,), np.zeros((4, 4, 3)))
    file.write_text('<a><Region><Vertex X="1" Y="left"/></Region></a>')
    with pytest.raises(UserError, match=r"a\.xml holds a vertex without numbers X and Y"):
        nuclei((file,), np.zeros((4, 4, 3)))


def official(shared_data):
    source = shared_data / "monuseg" / "official"
    if not source.is_dir():
        pytest.skip("needs monuseg/official in ../shared/data, which is absent")
    return source


@pytest.mark.slow
def test_the_real_files_give_the_masks_that_were_drawn_from_them(shared_data, tmp_path, capsys):
    source, half = official(shared_data), shared_data / "monuseg" / "half_size" / "labels"
    assert convert.main(["MoNuSeg", str(source), "--raw", str(tmp_path), "--no_pbar"]) == 0
    assert "3 training images (published: 30 or 37) and 2 test images (published: 14)" in capsys.readouterr().out
    folder = tmp_path / "Dataset504_MoNuSeg"
    assert pixels(folder / "imagesTr" / "TCGA-21-5784-01Z-00-DX1_0000.png").shape == (1000, 1000, 3)
    for kind, name, least in (("Tr", "train", 0.94), ("Ts", "test", 1.0)):  # training masks are the publishers' own, not drawn
        for file in (folder / f"labels{kind}").iterdir():
            small = pixels(file).reshape(500, 2, 500, 2).mean((1, 3)) >= 0.5
            drawn = pixels(half / f"{name}_{file.name}") > 0
            assert 2 * (small & drawn).sum() / (small.sum() + drawn.sum()) >= least


@pytest.mark.slow
def test_the_real_files_can_be_planned_and_preprocessed(shared_data, tmp_path):
    assert convert.main(["MoNuSeg", str(official(shared_data)), "--raw", str(tmp_path / "raw"), "--no_pbar"]) == 0
    words = (
        f"-d 504 -c 2d -pl DiffSegPlannerS --verify_dataset_integrity --no_pbar -np 1 --raw {tmp_path / 'raw'} "
        f"--preprocessed {tmp_path} --results {tmp_path / 'results'}"
    )
    assert plan_and_preprocess.main(words.split()) == 0
    assert len(list((tmp_path / "Dataset504_MoNuSeg").glob("*/*.pkl"))) == 3
    assert len(json.loads((tmp_path / "Dataset504_MoNuSeg" / "splits_final.json").read_text())) == 3
