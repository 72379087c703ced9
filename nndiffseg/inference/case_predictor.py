"""What predictors of trained models share: one image in, one :class:`Prediction` out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

import nndiffseg
from nndiffseg.calibration.calibration import Calibration
from nndiffseg.data.cases import Case, read_case
from nndiffseg.data.dataset_json import channel_names
from nndiffseg.errors import UserError
from nndiffseg.export.geometry import CaseGeometry
from nndiffseg.export.staple import check_fusion
from nndiffseg.export.summary import case_record, case_summary
from nndiffseg.inference.coherent import draw_coherent, finest_edge, grid_spacing
from nndiffseg.inference.prediction import Prediction, array_of, blank_image, geometry_of, without_slice_axis
from nndiffseg.inference.stages import Stage, preprocess_stages
from nndiffseg.uncertainty.statistics import CaseStatistics


class CasePredictor(ABC):
    """Predicts with one trained model, in this process: no worker processes, no ``if __name__ == "__main__"``.

    Attributes:
        plans, dataset_json: of the model.
        configuration_name: in the plans.
        folds: names of the folds that predict together.
        device: where networks run.
        trainer: name of the class that trained the model.
        origin: model folder and checkpoint, as far as they are known.
    """

    plans: PlansManager
    dataset_json: dict[str, Any]
    configuration_name: str
    folds: tuple[str, ...]
    device: torch.device
    trainer: str
    origin: dict[str, Any]

    @property
    def label_manager(self) -> Any:
        """nnU-Net's manager of the dataset's labels."""
        return self.plans.get_label_manager(self.dataset_json)

    @property
    def configuration(self) -> ConfigurationManager:
        """nnU-Net's manager of the model's configuration."""
        return self.plans.get_configuration(self.configuration_name)

    @property
    @abstractmethod
    def sample_seed(self) -> int:
        """Of the noise: equal seeds give equal samples."""

    @property
    @abstractmethod
    def number_of_samples(self) -> int:
        """Over all folds, at least one for each."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """How this predictor predicts, JSON-ready; recorded in every case's JSON."""

    @abstractmethod
    def model_key(self) -> str:
        """Hash of the weights and calibrations of all folds."""

    def remark(self) -> str | None:
        """One sentence about what these settings leave out, or None."""
        return None

    def _common_settings(self) -> dict[str, Any]:
        """The part of :meth:`settings` that does not depend on how samples are drawn."""
        return {
            "device": self.device.type,
            "folds": list(self.folds),
            "trainer": self.trainer,
            "plans": self.plans.plans_name,
            "configuration": self.configuration_name,
            **self.origin,
            "versions": {"nndiffseg": nndiffseg.__version__, "nnunetv2": version("nnunetv2"), "torch": torch.__version__},
        }

    @abstractmethod
    def predict_preprocessed(
        self, data: np.ndarray | torch.Tensor, case_id: str, *, on_tile: Callable[[], None] | None = None
    ) -> CaseStatistics:
        """Samples one case that nnU-Net has preprocessed.

        Args:
            data: ``(C, *grid)``.
            case_id: names the noise.
            on_tile: called after every tile.

        Returns:
            The case's statistics on the grid of ``data``.
        """

    @abstractmethod
    def tiles(self, data: np.ndarray | torch.Tensor) -> int:
        """How often ``on_tile`` will be called for this case, over all folds."""

    def predict_stage(self, stage: Stage, case_id: str, *, on_tile: Callable[[], None] | None = None) -> CaseStatistics:
        """As :meth:`predict_preprocessed`, of a case as :func:`~nndiffseg.inference.stages.read_stages` reads it."""
        return self.predict_preprocessed(stage.data, case_id, on_tile=on_tile)

    def tiles_of(self, stage: Stage) -> int:
        """How often :meth:`predict_stage` will call ``on_tile``."""
        return self.tiles(stage.data)

    def predict(
        self,
        image: np.ndarray | sitk.Image | Sequence[sitk.Image] | str | Path | Sequence[str | Path],
        spacing: Sequence[float] | None = None,
        case_id: str = "image",
        *,
        fuse: str = "mean",
        return_samples: bool = False,
    ) -> Prediction:
        """Predicts one image.

        Args:
            image: an array ``(C, *spatial)`` with two or three spatial axes in the order of nnU-Net's readers (for
                medical images z, y, x); or a SimpleITK image, or a file, or a sequence of one of these per channel.
            spacing: of an array, in mm and in the order of its axes; default 1.
            case_id: names the noise; predictions of the same image under the same name and seed are equal.
            fuse: how samples become the segmentation: ``"mean"``, or ``"staple"`` for their consensus
                (:mod:`nndiffseg.export.staple`). Maps and probabilities are those of the mean either way.
            return_samples: also return every sample's label map.

        Raises:
            UserError: wrong number of channels or axes, NaN or infinite voxels, unreadable files.
        """
        check_fusion(fuse)
        data, where, squeeze = self._read(image, spacing, case_id)
        stage = preprocess_stages(data, where, self.plans, self.configuration_name, self.dataset_json)
        statistics = self.predict_stage(stage, case_id)
        check_finite_answer(statistics, case_id)
        geometry = CaseGeometry(stage.properties, self.plans, self.configuration)
        segmentation, probabilities = geometry.segmentation(statistics, self.dataset_json, with_probabilities=True, fuse=fuse)
        assert probabilities is not None
        summary = case_summary(statistics, segmentation, geometry, self.dataset_json)
        maps = {kind: geometry.maps_to_image(m.numpy()[None])[0] for kind, m in statistics.maps.items()}
        samples = np.stack([geometry.labels_to_image(m) for m in statistics.labels]) if return_samples else None
        prediction = Prediction(
            segmentation,
            probabilities,
            maps["total"],
            maps["aleatoric"],
            maps.get("epistemic"),
            summary["structures"],
            summary["expected_dice"],
            samples,
            {key: geometry.properties[key] for key in ("spacing", "sitk_stuff", "nibabel_stuff") if key in geometry.properties},
            case_record(case_id, summary, statistics, {**self.settings(), "fuse": fuse}),
        )
        return without_slice_axis(prediction) if squeeze else prediction

    def _read(self, image: Any, spacing: Sequence[float] | None, case_id: str) -> tuple[np.ndarray, dict[str, Any], bool]:
        """Array ``(C, z, y, x)``, properties, and whether the z axis was added."""
        channels = len(channel_names(self.dataset_json))
        parts = list(image) if isinstance(image, (list, tuple)) else [image]
        if not isinstance(image, np.ndarray) and all(isinstance(p, (str, Path)) for p in parts):
            data, properties = read_case(
                self.plans.image_reader_writer_class(), Case(case_id, tuple(Path(p) for p in parts)), channels
            )
            return data, properties, False
        if any(isinstance(p, (list, tuple)) for p in parts):
            raise UserError("predict takes one case; give the files of several cases to nndiffseg.predict_files.")
        if not isinstance(image, np.ndarray) and all(isinstance(p, sitk.Image) for p in parts):
            image, spacing = array_of(parts)
        data = np.asarray(image, dtype=np.float32)
        if data.ndim not in (3, 4) or len(data) != channels:
            raise UserError(
                f"The image has the shape {data.shape}, but the model needs {channels} channel"
                f"{'s' * (channels > 1)} first, then two or three spatial axes."
            )
        if spacing is None:
            spacing = [1.0] * (data.ndim - 1)
        if len(spacing) != data.ndim - 1 or min(spacing) <= 0:
            raise UserError(f"The spacing {tuple(spacing)} needs one positive number per spatial axis of {data.shape}.")
        if invalid := int((~np.isfinite(data)).sum()):
            raise UserError(f"The image holds {invalid} NaN or infinite voxels; replace them by a valid intensity.")
        spacing = [float(s) for s in spacing]
        where = geometry_of(parts[0]) if isinstance(parts[0], sitk.Image) else geometry_of(blank_image(spacing))
        if data.ndim == 4:
            return data, {"spacing": spacing, **where}, False
        return data[:, None], {"spacing": [999.0 * max(spacing), *spacing], **where}, True

    def draw_coherent(
        self, probabilities: torch.Tensor, case_id: str, samples: Sequence[int], calibration: Calibration, labels: np.ndarray
    ) -> None:
        """Fills ``labels`` ``(N, *grid)`` at ``samples``; ``probabilities`` ``(heads, *grid)`` before their temperature."""
        draw_coherent(
            probabilities.cpu(),
            case_id,
            samples,
            calibration,
            labels,
            spacing=grid_spacing(self.plans, self.configuration),
            finest=finest_edge(self.configuration),
            seed=self.sample_seed,
            label_manager=self.label_manager,
        )

    def empty_labels(self, shape: Sequence[int]) -> np.ndarray:
        """Label maps of all samples, empty ``(N, *shape)``: uint8, or uint16 with labels above 255."""
        wide = max(self.label_manager.all_labels) > 255
        return np.zeros((self.number_of_samples, *shape), np.uint16 if wide else np.uint8)


def device_or_best(device: str | torch.device | None) -> torch.device:
    """The device, by default the best one that the machine has."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    return torch.device(device)


def check_finite_answer(statistics: CaseStatistics, case_id: str) -> None:
    """Checks what a network answered.

    Raises:
        UserError: it is not finite.
    """
    if not all(torch.isfinite(values).all() for values in statistics.maps.values()):
        raise UserError(
            f"The network's answer to {case_id} is not finite, so there is no segmentation of it; look at the image's "
            "intensities, or train the model again."
        )


def check_numbers(samples: int | None, steps: int | None, step_size: float) -> None:
    """Checks what a user may set.

    Raises:
        UserError: a number is out of range.
    """
    for name, value in (("samples", samples), ("steps", steps)):
        if value is not None and value < 1:
            raise UserError(f"The number of {name} must be at least 1, not {value}.")
    if not 0 < step_size <= 1:
        raise UserError(f"The step size must lie in (0, 1], not {step_size}.")
