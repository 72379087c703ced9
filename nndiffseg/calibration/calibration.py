"""The numbers that are fitted on validation cases after a training, as a value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic.dataclasses import dataclass

from nndiffseg.data.files import write_json
from nndiffseg.data.schema import CONFIG, Index, Positive, Share, to_json, validated

FILE = "calibration.json"


@dataclass(frozen=True, config=CONFIG)
class Calibration:
    """What one fold's predictions are corrected by. It stands in the checkpoint and in ``fold_K/calibration.json``.

    Attributes:
        fusion_weight: w of the deterministic head in the fused probability, w p_head + (1 - w) mean of the samples'.
        volume_scale: r by which samples' volumes are stretched around their mean, where volumes are reported.
        groups: number of groups of cases that both were fitted on; 0 where nothing was fitted.
        folds: whose validation cases these were.
    """

    fusion_weight: Share = 0.5
    volume_scale: Positive = 1.0
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
        return validated(cls, values, "The calibration's numbers", "calibrate anew with nndiffseg_train --val")

    def write(self, folder: Path) -> None:
        """Writes ``calibration.json`` into a fold's folder."""
        write_json(self.to_json(), folder / FILE)
