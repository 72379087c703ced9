"""Predicts a fold's validation cases with one trained model and keeps the results; goes on where it stopped.

    python -m benchmarks.methods_prediction --dataset 4 --configuration 2d --trainer nnDiffSegTrainerLDSeg --samples 8

Probabilities and samples lie on the image's own grid. Where nnU-Net resampled the image, probabilities are resampled
linearly, for every method alike.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.methods_common import STOCK, clock_of, data_parser, find_class
from benchmarks.methods_data import Data, data_from, image_files
from benchmarks.methods_training import FINAL
from nndiffseg.cli.common import pick_device, run
from nndiffseg.data.cases import Case, preprocess, read_case
from nndiffseg.data.dataset_json import channel_names
from nndiffseg.data.files import write_json
from nndiffseg.errors import UserError
from nndiffseg.export.geometry import CaseGeometry
from nndiffseg.inference.predictor import Predictor
from nndiffseg.methods.protocol import MethodPlan
from nndiffseg.nn.precision import default_precision
from nndiffseg.training.loader import seed_of
from nndiffseg.uncertainty.statistics import CaseParts, label_map

SETTINGS = "settings.json"


@dataclass(frozen=True)
class Options:
    """How to predict; ``steps`` and ``sampler`` None for what the network does by default."""

    samples: int = 8
    seed: int = 0
    mirroring: bool = True
    steps: int | None = None
    sampler: str | None = None

    def folder(self, data: Data, trainer: str) -> Path:
        """Where predictions with these options are kept, in the fold's folder; ``trainer`` is a class name."""
        name = f"benchmark_predictions_{self.samples}_samples_seed_{self.seed}" + ("" if self.mirroring else "_unmirrored")
        return data.fold_folder(trainer) / name


@dataclass(frozen=True)
class CasePrediction:
    """One case on the image's grid.

    Attributes:
        deterministic, sampled: probabilities, the latter the mean over the samples ``(heads, *image)`` float32.
        labels: label map of every sample ``(N, *image)``.
        seconds: of the prediction, without reading and resampling, see :func:`~benchmarks.methods_common.clock_of`.
    """

    deterministic: np.ndarray
    sampled: np.ndarray
    labels: np.ndarray
    seconds: float

    def save(self, path: Path) -> None:
        """Whole or not at all; half precision, since nothing here depends on the fourth digit."""
        temporary = path.with_name(f".{path.name}.partial")
        with open(temporary, "wb") as file:
            np.savez_compressed(
                file,
                deterministic=self.deterministic.astype(np.float16),
                sampled=self.sampled.astype(np.float16),
                labels=self.labels,
                seconds=self.seconds,
            )
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: Path) -> CasePrediction:
        with np.load(path) as f:
            return cls(f["deterministic"].astype(np.float32), f["sampled"].astype(np.float32), f["labels"], float(f["seconds"]))


@dataclass
class Model:
    """A network and what is needed around it, with or without trained weights.

    Attributes:
        data: the plans and dataset.
        trainer: class of the trainer.
        network: in evaluation mode, on ``device``.
        method: that it belongs to; None for stock nnU-Net.
        mirror_axes: that the training allowed.
        training_only: parameters of networks that prediction does without, such as a discriminator.
        identity: of the trained weights, so that measurements of an earlier training are not taken for this one's.
    """

    data: Data
    trainer: Any
    network: Any
    mirror_axes: tuple[int, ...]
    device: torch.device
    method: Any = None
    training_only: int = 0
    identity: str = "untrained"
    _stock: Any = field(default=None, repr=False)

    @property
    def is_stock(self) -> bool:
        return self.trainer.__name__ == STOCK

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.network.parameters())

    @property
    def precision(self) -> str:
        if not self.is_stock:
            return default_precision(self.device)
        return "float16" if self.device.type == "cuda" else "float32"  # nnU-Net's own autocast

    def predict(self, image: np.ndarray, case: str, options: Options) -> tuple[CaseParts, float]:
        """Preprocessed image ``(C, *grid)`` -> statistics with both parts kept apart, and seconds (:func:`clock_of`)."""
        clock = clock_of(self.device)
        started = clock()
        statistics = self._predict_stock(image, case, options) if self.is_stock else self._predict(image, case, options)
        return statistics, clock() - started

    def _predict(self, image: np.ndarray, case: str, options: Options) -> CaseParts:
        predictor = Predictor.from_network(
            self.method,
            self.network,
            self.data.plans_manager,
            self.data.configuration,
            self.data.dataset_json,
            self.trainer.__name__,
            self.mirror_axes if options.mirroring else (),
            device=self.device,
            samples=options.samples,
            steps=options.steps,
            sampler=options.sampler,
            seed=options.seed,
        )
        return predictor.predict_parts(image, case)

    def _predict_stock(self, image: np.ndarray, case: str, options: Options) -> CaseParts:
        """nnU-Net's one pass; its "samples" draw every voxel by itself from the softmax."""
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

        if self._stock is None:
            self._stock = nnUNetPredictor(
                perform_everything_on_device=self.device.type == "cuda", device=self.device, allow_tqdm=False
            )
            configuration = self.data.plans_manager.get_configuration(self.data.configuration)
            self._stock.manual_initialization(
                self.network,
                self.data.plans_manager,
                configuration,
                [self.network.state_dict()],
                self.data.dataset_json,
                STOCK,
                self.mirror_axes,
            )
        self._stock.use_mirroring = options.mirroring
        logits = self._stock.predict_logits_from_preprocessed_data(torch.as_tensor(image)).float()
        manager = self.data.label_manager
        p = logits.sigmoid() if manager.has_regions else logits.softmax(0)
        heads = voxelwise_samples(p, options.samples, manager.has_regions, seed_of(options.seed, case))
        labels = np.stack([label_map(h, manager).numpy() for h in heads]).astype(np.uint8)
        return CaseParts(p, heads.mean(0), labels, manager.has_regions)


def voxelwise_samples(p: Tensor, count: int, regions: bool, seed: int) -> Tensor:
    """Draws every voxel by itself from ``p`` ``(heads, *grid)`` -> one-hot float ``(count, heads, *grid)``."""
    generator = torch.Generator().manual_seed(seed)
    if regions:
        return (torch.rand((count, *p.shape), generator=generator) < p).float()
    u = torch.rand((count, *p.shape[1:]), generator=generator)
    drawn = (u[:, None] > p.cumsum(0)[None, :-1]).sum(1)  # inverse of the cumulative distribution
    return nn.functional.one_hot(drawn, len(p)).movedim(-1, 1).float()


def load_model(data: Data, trainer: str, device: torch.device) -> Model:
    """The final checkpoint of a trainer.

    Raises:
        UserError: it is not trained, or the checkpoint does not fit the plans.
    """
    cls = find_class(trainer)
    file = data.fold_folder(cls.__name__) / FINAL
    if not file.is_file():
        raise UserError(f"There is no {file}; train it with `python -m benchmarks.methods --trainers {trainer} ...`.")
    # nnU-Net's checkpoints hold numpy scalars, which weights_only refuses; the folder is the user's own.
    checkpoint = torch.load(file, map_location="cpu", weights_only=False)
    given = checkpoint.get("options")
    model = build_model(data, cls, device, None if given is None else cls.method_class.read_options(given))
    try:
        model.network.load_state_dict(checkpoint["network_weights"])
    except RuntimeError:
        raise UserError(f"{file} does not fit the plans {data.plans['plans_name']}; train it again.") from None
    state = {k: v for k, v in checkpoint.get("loss_state", {}).items() if k.startswith("discriminator.")}
    axes = tuple(int(a) for a in checkpoint["inference_allowed_mirroring_axes"] or ())
    return replace(
        model,
        mirror_axes=axes,
        training_only=sum(v.numel() for v in state.values()),
        identity=f"{cls.__name__}@{int(file.stat().st_mtime)}",
    )


def build_model(data: Data, cls: Any, device: torch.device, options: Any = None) -> Model:
    """The trainer's network with random weights, without mirroring; ``options`` None for those of the plans."""
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels

    plans = data.plans_manager
    configuration = plans.get_configuration(data.configuration)
    channels = determine_num_input_channels(plans, configuration, data.dataset_json)
    heads = data.label_manager.num_segmentation_heads
    if cls.__name__ == STOCK:
        network = cls.build_network_architecture(plans, configuration, channels, heads, enable_deep_supervision=False)
        return Model(data, cls, network.to(device).eval(), (), device)
    method = cls.method_class(MethodPlan.of(configuration, channels, heads), options)
    return Model(data, cls, method.network().to(device).eval(), (), device, method)


# ---- cases --------------------------------------------------------------------------------------------------------


def preprocessed(data: Data, case: str, change: Any = None) -> tuple[np.ndarray, CaseGeometry]:
    """Reads and preprocesses a case; ``change`` acts on the raw image ``(C, *image)`` before."""
    plans = data.plans_manager
    image, properties = read_case(
        plans.image_reader_writer_class(), Case(case, image_files(data, case)), len(channel_names(data.dataset_json))
    )
    image, properties = preprocess(
        image if change is None else change(image), properties, plans, data.configuration, data.dataset_json
    )
    return image, CaseGeometry(properties, plans, plans.get_configuration(data.configuration))


def predict_case(model: Model, case: str, options: Options, change: Any = None) -> CasePrediction:
    """Reads, preprocesses and predicts one case, and leads back to the image's grid."""
    image, geometry = preprocessed(model.data, case, change)
    statistics, seconds = model.predict(image, case, options)
    return to_image(statistics, geometry, seconds)


def to_image(statistics: CaseParts, geometry: CaseGeometry, seconds: float) -> CasePrediction:
    deterministic, sampled = (
        _probabilities_to_image(geometry, p, statistics.regions) for p in (statistics.deterministic, statistics.sampled)
    )
    labels = np.stack([geometry.labels_to_image(m) for m in statistics.labels])
    return CasePrediction(deterministic, sampled, labels, seconds)


def _probabilities_to_image(geometry: CaseGeometry, p: Tensor, regions: bool) -> np.ndarray:
    restored = geometry.maps_to_image(p.float().numpy())
    if not regions:  # beyond the crop everything is background
        restored[0] = np.clip(1 - restored[1:].sum(0), 0, 1)
    return restored


def predict_all(data: Data, trainer: str, options: Options, device: torch.device) -> Path:
    """Predicts the cases that are not predicted yet, with the default steps; returns the folder of ``CASE.npz``."""
    model = load_model(data, trainer, device)
    folder = options.folder(data, model.trainer.__name__)
    checkpoint = folder.parent / FINAL
    settings = {
        "samples": options.samples,
        "seed": options.seed,
        "mirroring": options.mirroring,
        "checkpoint": int(checkpoint.stat().st_mtime),
        "precision": model.precision,
        "device": device.type,
        "parameters": model.parameters,
        "parameters_for_training_only": model.training_only,
        "steps": getattr(model.network, "default_steps", None),
        "sampler": getattr(model.network, "default_sampler", None),
    }
    _start(folder, settings)
    missing = [case for case in data.cases if not (folder / f"{case}.npz").is_file()]
    for number, case in enumerate(missing, start=1):
        prediction = predict_case(model, case, options)
        prediction.save(folder / f"{case}.npz")
        print(f"{trainer}: {case}, {prediction.seconds:.1f} s ({number} of {len(missing)})", flush=True)
    if device.type == "cuda" and missing:
        _remember(folder, "peak_gpu_gb", torch.cuda.max_memory_allocated() / 2**30)
    return folder


def _start(folder: Path, settings: dict[str, Any]) -> None:
    """Makes the folder, or empties it where it was made with other settings."""
    file = folder / SETTINGS
    known = json.loads(file.read_text()) if file.is_file() else {}
    if {k: known.get(k) for k in settings} != settings:
        for old in folder.glob("*.npz"):
            old.unlink()
        folder.mkdir(parents=True, exist_ok=True)
        write_json(settings, file)


def _remember(folder: Path, name: str, value: float) -> None:
    """Keeps the largest value of an interrupted prediction's sessions."""
    known = json.loads((folder / SETTINGS).read_text())
    write_json({**known, name: max(value, known.get(name, 0.0))}, folder / SETTINGS)


def remember_memory(folder: Path, gigabytes: float) -> None:
    """Called by the program that watched the prediction."""
    _remember(folder, "peak_gb", gigabytes)


def kept_predictions(folder: Path, cases: Sequence[str]) -> Iterator[tuple[str, CasePrediction]]:
    """Kept predictions, one at a time."""
    for case in cases:
        yield case, CasePrediction.load(folder / f"{case}.npz")


def main(argv: Sequence[str] | None = None) -> int:
    return run(_main, argv)


def _main(argv: Sequence[str] | None) -> None:
    parser = data_parser(__doc__.splitlines()[0])
    parser.add_argument("--trainer", required=True, help="its name, or module:Class")
    parser.add_argument("--samples", type=int, default=8, help="default: %(default)s")
    args = parser.parse_args(argv)
    if args.samples < 1:
        raise UserError(f"--samples must be at least 1, not {args.samples}.")
    predict_all(data_from(args), args.trainer, Options(args.samples, args.seed, not args.disable_tta), pick_device(args.device))


if __name__ == "__main__":
    raise SystemExit(main())
