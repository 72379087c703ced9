"""Predicts with a finished nnU-Net: its own segmentation, and calibrated maps, samples and volumes around it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window
from torch import Tensor

from nndiffseg.calibration.calibration import Calibration
from nndiffseg.calibration.confidence import soft_dice
from nndiffseg.calibration.temperature import tempered
from nndiffseg.data.checkpoint import digest
from nndiffseg.data.folds import check_unseen
from nndiffseg.data.records import hash_of
from nndiffseg.errors import UserError
from nndiffseg.inference.case_predictor import CasePredictor, check_numbers, device_or_best
from nndiffseg.inference.model_folder import DEFAULT_CHECKPOINT
from nndiffseg.inference.sampling import samples_of_fold
from nndiffseg.inference.stock_model import StockFold, StockModel, load_stock_model
from nndiffseg.nn.heads import Heads
from nndiffseg.uncertainty import Decomposition
from nndiffseg.uncertainty.statistics import CaseStatistics

SAMPLES = 16


class StockPredictor(CasePredictor):
    """Predicts with a stock nnU-Net that ``nndiffseg_calibrate`` has calibrated; make it with :meth:`from_folder`.

    The segmentation is that of ``nnUNetv2_predict`` with the same folds, mirroring and tile step, voxel by voxel. Each
    fold's probabilities are scaled by its temperature; their mean over folds is the map, and each fold's share of the samples
    is drawn from its own by the coherent sampler.
    """

    def __init__(
        self,
        model: StockModel,
        device: torch.device,
        *,
        samples: int = SAMPLES,
        seed: int = 0,
        step_size: float = 0.5,
        mirroring: bool = True,
        perform_everything_on_device: bool = True,
        origin: dict[str, Any] | None = None,
    ):
        """``origin`` (model folder, checkpoint) is recorded with the results."""
        self.model, self.device, self.origin = model, device, origin or {}
        self.samples, self.seed, self.step_size = samples, seed, step_size
        self.mirror_axes = model.mirror_axes if mirroring else ()
        self.plans, self.dataset_json, self.configuration_name = model.plans, model.dataset_json, model.configuration
        self.folds, self.trainer = tuple(fold.name for fold in model.folds), model.trainer
        with redirect_stdout(StringIO()):  # it complains about every device but CUDA
            self.nnunet = nnUNetPredictor(
                tile_step_size=step_size,
                use_mirroring=mirroring,
                perform_everything_on_device=device.type == "cuda" and perform_everything_on_device,
                device=device,
                allow_tqdm=False,
            )
        weights = [fold.weights for fold in model.folds]
        self.nnunet.manual_initialization(
            model.network, self.plans, self.configuration, weights, self.dataset_json, model.trainer, model.mirror_axes
        )

    @classmethod
    def from_folder(
        cls,
        model_folder: str | Path,
        folds: Sequence[int | str] | None = None,
        checkpoint: str = DEFAULT_CHECKPOINT,
        device: str | torch.device | None = None,
        *,
        samples: int | None = None,
        seed: int = 0,
        step_size: float = 0.5,
        mirroring: bool = True,
        perform_everything_on_device: bool = True,
    ) -> StockPredictor:
        """Loads a calibrated model folder.

        Args:
            model_folder: ``.../DatasetXXX_Name/TRAINER__PLANS__CONFIGURATION``, as ``nnUNetv2_train`` writes it.
            folds: such as ``[0, 1, 2]`` or ``["all"]``; None for all that are trained. Folds share the samples.
            checkpoint: file name in the fold's folder.
            device: ``"cuda"``, ``"cpu"``, ``"mps"`` or None for the best there is.
            samples: None for :data:`SAMPLES`.
            seed, step_size, mirroring, perform_everything_on_device: as for :class:`~nndiffseg.inference.predictor.Predictor`.

        Raises:
            UserError: the model is incomplete, cannot be read, or was not calibrated; or a number is out of range.
        """
        check_numbers(samples, None, step_size)
        model = load_stock_model(model_folder, folds, checkpoint)
        if missing := [fold.name for fold in model.folds if fold.calibration is None]:
            check_unseen(missing)
            raise UserError(
                f"{model_folder} is a stock nnU-Net without a calibration of fold {missing[0]}; run nndiffseg_calibrate "
                f"{model_folder} first."
            )
        return cls(
            model,
            device_or_best(device),
            samples=SAMPLES if samples is None else samples,
            seed=seed,
            step_size=step_size,
            mirroring=mirroring,
            perform_everything_on_device=perform_everything_on_device,
            origin={"model": str(Path(model_folder).resolve()), "checkpoint": checkpoint},
        )

    @property
    def sample_seed(self) -> int:
        return self.seed

    @property
    def number_of_samples(self) -> int:
        return max(self.samples, len(self.folds))

    def settings(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "samples": self.number_of_samples,
            "sampler": "coherent",
            "step_size": self.step_size,
            "mirror_axes": list(self.mirror_axes),
            "precision": "float16" if self.device.type == "cuda" else "float32",  # nnU-Net's own
            **self._common_settings(),
        }

    def model_key(self) -> str:
        return hash_of([[digest(fold.weights), (fold.calibration or Calibration()).to_json()] for fold in self.model.folds])

    def predict_preprocessed(
        self, data: np.ndarray | torch.Tensor, case_id: str, *, on_tile: Callable[[], None] | None = None
    ) -> CaseStatistics:
        data, folds = torch.as_tensor(data, dtype=torch.float32), self.model.folds
        labels, heads = self.empty_labels(data.shape[1:]), self._heads()
        decomposition = Decomposition(regions=heads.regions)
        total: Tensor | None = None
        calibrations, confidences = [], []
        for index, fold in enumerate(folds):
            logits = self.logits(data, fold, on_tile)
            calibration = fold.calibration or Calibration()
            p = heads.probabilities(logits, 0)
            confidences.append(soft_dice(p, heads))
            self.draw_coherent(p, case_id, samples_of_fold(self.samples, index, len(folds)), calibration, labels)
            p = tempered(p, calibration.temperature, heads)
            calibrations.append(calibration)
            decomposition.add(p)
            total = logits if total is None else total.add_(logits)  # in nnU-Net's precision and order, to the last bit
        assert total is not None
        total = total.div_(len(folds)) if len(folds) > 1 else total
        if len(folds) == 1:
            statistics = CaseStatistics.of_one_fold(p, labels, calibrations[0], heads.regions, confidences[0])
        else:
            statistics = CaseStatistics.of_folds(decomposition, labels, calibrations, confidences)
        return replace(statistics, logits=total)

    def logits(self, data: Tensor, fold: StockFold, on_tile: Callable[[], None] | None = None) -> Tensor:
        """nnU-Net's own logits of one fold ``(heads, *grid)`` float16 on the CPU; data ``(C, *grid)``."""
        self.nnunet.list_of_parameters = [fold.weights]

        def count(*_: Any) -> None:  # a hook that returned something would replace the network's output
            if on_tile is not None:
                on_tile()

        hook = self.nnunet.network.register_forward_hook(count)
        try:
            return self.nnunet.predict_logits_from_preprocessed_data(data).clone()  # nnU-Net's own may not be added to
        finally:
            hook.remove()

    def _heads(self) -> Heads:
        return Heads(self.label_manager.num_segmentation_heads, self.label_manager.has_regions)

    def tiles(self, data: np.ndarray | torch.Tensor) -> int:
        patch, shape = self.configuration.patch_size, data.shape[-len(self.configuration.patch_size) :]
        padded = [max(n, p) for n, p in zip(shape, patch, strict=True)]
        steps = compute_steps_for_sliding_window(tuple(padded), tuple(patch), self.step_size)
        slices = data.shape[1] if len(patch) < len(data.shape) - 1 else 1
        return math.prod(len(s) for s in steps) * slices * 2 ** len(self.mirror_axes) * len(self.folds)
