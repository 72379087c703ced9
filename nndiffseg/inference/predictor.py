"""The Python interface: :class:`Predictor` and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

import nndiffseg
from nndiffseg.calibration.calibration import Calibration
from nndiffseg.calibration.temperature import tempered
from nndiffseg.data.cases import Case, preprocess, read_case
from nndiffseg.data.dataset_json import channel_names
from nndiffseg.diffusion.samplers import Sampler, sampler_of
from nndiffseg.errors import UserError
from nndiffseg.export.geometry import CaseGeometry
from nndiffseg.export.staple import check_fusion
from nndiffseg.export.summary import case_summary
from nndiffseg.inference.model_folder import DEFAULT_CHECKPOINT, LoadedFold, LoadedModel, load_model
from nndiffseg.inference.prediction import Prediction, array_of, without_slice_axis
from nndiffseg.inference.sampling import SamplingOptions, samples_of_fold
from nndiffseg.inference.volume_sampler import VolumeSampler
from nndiffseg.methods.protocol import Method
from nndiffseg.nn.heads import Heads
from nndiffseg.nn.precision import default_precision
from nndiffseg.uncertainty import Decomposition
from nndiffseg.uncertainty.statistics import CaseParts, CaseStatistics, FusedSums, PartSums


class Predictor:
    """Predicts with one trained model, in this process: no worker processes, no ``if __name__ == "__main__"``.

    Make one with :meth:`from_folder` (a trained model) or :meth:`from_network` (a network at hand).
    """

    def __init__(
        self, model: LoadedModel, options: SamplingOptions, device: torch.device, origin: dict[str, Any] | None = None
    ):
        """``origin`` (model folder, checkpoint) is recorded with the results."""
        self.model, self.options, self.device, self.origin = model, options, device, origin or {}
        self.plans, self.dataset_json = model.plans, model.dataset_json
        self.label_manager = model.plans.get_label_manager(model.dataset_json)
        if len(model.folds) == 1:
            model.folds[0].network.to(device)

    @classmethod
    def from_folder(
        cls,
        model_folder: str | Path,
        folds: Sequence[int | str] | None = None,
        checkpoint: str = DEFAULT_CHECKPOINT,
        device: str | torch.device | None = None,
        *,
        samples: int | None = None,
        steps: int | None = None,
        sampler: str | Sampler | None = None,
        seed: int = 0,
        step_size: float = 0.5,
        mirroring: bool = True,
        precision: str | None = None,
    ) -> Predictor:
        """Loads a model folder, as ``nndiffseg_train`` writes it.

        Args:
            model_folder: ``.../DatasetXXX_Name/TRAINER__PLANS__CONFIGURATION``.
            folds: such as ``[0, 1, 2]`` or ``["all"]``; None for all that are trained. Folds share the samples.
            checkpoint: file name in the fold's folder.
            device: ``"cuda"``, ``"cpu"``, ``"mps"`` or None for the best there is.
            samples, steps, sampler: None for what the plans and the method's options say. ``sampler`` is a name of
                :data:`~nndiffseg.diffusion.samplers.SAMPLERS` that the method allows, or a function.
            seed: the same seed gives the same result, whatever else is predicted and in which order.
            step_size: largest step between tiles, as a fraction of the patch.
            mirroring: mirror the image for some of the samples, along the axes that the training allowed.
            precision: ``"bfloat16"``, ``"float16"``, ``"float32"`` or None for the device's best.

        Raises:
            UserError: the model is incomplete or not one of nndiffseg's, or an option is out of range.
        """
        model = load_model(model_folder, folds, checkpoint)
        options = _options(model, samples, steps, sampler, seed, step_size, mirroring, precision)
        origin = {"model": str(Path(model_folder).resolve()), "checkpoint": checkpoint}
        return cls(model, options, _device(device), origin)

    @classmethod
    def from_network(
        cls,
        method: Method,
        network: Any,
        plans_manager: PlansManager,
        configuration: str,
        dataset_json: dict[str, Any],
        trainer_name: str,
        allowed_mirroring_axes: Sequence[int] | None,
        *,
        calibration: Calibration | None = None,
        device: str | torch.device | None = None,
        fold: int | str = "network",
        samples: int | None = None,
        steps: int | None = None,
        sampler: str | Sampler | None = None,
        seed: int = 0,
        step_size: float = 0.5,
        precision: str | None = None,
    ) -> Predictor:
        """Wraps a network as it is, for a trainer's validation. ``configuration`` is a name in the plans."""
        axes = tuple(int(a) for a in allowed_mirroring_axes or ())
        folds = (LoadedFold(str(fold), network.eval(), calibration or Calibration()),)
        model = LoadedModel(method, folds, plans_manager, configuration, dataset_json, trainer_name, axes)
        return cls(model, _options(model, samples, steps, sampler, seed, step_size, True, precision), _device(device))

    # ---- one case -------------------------------------------------------------------------------------------------

    @property
    def configuration(self) -> ConfigurationManager:
        """nnU-Net's manager of the model's configuration."""
        return self.plans.get_configuration(self.model.configuration)

    @property
    def number_of_samples(self) -> int:
        """At least one sample for each fold."""
        return max(self.options.samples, len(self.model.folds))

    def settings(self) -> dict[str, Any]:
        """How this predictor predicts, JSON-ready; recorded in every case's JSON."""
        return {
            "seed": self.options.seed,
            "samples": self.number_of_samples,
            "steps": self.options.steps or self.model.folds[0].network.default_steps,
            "sampler": _name(self.options.sampler or self.model.folds[0].network.default_sampler),
            "step_size": self.options.step_size,
            "mirror_axes": list(self.options.mirror_axes),
            "precision": self.options.precision or default_precision(self.device),
            "device": self.device.type,
            "folds": [fold.name for fold in self.model.folds],
            "trainer": self.model.trainer,
            "plans": self.plans.plans_name,
            "configuration": self.model.configuration,
            **self.origin,
            "versions": {"nndiffseg": nndiffseg.__version__, "nnunetv2": version("nnunetv2"), "torch": torch.__version__},
        }

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
        data, properties, squeeze = self._read(image, spacing, case_id)
        data, properties = preprocess(data, properties, self.plans, self.model.configuration, self.dataset_json)
        statistics = self.predict_preprocessed(data, case_id)
        geometry = CaseGeometry(properties, self.plans, self.configuration)
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
        if data.ndim == 4:
            return data, {"spacing": [float(s) for s in spacing]}, False
        return data[:, None], {"spacing": [999.0 * max(spacing), *(float(s) for s in spacing)]}, True

    def predict_preprocessed(
        self, data: np.ndarray | torch.Tensor, case_id: str, *, on_tile: Callable[[], None] | None = None
    ) -> CaseStatistics:
        """Samples one case that nnU-Net has preprocessed; each fold's samples are fused by that fold's calibration.

        Args:
            data: ``(C, *grid)``.
            case_id: names the noise.
            on_tile: called after every tile.

        Returns:
            The case's statistics on the grid of ``data``.
        """
        data = torch.as_tensor(data, dtype=torch.float32)
        regions, heads = self.label_manager.has_regions, self.label_manager.num_segmentation_heads
        labels, folds = self._empty_labels(data), self.model.folds
        decomposition = Decomposition(regions=regions)
        for index, fold in enumerate(folds):
            with self._on_device(fold) as network:
                sampler = self._sampler(network, on_tile)
                sums = FusedSums(heads, tuple(data.shape[1:]), sampler.sums_device(data), fold.calibration.fusion_weight)
                sampler.run(data, case_id, samples_of_fold(self.options.samples, index, len(folds)), sums, labels)
            fused = tempered(sums.fused, fold.calibration.temperature, Heads(heads, regions))
            if len(folds) == 1:
                return CaseStatistics.of_one_fold(fused, labels, fold.calibration, regions)
            decomposition.add(fused)
        return CaseStatistics.of_folds(decomposition, labels, [fold.calibration for fold in folds])

    def predict_parts(self, data: np.ndarray | torch.Tensor, case_id: str) -> CaseParts:
        """As :meth:`predict_preprocessed` with a single fold, before a calibration fuses head and samples."""
        data = torch.as_tensor(data, dtype=torch.float32)
        (fold,), labels = self.model.folds, self._empty_labels(data)
        with self._on_device(fold) as network:
            sampler = self._sampler(network)
            heads = self.label_manager.num_segmentation_heads
            sums = PartSums(heads, tuple(data.shape[1:]), sampler.sums_device(data))
            sampler.run(data, case_id, range(self.options.samples), sums, labels)
        return CaseParts(sums.deterministic.cpu(), sums.sampled.cpu(), labels, self.label_manager.has_regions)

    def _empty_labels(self, data: torch.Tensor) -> np.ndarray:
        wide = max(self.label_manager.all_labels) > 255
        return np.zeros((self.number_of_samples, *data.shape[1:]), np.uint16 if wide else np.uint8)

    @contextmanager
    def _on_device(self, fold: LoadedFold) -> Iterator[Any]:
        """The fold's network where it runs; with several folds only the one whose turn it is occupies a GPU."""
        yield fold.network.to(self.device)
        if len(self.model.folds) > 1:
            fold.network.to("cpu")

    def _sampler(self, network: Any, on_tile: Callable[[], None] | None = None) -> VolumeSampler:
        return VolumeSampler(
            network,
            self.configuration.patch_size,
            self.label_manager,
            self.device,
            self.options,
            slice_batch=max(1, min(16, self.configuration.batch_size)),
            on_tile=on_tile,
        )

    def tiles(self, data: np.ndarray | torch.Tensor) -> int:
        """How often ``on_tile`` will be called for this case, over all folds."""
        folds = len(self.model.folds)
        counts = [len(samples_of_fold(self.options.samples, fold, folds)) for fold in range(folds)]
        sampler, tensor = self._sampler(self.model.folds[0].network), torch.as_tensor(data)
        return sum(sampler.tiles(tensor, count) for count in counts)


def _options(
    model: LoadedModel,
    samples: int | None,
    steps: int | None,
    sampler: str | Sampler | None,
    seed: int,
    step_size: float,
    mirroring: bool,
    precision: str | None,
) -> SamplingOptions:
    samples = model.method.plan.settings.samples if samples is None else samples
    for name, value in (("samples", samples), ("steps", steps)):
        if value is not None and value < 1:
            raise UserError(f"The number of {name} must be at least 1, not {value}.")
    if not 0 < step_size <= 1:
        raise UserError(f"The step size must lie in (0, 1], not {step_size}.")
    if sampler is not None:
        sampler_of(sampler)
        if isinstance(sampler, str) and sampler not in model.method.samplers:
            allowed = ", ".join(model.method.samplers)
            raise UserError(f"{sampler} is no sampler of {model.trainer}; leave out --sampler or choose {allowed}.")
    return SamplingOptions(samples, steps, sampler, seed, step_size, model.mirror_axes if mirroring else (), precision)


def _name(sampler: str | Sampler) -> str:
    return sampler if isinstance(sampler, str) else getattr(sampler, "__name__", "a function")


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    return torch.device(device)
