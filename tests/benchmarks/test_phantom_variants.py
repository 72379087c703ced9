"""The command around the phantoms of several modes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import phantom_variants
from nndiffseg.data.phantom_variants import VARIANTS


def test_a_dataset_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(phantom_variants, "VOLUME_DRAWS", 4)
    monkeypatch.setattr(phantom_variants, "ANNOTATIONS", 2)
    flags = ["--write", str(tmp_path), "--variant", "shift", "--cases", "4", "--validation_cases", "1"]
    assert phantom_variants.main(flags) == 0
    dataset = tmp_path / "Dataset992_PhantomShift"
    assert str(dataset) in capsys.readouterr().out
    assert len(list((dataset / "imagesTr").iterdir())) == 4 and len(list((dataset / "ratersTr").glob("*/*"))) == 2
    assert not list((dataset / "imagesTs").iterdir())


def test_thresholds_reach_nested_draws_and_no_others(monkeypatch):
    monkeypatch.setattr(phantom_variants, "DRAWS", 60)
    found = {}
    for name, (_, variant) in VARIANTS.items():
        rng = np.random.default_rng(0)
        scores = phantom_variants.scores_of(variant.draw(rng, law=variant.law), rng, "case", 0)
        assert all(energy >= 0 for _, energy in scores.values())
        found[name] = {k: ged for k, (ged, _) in scores.items()}
    assert found["shift"]["inf"] > 1.5 * found["shift"]["true draws"]
    for name in ("optional", "boundaries"):
        assert found[name]["inf"] < 1.5 * found[name]["true draws"] and found[name]["16"] > 1.5 * found[name]["inf"]


@pytest.mark.slow
def test_a_table_says_what_is_possible(monkeypatch, results_elsewhere):
    monkeypatch.setattr(phantom_variants, "DRAWS", 32)
    assert phantom_variants.main(["--possible", "--cases", "1", "--name", "possible"]) == 0
    found = json.loads((results_elsewhere / "possible.json").read_text())["GED^2 and energy score"]
    assert list(found) == ["Phantom", "PhantomOptional", "PhantomBoundaries", "PhantomShift"]
    assert all(next(iter(v)) == "true draws" and len(v) == 1 + len(phantom_variants.WEIGHTS) for v in found.values())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--variant", "shfit"], "did you mean shift?"),
        (["--variant", "shift", "--cases", "4", "--validation_cases", "4"], "between 1 and 3"),
        (["--variant", "shift", "--cases", "0"], "at least 1"),
    ],
)
def test_bad_input_is_told_in_one_sentence(flags, message, tmp_path, capsys):
    assert phantom_variants.main(["--write", str(tmp_path), *flags]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not list(tmp_path.iterdir())
