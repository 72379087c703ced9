"""The numbers that are fitted on validation cases after a training, as a value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic.dataclasses import dataclass

from nndiffseg.calibration.expected_dice import DiceMap
from nndiffseg.data.files import write_json
from nndiffseg.data.schema import CONFIG, Index, Positive, Share, Weight, to_json, validated
from nndiffseg.diffusion.coherent import LENGTHS
from nndiffseg.errors import UserError
from nndiffseg.nn.heads import Heads

FILE = "calibration.json"
#: shares of coherent samples that there are, the simplest sampler first
SHARES = (1.0, 0.5, 0.0)


@dataclass(frozen=True, config=CONFIG)
class Calibration:
    """What predictions are corrected by.

    It stands in the checkpoint and in ``fold_K/calibration.json``; the one that was fitted on all folds stands in
    ``calibration.json`` beside ``plans.json``.

    Attributes:
        fusion_weight: w of the deterministic head in the fused probability, w p_head + (1 - w) mean of the samples'.
        temperature: T of the fused probabilities, softmax(z / T); one for all labels, or one for each region.
        length_weights: of the coherent sampler's correlation lengths (:data:`nndiffseg.diffusion.coherent.LENGTHS`); empty
            where all samples are a trained network's.
        coherent_share: of the samples, drawn by the coherent sampler; the others are a trained network's
            (:mod:`nndiffseg.calibration.sampler_choice`).
        volume_scale: r by which samples' volumes are stretched around their mean, where volumes are reported.
        volume_quantiles: of each structure, half the width of the 90 % interval in standard deviations of the samples'
            volumes (:mod:`nndiffseg.calibration.volumes`); None where the groups are too few to promise one.
        dice: from the confidence of the probabilities to the expected Dice; None where the cases are too few.
        groups: number of groups of cases that all of this was fitted on; 0 where nothing was fitted.
        folds: whose validation cases these were.
    """

    fusion_weight: Share = 0.5
    temperature: tuple[Positive, ...] = (1.0,)
    length_weights: tuple[Share, ...] = ()
    coherent_share: Share = 0.0
    volume_scale: Positive = 1.0
    volume_quantiles: tuple[Weight | None, ...] = ()
    dice: DiceMap | None = None
    groups: Index = 0
    folds: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return to_json(self)

    @classmethod
    def from_json(cls, values: Any) -> Calibration:
        """Inverse of :meth:`to_json`.

        Raises:
            UserError: unknown names, wrong types or values out of range.
        """
        return validated(cls, values, "The calibration's numbers", "calibrate anew with nndiffseg_calibrate")

    def check(self, heads: Heads, structures: int, where: str, *, coherent: bool = False) -> None:
        """Checks that it is one of such a model; a file may have been copied from another.

        Args:
            heads: of the model.
            structures: their number K.
            where: the file or model, the start of the message.
            coherent: the model has no samples of its own, so all are the coherent sampler's.

        Raises:
            UserError: other numbers of labels, regions, structures or lengths, weights that do not sum to 1, or a share that
                is none of :data:`SHARES`.
        """
        fits = len(self.temperature) in ({1, heads.number} if heads.regions else {1})
        fits &= len(self.volume_quantiles) in (0, structures)
        weighted = len(self.length_weights) == len(LENGTHS) and abs(sum(self.length_weights) - 1) < 1e-6
        fits &= self.coherent_share in SHARES
        fits &= weighted or not (self.length_weights or coherent or self.coherent_share)
        if not fits:
            raise UserError(f"The calibration of {where} is not one of this model; calibrate it anew with nndiffseg_calibrate.")

    def write(self, folder: Path) -> None:
        """Writes ``calibration.json`` into the folder of a fold or of a model."""
        write_json(self.to_json(), folder / FILE)
