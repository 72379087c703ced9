"""The finished nnU-Net in the plans: its record, and weights that must fit to the last tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nndiffseg.data.checkpoint import digest
from nndiffseg.errors import UserError
from nndiffseg.methods.latent.source import KEY, Source, load_finished, read_finished


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))


def source(unet: nn.Module, fold: str = "0") -> Source:
    return Source("nnUNetTrainer", "nnUNetPlans", (0, 1), {fold: digest(unet.state_dict())})


def test_the_digest_depends_on_names_shapes_types_and_values():
    weights = network().state_dict()
    others: list[dict[str, Any]] = [
        {f"x.{k}": v for k, v in weights.items()},
        weights | {"0.weight": weights["0.weight"].double()},
        weights | {"0.weight": weights["0.weight"].flatten()},
        weights | {"0.bias": torch.nextafter(weights["0.bias"], torch.ones(4))},
        weights | {"1.num_batches_tracked": torch.tensor(1)},
    ]
    digests = {digest(w) for w in (weights, *others)}
    assert len(digests) == 6
    assert digest(dict(reversed(weights.items()))) == digest(weights)


def test_the_record_stands_in_the_plans_and_knows_its_weights():
    unet = network()
    record = Source.from_configuration({"diffusion": {KEY: source(unet).to_plan()}})
    assert record == source(unet)
    record.check(unet, 0)
    for other, fold in ((network(1), 0), (unet, 1)):
        with pytest.raises(UserError, match="attach this fold anew"):
            record.check(other, fold)


@pytest.mark.parametrize(
    "record", [{"trainer": "nnUNetTrainer"}, {**source(network()).to_plan(), "mirror_axes": ["0"]}, "text"]
)
def test_a_foreign_record_is_refused_in_one_sentence(record):
    with pytest.raises(UserError, match="make them again with nndiffseg_attach"):
        Source.from_configuration({"diffusion": {KEY: record}})


def test_plans_without_a_record_are_refused():
    with pytest.raises(UserError, match="attached to no finished nnU-Net"):
        Source.from_configuration({"diffusion": {}})


def test_weights_are_taken_over_unchanged():
    target, weights = network(1), network(0).state_dict()
    load_finished(target, weights, "here")
    assert all(torch.equal(v, weights[k]) for k, v in target.state_dict().items())


def test_weights_that_do_not_fit_exactly_are_refused_and_change_nothing():
    target, weights = network(1), network(0).state_dict()
    before = digest(target.state_dict())
    cases: dict[str, dict[str, Any]] = {
        r"it lacks '0\.bias'": {k: v for k, v in weights.items() if k != "0.bias"},
        r"network lacks '2\.weight'": weights | {"2.weight": torch.ones(1)},
        "0.weight differs": weights | {"0.weight": weights["0.weight"][:2]},
        "0.bias differs": weights | {"0.bias": weights["0.bias"].half()},
        "1.bias differs": weights | {"1.bias": "text"},
    }
    for message, content in cases.items():
        with pytest.raises(UserError, match=message):
            load_finished(target, content, "here")
    assert digest(target.state_dict()) == before


def test_a_model_of_nndiffseg_is_refused(tmp_path: Path):
    torch.save({"network_weights": network().state_dict(), "nndiffseg_version": "0.2.0"}, tmp_path / "c.pth")
    with pytest.raises(UserError, match="model of nndiffseg already"):
        read_finished(tmp_path / "c.pth")
