"""The predictor of models that were trained to draw samples."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nndiffseg.calibration.calibration import Calibration
from nndiffseg.calibration.confidence import soft_dice
from nndiffseg.calibration.sampler_choice import coherent_members
from nndiffseg.calibration.temperature import tempered
from nndiffseg.data.checkpoint import digest
from nndiffseg.data.records import hash_of
from nndiffseg.diffusion.samplers import Sampler, sampler_of
from nndiffseg.errors import UserError
from nndiffseg.export.geometry import CaseGeometry
from nndiffseg.inference.case_predictor import CasePredictor, check_numbers, device_or_best
from nndiffseg.inference.model_folder import (
    DEFAULT_CHECKPOINT,
    LoadedFold,
    LoadedModel,
    check_stages,
    folder_of_previous,
    load_model,
)
from nndiffseg.inference.sampling import SamplingOptions, samples_of_fold
from nndiffseg.inference.stages import PreviousStage, Stage, evenly, on_grid, outcome
from nndiffseg.inference.volume_sampler import VolumeSampler
from nndiffseg.methods.protocol import Method
from nndiffseg.nn.heads import Heads
from nndiffseg.nn.precision import default_precision
from nndiffseg.uncertainty import Decomposition
from nndiffseg.uncertainty.statistics import CaseParts, CaseStatistics, FusedSums, PartSums


class Predictor(CasePredictor):
    """Predicts with a model that was trained to draw samples.

    Make one with :meth:`from_folder` (a trained model) or :meth:`from_network` (a network at hand).

    That of a cascade's second stage runs the first one where its predictions are not given. The head sees the first stage's
    segmentation, and samples start from samples of it (:mod:`nndiffseg.inference.stages`).
    """

    def __init__(
        self,
        model: LoadedModel,
        options: SamplingOptions,
        device: torch.device,
        origin: dict[str, Any] | None = None,
        load_previous: Callable[[], Predictor] | None = None,
    ):
        """``origin`` (model folder, checkpoint) is recorded; ``load_previous`` makes a predictor of the stage before."""
        self.model, self.options, self.device, self.origin = model, options, device, origin or {}
        self._load_previous = load_previous
        self.plans, self.dataset_json, self.trainer = model.plans, model.dataset_json, model.trainer
        self.configuration_name, self.folds = model.configuration, tuple(fold.name for fold in model.folds)
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
        perform_everything_on_device: bool = True,
    ) -> Predictor:
        """Loads a model folder, as ``nndiffseg_train`` writes it.

        The second stage of a cascade predicts with the first one's model, the same folds, checkpoint and options, from the
        folder beside its own; it is loaded when it is needed for the first time.

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
            perform_everything_on_device: False keeps what grows with the image in the computer's memory, not the GPU's.

        Raises:
            UserError: the model is incomplete or not one of nndiffseg's, or an option is out of range.
        """
        how: dict[str, Any] = {"samples": samples, "steps": steps, "sampler": sampler, "seed": seed, "step_size": step_size}
        how |= {"mirroring": mirroring, "precision": precision}
        model = load_model(model_folder, folds, checkpoint)
        options = replace(_options(model, **how), sums_on_device=perform_everything_on_device)
        origin = {"model": str(Path(model_folder).resolve()), "checkpoint": checkpoint}

        def load_previous() -> Predictor:
            folder, names = folder_of_previous(Path(model_folder), model), [fold.name for fold in model.folds]
            how["perform_everything_on_device"] = perform_everything_on_device
            first = cls.from_folder(folder, names, checkpoint, device, **how)
            check_stages(first.model, model, folder)
            return first

        return cls(model, options, device_or_best(device), origin, load_previous)

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
        return cls(model, _options(model, samples, steps, sampler, seed, step_size, True, precision), device_or_best(device))

    @cached_property
    def previous(self) -> Predictor:
        """Of the stage before, in a cascade.

        Raises:
            UserError: its model cannot be found or does not belong to this one.
        """
        if self._load_previous is None:
            raise UserError("The stage before is unknown here; make the predictor with Predictor.from_folder.")
        return self._load_previous()

    # ---- one case -------------------------------------------------------------------------------------------------

    @property
    def sample_seed(self) -> int:
        return self.options.seed

    @property
    def number_of_samples(self) -> int:
        return max(self.options.samples, len(self.model.folds))

    def settings(self) -> dict[str, Any]:
        return {
            "seed": self.options.seed,
            "samples": self.number_of_samples,
            "steps": self.options.steps or self.model.folds[0].network.default_steps,
            "sampler": _name(self.options.sampler or self.model.folds[0].network.default_sampler),
            "coherent_share": [self._share(fold) for fold in self.model.folds],
            "step_size": self.options.step_size,
            "mirror_axes": list(self.options.mirror_axes),
            "precision": self.options.precision or default_precision(self.device),
            **self._common_settings(),
        }

    def model_key(self) -> str:
        return hash_of([[digest(fold.network.state_dict()), fold.calibration.to_json()] for fold in self.model.folds])

    def predict_stage(self, stage: Stage, case_id: str, *, on_tile: Callable[[], None] | None = None) -> CaseStatistics:
        previous = stage.previous
        if stage.before is not None:
            previous = self._run_previous(stage, stage.before, case_id, on_tile)
        return self.predict_preprocessed(stage.data, case_id, on_tile=on_tile, previous=previous)

    def _run_previous(self, stage: Stage, before: Stage, case_id: str, on_tile: Callable[[], None] | None) -> PreviousStage:
        """What the stage before finds, on the grid of this one."""
        first = self.previous
        statistics = first.predict_stage(before, case_id, on_tile=on_tile)
        geometry = CaseGeometry(before.properties, first.plans, first.configuration)
        segmentation, _ = geometry.segmentation(statistics, first.dataset_json, with_probabilities=False)
        maps = outcome(statistics, segmentation, geometry, evenly(first.number_of_samples))
        return on_grid(maps, stage.properties, self.plans, self.configuration_name, stage.data.shape[1:])

    def predict_preprocessed(
        self,
        data: np.ndarray | torch.Tensor,
        case_id: str,
        *,
        on_tile: Callable[[], None] | None = None,
        previous: PreviousStage | None = None,
    ) -> CaseStatistics:
        """As of :class:`CasePredictor`; ``previous`` is what the stage before found, for the second stage of a cascade."""
        self._check_previous(previous)
        data, case_id = torch.as_tensor(data, dtype=torch.float32), self._noise_name(case_id)
        regions, heads = self.label_manager.has_regions, self.label_manager.num_segmentation_heads
        labels, folds = self.empty_labels(data.shape[1:]), self.model.folds
        decomposition, confidences = Decomposition(regions=regions), []
        for index, fold in enumerate(folds):
            with self._on_device(fold) as network:
                sampler = self._sampler(network, on_tile)
                members = samples_of_fold(self.options.samples, index, len(folds))
                coherent = coherent_members(members, self._share(fold))
                diffused = [m for m in members if m not in coherent]
                weight = fold.calibration.fusion_weight if diffused else 1.0
                sums = FusedSums(heads, tuple(data.shape[1:]), sampler.sums_device(data), weight)
                sampler.run(data, case_id, diffused, sums, labels, previous)
            confidences.append(soft_dice(sums.fused, Heads(heads, regions)))
            if coherent:
                self.draw_coherent(sums.fused, case_id, coherent, fold.calibration, labels)
            fused = tempered(sums.fused, fold.calibration.temperature, Heads(heads, regions))
            if len(folds) == 1:
                return CaseStatistics.of_one_fold(fused, labels, fold.calibration, regions, confidences[0])
            decomposition.add(fused)
        return CaseStatistics.of_folds(decomposition, labels, [fold.calibration for fold in folds], confidences)

    def predict_parts(self, data: np.ndarray | torch.Tensor, case_id: str, previous: PreviousStage | None = None) -> CaseParts:
        """As :meth:`predict_preprocessed` with a single fold, before a calibration fuses head and samples."""
        self._check_previous(previous)
        data, case_id = torch.as_tensor(data, dtype=torch.float32), self._noise_name(case_id)
        (fold,), labels = self.model.folds, self.empty_labels(data.shape[1:])
        with self._on_device(fold) as network:
            sampler = self._sampler(network)
            heads = self.label_manager.num_segmentation_heads
            sums = PartSums(heads, tuple(data.shape[1:]), sampler.sums_device(data))
            sampler.run(data, case_id, range(self.options.samples), sums, labels, previous)
        return CaseParts(sums.deterministic.cpu(), sums.sampled.cpu(), labels, self.label_manager.has_regions)

    def statistics_of(self, parts: CaseParts, case_id: str, calibration: Calibration) -> CaseStatistics:
        """What :meth:`predict_preprocessed` gives with this calibration, up to the number of trained samples in the map.

        ``parts.labels`` are overwritten where the coherent sampler draws.
        """
        coherent = coherent_members(range(len(parts.labels)), calibration.coherent_share)
        if coherent:
            name = self._noise_name(case_id)
            self.draw_coherent(parts.fused(calibration), name, coherent, calibration, parts.labels)
        return parts.statistics(calibration)

    def _check_previous(self, previous: PreviousStage | None) -> None:
        """Raises UserError where a second stage lacks what the first one found."""
        stage = self.configuration.previous_stage_name
        if stage is not None and previous is None:
            raise UserError(
                f"{self.configuration_name} is the second stage of a cascade and needs what {stage} found; predict images or "
                "folders, which runs both stages, or give it as previous."
            )

    def _noise_name(self, case_id: str) -> str:
        """Names the noise: samples of a second stage must not be moved by the noise that moved those that they start from."""
        stage = self.configuration.previous_stage_name
        return case_id if stage is None else f"{case_id} after {stage}"

    def remark(self) -> str | None:
        ways = len(self.options.flips())
        seen = min((n for n in self._trained_samples(self.options.samples) if n), default=ways)
        if seen >= ways:  # without a trained sample the head's map is that of all mirrorings
            return None
        counts = itertools.count(self.number_of_samples)
        enough = next(n for n in counts if all(drawn in (0, *range(ways, n + 1)) for drawn in self._trained_samples(n)))
        what = "the image is not mirrored" if seen == 1 else f"only {seen} of {ways} mirrorings are used"
        of = " of each fold" if len(self.folds) > 1 else ""
        return (
            f"Mirroring is spread over the samples{of}: with --samples {self.options.samples} {what}, where nnU-Net averages "
            f"all {ways}; --samples {enough} uses all."
        )

    def _trained_samples(self, samples: int) -> list[int]:
        """How many of so many samples each fold draws by its diffusion, not by the coherent sampler."""
        folds = self.model.folds
        members = [samples_of_fold(samples, index, len(folds)) for index in range(len(folds))]
        return [len(m) - len(coherent_members(m, self._share(fold))) for m, fold in zip(members, folds, strict=True)]

    def _share(self, fold: LoadedFold) -> float:
        """Of coherent samples; none where the caller asked for a sampler or its steps."""
        asked = self.options.sampler is not None or self.options.steps is not None
        return 0.0 if asked else fold.calibration.coherent_share

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

    def tiles(self, data: np.ndarray | torch.Tensor, starts: int = 0) -> int:
        """As of :class:`CasePredictor`; ``starts`` is the number of the stage before's samples."""
        sampler, tensor = self._sampler(self.model.folds[0].network), torch.as_tensor(data)
        return sum(sampler.tiles(tensor, drawn, starts) for drawn in self._trained_samples(self.options.samples))

    def tiles_of(self, stage: Stage) -> int:
        if stage.before is None:
            return self.tiles(stage.data, 0 if stage.previous is None else stage.previous.starts)
        starts = len(evenly(self.previous.number_of_samples))
        return self.tiles(stage.data, starts) + self.previous.tiles_of(stage.before)


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
    check_numbers(samples, steps, step_size)
    if sampler is not None:
        sampler_of(sampler)
        if isinstance(sampler, str) and sampler not in model.method.samplers:
            allowed = ", ".join(model.method.samplers)
            raise UserError(f"{sampler} is no sampler of {model.trainer}; leave out --sampler or choose {allowed}.")
    return SamplingOptions(samples, steps, sampler, seed, step_size, model.mirror_axes if mirroring else (), precision)


def _name(sampler: str | Sampler) -> str:
    return sampler if isinstance(sampler, str) else getattr(sampler, "__name__", "a function")
