"""Uncertainty maps: entropy, and its decomposition over folds or members.

Several models predict together, each of which gives a distribution over labels (the mean of its samples). The entropy of
their mean splits into what every model is unsure about and what the models disagree about: H(mean_f p_f) = mean_f H(p_f) +
I(label; f). The first term is called aleatoric, the second epistemic (Depeweg et al. 2018, arXiv 1710.07283). Members that
were trained on the same cases with different seeds are a deep ensemble (Lakshminarayanan et al. 2017, arXiv 1612.01474). Folds
are none: they were trained on different cases (arXiv 2605.18329).
"""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Array = TypeVar("Array", np.ndarray, Tensor)


def entropy(probabilities: Array, *, regions: bool = False) -> Array:
    """Entropy of every voxel, normalised to [0, 1]. Works class by class: its memory is that of one class.

    Args:
        probabilities: ``(C, *spatial)``; NumPy or PyTorch. Softmax: they sum to 1 over C, background included.
        regions: the C heads are overlapping regions, each with its own probability.

    Returns:
        ``(*spatial)``, float32, of the input's kind. Softmax: Shannon entropy / log C. Regions: mean over regions of
        the binary entropy in bits.

    Raises:
        ValueError: softmax with fewer than two classes.
    """
    if not regions and len(probabilities) < 2:
        raise ValueError(f"The entropy of a softmax needs at least two classes, got {len(probabilities)}.")
    result = _entropy(torch.as_tensor(probabilities), regions)
    return result.numpy() if isinstance(probabilities, np.ndarray) else result


def _entropy(p: Tensor, regions: bool, divisor: int = 1) -> Tensor:
    """The entropy of ``p / divisor``, without making that array."""
    result = torch.zeros(p.shape[1:], dtype=torch.float32, device=p.device)
    for p_c in p:
        p_c = (p_c.float() / divisor).clamp_(0, 1)
        result += torch.special.entr(p_c)  # -p ln p, 0 at p = 0
        if regions:
            result += torch.special.entr(1 - p_c)
    result /= len(p) * math.log(2) if regions else math.log(len(p))
    return result.clamp_(0, 1)


class Decomposition:
    """Total, aleatoric and epistemic uncertainty over folds, fed one fold at a time.

    Holds one ``(C, *spatial)`` sum and one ``(*spatial)`` sum, however many folds there are.

    Args:
        regions: as in :func:`entropy`.
    """

    def __init__(self, *, regions: bool = False) -> None:
        self.regions = regions
        self.folds = 0
        self._probabilities: Tensor | None = None  # sum over folds, (C, *spatial)
        self._entropy: Tensor | None = None  # sum over folds, (*spatial)
        self._numpy = False

    def add(self, probabilities: np.ndarray | Tensor) -> None:
        """Adds one fold's mean over its samples, ``(C, *spatial)``.

        Raises:
            ValueError: the shape differs from that of the folds before.
        """
        p = torch.as_tensor(probabilities)
        h = entropy(p, regions=self.regions)
        if self._probabilities is None or self._entropy is None:
            self._probabilities, self._entropy = p.to(torch.float32, copy=True), h
            self._numpy = isinstance(probabilities, np.ndarray)
        elif p.shape != self._probabilities.shape:
            raise ValueError(f"Folds of shapes {tuple(self._probabilities.shape)} and {tuple(p.shape)} do not match.")
        else:
            self._probabilities += p
            self._entropy += h
        self.folds += 1

    @property
    def probabilities(self) -> np.ndarray | Tensor:
        """Mean over folds, ``(C, *spatial)``."""
        return self._out(self._sums()[0] / self.folds)

    @property
    def total(self) -> np.ndarray | Tensor:
        """H(mean over folds), ``(*spatial)`` in [0, 1]."""
        return self._out(_entropy(self._sums()[0], self.regions, self.folds))

    @property
    def aleatoric(self) -> np.ndarray | Tensor:
        """Mean over folds of H(fold), ``(*spatial)`` in [0, 1]."""
        return self._out(self._sums()[1] / self.folds)

    @property
    def epistemic(self) -> np.ndarray | Tensor:
        """I(label; fold) = total - aleatoric, ``(*spatial)`` in [0, 1]; 0 with one fold."""
        return self.maps()["epistemic"] if self.folds > 1 else self._out(torch.zeros_like(self._sums()[1]))

    def maps(self) -> dict[str, np.ndarray | Tensor]:
        """The maps that are written: ``total``, ``aleatoric`` and, with two or more folds, ``epistemic``."""
        p, h = self._sums()
        total, aleatoric = _entropy(p, self.regions, self.folds), h / self.folds
        maps = {"total": total, "aleatoric": aleatoric}
        if self.folds > 1:
            maps["epistemic"] = (total - aleatoric).clamp_(min=0)  # >= 0 by Jensen's inequality, up to rounding
        return {name: self._out(m) for name, m in maps.items()}

    def _sums(self) -> tuple[Tensor, Tensor]:
        if self._probabilities is None or self._entropy is None:
            raise ValueError("Add at least one fold before asking for its uncertainty.")
        return self._probabilities, self._entropy

    def _out(self, x: Tensor) -> np.ndarray | Tensor:
        return x.numpy() if self._numpy else x
