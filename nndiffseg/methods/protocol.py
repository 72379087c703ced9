"""The method protocol: one object, built from plans and options, shared by training and prediction.

A method says which network it has, which losses train it and with which options. Its options are a frozen dataclass. They
stand in the plans and in the checkpoint, and both training and prediction read them back.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from pydantic.dataclasses import dataclass as record
from torch import Tensor, nn

from nndiffseg.data.plan_names import check_architecture
from nndiffseg.data.schema import CONFIG, to_json, validated
from nndiffseg.data.seeds import seed_of
from nndiffseg.diffusion.items import ItemGenerator, Part
from nndiffseg.errors import UserError
from nndiffseg.methods.settings import PLAN_AGAIN, DiffusionSettings
from nndiffseg.nn.annotated import shares
from nndiffseg.nn.heads import Heads

#: keys of a configuration's ``diffusion`` section in the plans
OPTIONS, REGIONS = "options", "regions"


@record(frozen=True, config=CONFIG)
class MethodOptions:
    """Options of a method: a frozen pydantic dataclass; this one has none."""

    def to_plan(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return to_json(self)


@dataclass(frozen=True)
class MethodPlan:
    """What a method's network is built from: one configuration of the plans, and the image's and label's channels.

    Attributes:
        configuration: nnU-Net's manager.
        input_channels: of the image.
        heads: of the segmentation.
        settings: sizes of latent and light networks.
    """

    configuration: ConfigurationManager
    input_channels: int
    heads: Heads
    settings: DiffusionSettings

    @classmethod
    def of(cls, configuration: ConfigurationManager, input_channels: int, heads: int) -> MethodPlan:
        """Reads the configuration's ``diffusion`` section.

        Raises:
            UserError: there is none, or it is not valid.
        """
        section = configuration.configuration
        settings = DiffusionSettings.from_configuration(section)
        regions = section["diffusion"].get(REGIONS)
        if not isinstance(regions, bool):
            raise UserError(f"The plans do not say whether the labels are regions, as those of version 0.1; {PLAN_AGAIN}.")
        return cls(configuration, input_channels, Heads(heads, regions), settings)

    @property
    def arguments(self) -> Mapping[str, Any]:
        """Of nnU-Net's planned network."""
        return self.configuration.network_arch_init_kwargs

    @property
    def patch(self) -> tuple[int, ...]:
        """Voxels of the patch along each axis."""
        return tuple(int(n) for n in self.configuration.patch_size)

    @property
    def strides(self) -> list[tuple[int, ...]]:
        """Strides from stage s to s + 1 of nnU-Net's network."""
        return [tuple(int(v) for v in s) for s in self.arguments["strides"][1:]]  # the first entry belongs to the stem

    @property
    def features(self) -> list[int]:
        """Channels of each stage of nnU-Net's network, full resolution first."""
        return [int(c) for c in self.arguments["features_per_stage"]]

    def unet(self) -> nn.Module:
        """The network that nnU-Net would build from these plans, initialised as nnU-Net does.

        Raises:
            UserError: the plans name what no planner writes.
        """
        return planned_network(self.configuration.configuration["architecture"], self.input_channels, self.heads.number)


def planned_network(architecture: Mapping[str, Any], input_channels: int, heads: int, *, initialise: bool = True) -> nn.Module:
    """nnU-Net's planned network.

    Args:
        architecture: of one configuration of the plans.
        input_channels: of the image.
        heads: channels of the segmentation.
        initialise: as nnU-Net does; False leaves the layers' own values.

    Raises:
        UserError: the plans name what no planner writes, or arguments that do not fit together.
    """
    check_architecture(architecture, "The plans")
    try:
        return get_network_from_plans(
            architecture["network_class_name"],
            architecture["arch_kwargs"],
            architecture["_kw_requires_import"],
            input_channels,
            heads,
            allow_init=initialise,
            deep_supervision=True,
        )
    except (AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"The plans describe no network that nnU-Net can build ({reason}); {PLAN_AGAIN}.") from None


class SegmentationLoss(NamedTuple):
    """nnU-Net's loss, Dice and (binary) cross-entropy.

    Attributes:
        deep: with deep supervision ``(list of logits, list of targets) -> scalar``.
        full: at full resolution ``(logits, target) -> scalar``, a module.
    """

    deep: Callable[[list[Tensor], list[Tensor]], Tensor]
    full: Any

    @classmethod
    def of(cls, loss: Any) -> SegmentationLoss:
        """Of what nnU-Net's trainers build: a loss, in a ``DeepSupervisionWrapper`` unless they train without it."""
        if isinstance(loss, DeepSupervisionWrapper):
            return cls(loss, loss.loss)
        return cls(lambda logits, targets: loss(logits[0], targets[0]), loss)


class Batch(NamedTuple):
    """What one training step knows.

    Attributes:
        image: ``(B, C_in, *patch)``.
        targets: as nnU-Net's loader gives them, full resolution first ``(B, 1 or regions, *patch / stride_s)``; with the ignore
            label as nnU-Net's losses know it, regions with a channel more.
        onehot: true label ``(B, heads, *patch)``, float; ignored voxels hold the network's own segmentation.
        progress: share of the training that is done, in [0, 1].
        key: what all randomness of this step is a function of: seed, fold and iteration; the last is the iteration.
        annotated: voxels that have a label, bool ``(B, 1, *patch)``; None in datasets without an ignore label.
        part: which items of a batch these are that several processes share; None for all.
    """

    image: Tensor
    targets: list[Tensor]
    onehot: Tensor
    progress: float
    key: tuple[object, ...]
    annotated: Tensor | None = None
    part: Part | None = None

    def weights(self, grid: Sequence[int]) -> Tensor | None:
        """How much each cell of a grid over the patch counts in a loss, ``(B, 1, *grid)``; None for all alike."""
        return None if self.annotated is None else shares(self.annotated, grid)

    def seed(self, purpose: str) -> int:
        """A seed of this step, another one for each purpose."""
        *place, iteration = self.key
        return seed_of(*place, purpose, iteration)

    def generator(self, purpose: str) -> torch.Generator:
        """A generator on the CPU, so that every device sees the same noise; another one for each purpose.

        Draw from it with :mod:`nndiffseg.diffusion.items`, so that an item's noise does not depend on the processes' number.
        """
        generator = torch.Generator() if self.part is None else ItemGenerator(self.part)
        return generator.manual_seed(self.seed(purpose))

    @property
    def weight(self) -> float:
        """Of means over these items, see :attr:`nndiffseg.diffusion.items.Part.weight`."""
        return 1.0 if self.part is None else self.part.weight


class Recipe(NamedTuple):
    """Numbers of the optimiser, AdamW.

    Attributes:
        learning_rate: at its peak.
        weight_decay: per step, relative to the learning rate.
        betas: of the two moments.
        clipping: largest norm of the gradient.
        average: decay of the average of the weights.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.999)
    clipping: float = 1.0
    average: float = 0.999


class Losses(nn.Module):
    """A method's losses. What a training learns besides the network, such as running statistics, is state of this module."""

    def forward(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """One training pass: all terms, to be summed.

        ``network`` may be wrapped (torch.compile), so only its ``forward`` may be called.
        """
        raise NotImplementedError

    def before_step(self, network: nn.Module, batch: Batch, rate: float) -> dict[str, float]:
        """An optimiser step of its own before the network's, such as a discriminator's; returns terms for the log."""
        return {}


class Method(ABC):
    """One method.

    Attributes:
        name: under which its options stand in the plans.
        options_class: the method's frozen options.
        samplers: names of the samplers that its denoiser allows, the default first.
        steps_while_training: of the samples that are drawn after every epoch to watch a training; None for the default.
        head: the network's submodule that is nnU-Net's planned U-Net and gives the deterministic logits; None where no such
            network is in it.
        chooses_sampler: calibration may replace samples by coherent ones around the head's map where they score better
            (:mod:`nndiffseg.calibration.sampler_choice`); a published method's samples are always its own.
    """

    name: ClassVar[str]
    options_class: ClassVar[type[MethodOptions]] = MethodOptions
    samplers: ClassVar[tuple[str, ...]] = ("ancestral",)
    steps_while_training: ClassVar[int | None] = None
    head: ClassVar[str | None] = None
    chooses_sampler: ClassVar[bool] = False

    def __init__(self, plan: MethodPlan, options: MethodOptions | None = None):
        self.plan = plan
        self.options: Any = options if options is not None else self.options_of(plan.configuration.configuration)

    @classmethod
    def options_of(cls, configuration: Mapping[str, Any]) -> MethodOptions:
        """The options that one configuration of the plans asks for; defaults where it says nothing.

        Raises:
            UserError: they are not this method's, or out of range.
        """
        return cls.read_options(configuration.get("diffusion", {}).get(OPTIONS, {}).get(cls.name, {}))

    @classmethod
    def read_options(cls, values: Any) -> MethodOptions:
        """Options from JSON.

        Raises:
            UserError: unknown name, wrong type or value out of range.
        """
        return validated(cls.options_class, values, f"The options of {cls.name}")

    @classmethod
    def with_defaults(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """A checkpoint's options, with the defaults of those that the release that wrote it did not have."""
        return {**cls.options_class().to_plan(), **options}

    @property
    def recipe(self) -> Recipe:
        """What the optimiser works with."""
        return Recipe()

    @abstractmethod
    def network(self) -> nn.Module:
        """A freshly initialised network, a :class:`~nndiffseg.nn.sample_network.SampleNetwork`."""

    @abstractmethod
    def losses(self, segmentation: Callable[..., SegmentationLoss]) -> Losses:
        """The losses; ``segmentation(ce=1.0, dice=1.0)`` makes nnU-Net's loss with these weights of its two terms."""

    def check_weights(self, network: Any, fold: int | str) -> None:  # noqa: B027 - most methods take whatever was trained
        """Checks weights that were loaded, in training and prediction alike.

        Raises:
            UserError: they are not those that the plans ask for in this fold.
        """

    def training_pass(self, network: Any, image: Tensor, onehot: Tensor) -> Any:
        """The pass whose saved tensors are the method's memory: image ``(B, C_in, *patch)``, label ``(B, heads, *patch)``."""
        return network(image, onehot)


def unwrapped(network: Any) -> Any:
    """The network without the wrapper of torch.compile."""
    return getattr(network, "_orig_mod", network)
