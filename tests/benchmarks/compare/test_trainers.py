"""Trainers by name, and entries with options."""

from __future__ import annotations

import pytest

from benchmarks.compare.trainers import TRAINERS, Entry, class_name, find_class
from nndiffseg.errors import UserError


def test_every_default_trainer_is_found_by_its_name():
    assert [find_class(name).__name__ for name in TRAINERS] == list(TRAINERS)


def test_a_variant_in_a_module_is_found():
    found = find_class("benchmarks.component_ablation:CDALNoLatent")
    assert found.__name__ == class_name("benchmarks.component_ablation:CDALNoLatent") == "CDALNoLatent"
    with pytest.raises(UserError, match="no trainer Nothing"):
        find_class("benchmarks.component_ablation:Nothing")


def test_an_entry_with_options_has_plans_and_a_folder_of_its_own(tiny_data):
    plain, changed = (Entry("nnDiffSegTrainerCDAL", o) for o in ((), ("attention=false", "steps=2")))
    assert plain.of(tiny_data) is tiny_data
    data = changed.of(tiny_data)
    cls = find_class(changed.trainer)
    assert cls.method_class.options_of(data.plans["configurations"]["2d"]).attention is False
    assert cls.method_class.options_of(tiny_data.plans["configurations"]["2d"]).attention is True  # not changed in passing
    assert data.fold_folder(cls.__name__) != tiny_data.fold_folder(cls.__name__)
    assert changed.name != plain.name
    assert changed.flags == ["--trainer", changed.trainer, "--option", "attention=false", "--option", "steps=2"]


def test_an_option_that_the_method_lacks_is_told(tiny_data):
    with pytest.raises(UserError, match="have no colour"):
        Entry("nnDiffSegTrainerCDAL", ("colour=1",)).of(tiny_data)
