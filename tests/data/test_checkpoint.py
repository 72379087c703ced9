"""What a checkpoint says beside its weights is checked before it is used."""

from __future__ import annotations

import pytest
import torch

from nndiffseg.data.checkpoint import load_any_checkpoint, mirror_axes
from nndiffseg.errors import UserError


@pytest.mark.parametrize(("allowed", "axes"), [(None, ()), ((0, 2), (0, 2)), ([1], (1,))])
def test_mirrored_axes_are_those_of_the_checkpoint(allowed, axes):
    assert mirror_axes({"inference_allowed_mirroring_axes": allowed}, 3, "x.pth") == axes


@pytest.mark.parametrize("allowed", ["01", (0, 3), (-1,), (0.5,), ["0"], {"0": 1}, (True,)])
def test_axes_that_the_patch_does_not_have_are_one_sentence(allowed):
    with pytest.raises(UserError, match="axes that its patch does not have"):
        mirror_axes({"inference_allowed_mirroring_axes": allowed}, 3, "x.pth")


def test_what_stands_beside_the_tensors_is_the_same_without_reading_them(tmp_path):
    file = tmp_path / "checkpoint_final.pth"
    torch.save({"network_weights": {"a": torch.arange(5.0)}, "trainer_name": "X"}, file)
    whole, light = load_any_checkpoint(file), load_any_checkpoint(file, tensors=False)
    assert whole["trainer_name"] == light["trainer_name"] and torch.equal(
        whole["network_weights"]["a"], light["network_weights"]["a"]
    )
