"""The one module of the comparisons that knows nndiffseg's and nnU-Net's predictors.

It loads trained models, predicts a case and leads back to the image's own grid. Where nnU-Net resampled the image,
probabilities are resampled linearly, for every method alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.compare.data import Data, image_files
from benchmarks.compare.processes import clock_of
from benchmarks.compare.trainers import STOCK, Entry, class_name, find_class
from nndiffseg.data.cases import Case, preprocess, read_case
from nndiffseg.data.dataset_json import channel_names
from nndiffseg.data.seeds import seed_of
from nndiffseg.errors import UserError
from nndiffseg.export.geometry import CaseGeometry
from nndiffseg.inference.predictor import Predictor
from nndiffseg.methods.protocol import MethodPlan
from nndiffseg.nn.heads import Heads
from nndiffseg.nn.precision import default_precision
from nndiffseg.uncertainty.statistics import CaseParts, label_map

#: of a finished training, in the fold's folder
FINAL = "checkpoint_final.pth"


@dataclass(frozen=True)
class Options:
    """How to predict; ``steps`` and ``sampler`` None for what the network does by default."""

    samples: int = 8
    seed: int = 0
    mirroring: bool = True
    steps: int | None = None
    sampler: str | None = None


class CasePrediction(NamedTuple):
    """One case on the image's grid.

    Attributes:
        deterministic, sampled: probabilities, the latter the mean over the samples ``(heads, *image)`` float32; of nnU-Net
            both are its softmax or sigmoid.
        labels: label map of every sample ``(N, *image)``.
        seconds: of the prediction, without reading and resampling, see :func:`~benchmarks.compare.processes.clock_of`.
    """

    deterministic: NDArray[np.float32]
    sampled: NDArray[np.float32]
    labels: NDArray[np.integer]
    seconds: float


def labels_of(data: Data, probabilities: NDArray) -> NDArray[np.int16]:
    """Probabilities ``(heads, *image)`` -> label map ``(*image)``, as nnU-Net makes it."""
    return label_map(torch.from_numpy(np.ascontiguousarray(probabilities)), data.label_manager).numpy()


def independent_samples(data: Data, probabilities: NDArray, count: int, seed: int) -> NDArray[np.uint8]:
    """Independent per-voxel sampling: every voxel drawn from its own probability ``(heads, *grid)``.

    Returns:
        Label maps ``(count, *grid)``.
    """
    p, generator, drawn = torch.from_numpy(probabilities), torch.Generator().manual_seed(seed), []
    for _ in range(count):
        if data.label_manager.has_regions:
            chosen = (torch.rand(p.shape, generator=generator) < p).float()
            drawn.append(label_map(chosen, data.label_manager).numpy())
        else:
            u = torch.rand(p.shape[1:], generator=generator)
            drawn.append((u > p.cumsum(0)[:-1]).sum(0).numpy())  # inverse of the cumulative distribution
    return np.stack(drawn).astype(np.uint8)


# ---- models -------------------------------------------------------------------------------------------------------


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
        return self.method is None

    def describe(self) -> dict[str, Any]:
        """Sizes and defaults, JSON-ready."""
        stock = "float16" if self.device.type == "cuda" else "float32"  # nnU-Net's own autocast
        return {
            "device": self.device.type,
            "precision": stock if self.is_stock else default_precision(self.device),
            "parameters": sum(p.numel() for p in self.network.parameters()),
            "parameters_for_training_only": self.training_only,
            "steps": getattr(self.network, "default_steps", None),
            "sampler": getattr(self.network, "default_sampler", None),
        }

    def predict(self, image: NDArray, case: str, options: Options) -> tuple[CaseParts, float]:
        """Preprocessed image ``(C, *grid)`` -> deterministic and sampled part, and seconds (:func:`clock_of`)."""
        clock = clock_of(self.device)
        started = clock()
        if own := getattr(self.trainer, "predict_parts", None):  # of a rival that is neither nnU-Net nor a method of ours
            parts = own(self, image, case, options)
        else:
            parts = self._predict_stock(image, case, options) if self.is_stock else self._predict(image, case, options)
        return parts, clock() - started

    def _predict(self, image: NDArray, case: str, options: Options) -> CaseParts:
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

    def _predict_stock(self, image: NDArray, case: str, options: Options) -> CaseParts:
        """nnU-Net's own sliding window; its samples are independent per-voxel draws."""
        if self._stock is None:
            self._stock = stock_predictor(self.network, self.data, self.mirror_axes, self.device)
        self._stock.use_mirroring = options.mirroring
        logits = self._stock.predict_logits_from_preprocessed_data(torch.as_tensor(image)).float()
        heads = Heads(len(self.data.heads), self.data.label_manager.has_regions)
        p = heads.probabilities(logits, 0)
        labels = independent_samples(self.data, p.numpy(), options.samples, seed_of(options.seed, case))
        return CaseParts(p, p, labels, heads.regions)


def stock_predictor(network: Any, data: Data, mirror_axes: tuple[int, ...], device: torch.device) -> Any:
    """nnU-Net's predictor of preprocessed images."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(perform_everything_on_device=device.type == "cuda", device=device, allow_tqdm=False)
    plans = data.plans_manager
    predictor.manual_initialization(
        network,
        plans,
        plans.get_configuration(data.configuration),
        [network.state_dict()],
        data.dataset_json,
        STOCK,
        mirror_axes,
    )
    return predictor


def check_trained(data: Data, entry: Entry) -> Path:
    """The final checkpoint's file; raises UserError where there is none."""
    file = entry.of(data).fold_folder(class_name(entry.trainer)) / FINAL
    if not file.is_file():
        raise UserError(f"There is no {file}; train it with `python -m benchmarks.methods --trainers {entry.trainer} ...`.")
    return file


def load_model(data: Data, entry: Entry, device: torch.device) -> Model:
    """The final checkpoint of an entry.

    Raises:
        UserError: it is not trained, or the checkpoint does not fit the plans.
    """
    file, data, cls = check_trained(data, entry), entry.of(data), find_class(entry.trainer)
    # nnU-Net's checkpoints hold numpy scalars, which weights_only refuses; the folder is the user's own.
    checkpoint = torch.load(file, map_location="cpu", weights_only=False)
    given = checkpoint.get("options")
    model = build_model(data, cls, device, None if given is None else cls.method_class.read_options(given))
    try:
        model.network.load_state_dict(checkpoint["network_weights"])
    except RuntimeError:
        raise UserError(f"{file} does not fit the plans {data.plans['plans_name']}; train it again.") from None
    state = {k: v for k, v in checkpoint.get("loss_state", {}).items() if k.startswith("discriminator.")}
    return replace(
        model,
        mirror_axes=tuple(int(a) for a in checkpoint["inference_allowed_mirroring_axes"] or ()),
        training_only=sum(v.numel() for v in state.values()),
        identity=f"{entry.name}@{int(file.stat().st_mtime)}",
    )


def build_model(data: Data, cls: Any, device: torch.device, options: Any = None) -> Model:
    """The trainer's network with random weights, without mirroring; ``options`` None for those of the plans."""
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels

    plans = data.plans_manager
    configuration = plans.get_configuration(data.configuration)
    channels = determine_num_input_channels(plans, configuration, data.dataset_json)
    heads = data.label_manager.num_segmentation_heads
    if not hasattr(cls, "method_class"):
        network = cls.build_network_architecture(plans, configuration, channels, heads, enable_deep_supervision=False)
        return Model(data, cls, network.to(device).eval(), (), device)
    method = cls.method_class(MethodPlan.of(configuration, channels, heads), options)
    return Model(data, cls, method.network().to(device).eval(), (), device, method)


# ---- cases --------------------------------------------------------------------------------------------------------

Change = Callable[[NDArray], NDArray]


def preprocessed(data: Data, case: str, change: Change | None = None) -> tuple[NDArray, CaseGeometry]:
    """Reads and preprocesses a case; ``change`` acts on the raw image ``(C, *image)`` before."""
    plans = data.plans_manager
    image, properties = read_case(
        plans.image_reader_writer_class(), Case(case, image_files(data, case)), len(channel_names(data.dataset_json))
    )
    image, properties = preprocess(
        image if change is None else change(image), properties, plans, data.configuration, data.dataset_json
    )
    return image, CaseGeometry(properties, plans, plans.get_configuration(data.configuration))


def predict_case(model: Model, case: str, options: Options, change: Change | None = None) -> CasePrediction:
    """Reads, preprocesses and predicts one case, and leads back to the image's grid."""
    image, geometry = preprocessed(model.data, case, change)
    parts, seconds = model.predict(image, case, options)
    deterministic = _probabilities_to_image(geometry, parts.deterministic, parts.regions)
    same = parts.sampled is parts.deterministic
    sampled = deterministic if same else _probabilities_to_image(geometry, parts.sampled, parts.regions)
    return CasePrediction(deterministic, sampled, np.stack([geometry.labels_to_image(m) for m in parts.labels]), seconds)


def _probabilities_to_image(geometry: CaseGeometry, p: Tensor, regions: bool) -> NDArray[np.float32]:
    restored = geometry.maps_to_image(p.float().numpy())
    if not regions:  # beyond the crop everything is background
        restored[0] = np.clip(1 - restored[1:].sum(0), 0, 1)
    return restored
