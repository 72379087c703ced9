"""``-pretrained_weights``: a new training that starts from the weights of another one, as in nnU-Net.

The other training may be nndiffseg's (then the whole network starts from it) or stock nnU-Net's on the same architecture
(then the image network does). As in nnU-Net the segmentation layers start anew, and so does whatever has another shape
because the labels differ.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from nndiffseg.data.checkpoint import load_any_checkpoint
from nndiffseg.errors import UserError

#: nnU-Net's name for the layers that make logits
SEGMENTATION_LAYERS = ".seg_layers."
#: A checkpoint of which less fits was made for another architecture.
LEAST_SHARE = 0.9


def load_pretrained_weights(network: nn.Module, path: str | Path) -> str:
    """Copies weights into a freshly built network.

    Args:
        network: an nndiffseg network, without wrappers.
        path: a checkpoint of nndiffseg or nnU-Net.

    Returns:
        One sentence that says what was copied.

    Raises:
        UserError: the file is absent or no checkpoint, or less than :data:`LEAST_SHARE` of the weights that should fit do.
    """
    weights = load_any_checkpoint(path)["network_weights"]
    own = network.state_dict()
    prefix = _prefix(weights, own)
    if prefix is None:
        raise UserError(
            f"The weights in {path} are those of another kind of network; choose a checkpoint of the same "
            "trainer, or one of nnUNetTrainer for a trainer that contains nnU-Net's network."
        )
    wanted = {k: v for k, v in own.items() if k.startswith(prefix) and SEGMENTATION_LAYERS not in k}
    fits = {
        k: weights[k[len(prefix) :]]
        for k, v in wanted.items()
        if k[len(prefix) :] in weights and weights[k[len(prefix) :]].shape == v.shape
    }
    share = _elements(fits) / _elements(wanted)
    if share < LEAST_SHARE:
        first = next(k for k in wanted if k not in fits)
        raise UserError(
            f"Only {share:.0%} of the weights in {path} fit this network, {first} for one does not; choose a "
            "checkpoint that was trained with the same plans (see nndiffseg_plan_and_preprocess)."
        )
    network.load_state_dict(own | fits)
    part = "the whole network" if not prefix else f"nnU-Net's network ({prefix.rstrip('.')})"
    fresh = len(wanted) - len(fits)
    return (
        f"Pretrained weights: {part}, from {path}; the segmentation layers"
        + (f" and {fresh} tensors of another shape" if fresh else "")
        + " start anew."
    )


def _prefix(weights: dict[str, Tensor], own: dict[str, Tensor]) -> str | None:
    """What stands before the names of ``weights`` in the network: nothing, or the path of nnU-Net's network in it."""
    names = [k for k in weights if SEGMENTATION_LAYERS not in k]
    candidates = {"", *(k[: -len(names[0])] for k in own if k.endswith(f".{names[0]}"))} if names else {""}
    found = {p: sum(p + n in own for n in names) / max(1, len(names)) for p in candidates}
    best = max(sorted(found, key=len), key=found.__getitem__)
    return best if found[best] > 0.5 else None


def _elements(tensors: dict[str, Tensor]) -> int:
    return sum(t.numel() for t in tensors.values())
