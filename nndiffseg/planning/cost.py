"""Cost of networks, counted on PyTorch's meta device: operations, feature maps, and memory in training.

The meta device computes shapes and no values, so that a pass takes milliseconds whatever the patch. Operations are those
of torch's :class:`~torch.utils.flop_counter.FlopCounterMode`, a multiplication and an addition per tap of a convolution.
Norms, activations and the dense layers of the time embedding are left out: a few per cent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from nndiffseg.methods.latent.network import LatentDiffusionSegmenter
from nndiffseg.methods.protocol import Method, MethodPlan, planned_network
from nndiffseg.methods.settings import DiffusionSettings
from nndiffseg.nn.heads import Heads
from nndiffseg.nn.image_network import ImageNetwork, ImageOutput

#: a training step decodes the true latent and two samples
TRAINING_DECODES = 3
TRAINING_DENOISES = 2
#: Tensors kept for the backward pass per element of a convolution's output, relative to the image network: the channel
#: norms of the light networks keep their inputs and outputs, where nnU-Net's activations work in place. The label
#: decoder has none at full resolution; its factor covers the losses on what it decodes.
LIGHT_MEMORY, DECODER_MEMORY = 2.0, 1.1
#: Operations of a convolution that take as long as moving one of its outputs through memory, with the norm and activation
#: behind it. Measured (docs/lab/speed.md): counted in operations alone, full resolution looks several times too cheap.
OPERATIONS_PER_ELEMENT = 300.0
#: convolutions, and the matrix products by which 1^d convolutions are computed (:func:`nndiffseg.nn.layers.product`)
CONVOLUTIONS = (torch.ops.aten.convolution, torch.ops.aten.bmm, torch.ops.aten.baddbmm)
#: patches in the pass whose memory is counted
BATCH = 2


def stage_grids(patch: Sequence[int], strides: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """Grid of each stage; ``strides[0]`` is that of the first stage (all ones), as in the plans."""
    grids, grid = [], tuple(int(n) for n in patch)
    for stride in strides:
        grid = tuple(-(-n // int(s)) for n, s in zip(grid, stride, strict=True))
        grids.append(grid)
    return grids


# ---- operations and feature maps --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """Of one patch. ``flops`` count operations, ``elements`` the outputs of all convolutions (nnU-Net's measure)."""

    flops: float = 0.0
    elements: float = 0.0

    @property
    def time(self) -> float:
        """Proportional to seconds: operations, and the traffic of the outputs counted as operations."""
        return self.flops + OPERATIONS_PER_ELEMENT * self.elements

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.elements + other.elements)

    def __rmul__(self, factor: float) -> Cost:
        return Cost(factor * self.flops, factor * self.elements)


class _CountElements(TorchDispatchMode):
    """Adds up the elements that convolutions return."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = func(*args, **(kwargs or {}))
        if func._overloadpacket in CONVOLUTIONS:
            self.elements += answer.numel()
        return answer


def count(run: Callable[[], Any]) -> tuple[Cost, Any]:
    """The cost of a call's convolutions, and what it returns; run without gradients, here on meta tensors."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter, _CountElements() as outputs:
        answer = run()
    operations = counter.get_flop_counts().get("Global", {})
    return Cost(float(sum(operations.get(op, 0) for op in CONVOLUTIONS)), float(outputs.elements)), answer


@dataclass(frozen=True)
class LightCost:
    """The flagship's networks beside the image network, on one patch.

    Attributes:
        encode: label encoder and projections of the image features; once per tile, and once in a training step.
        denoise: one evaluation of the denoiser for one sample.
        decode: decoding one sample.
    """

    encode: Cost
    denoise: Cost
    decode: Cost

    def sample(self, steps: int) -> Cost:
        """One sample: ``steps`` evaluations of the denoiser and one decode."""
        return steps * self.denoise + self.decode

    @property
    def training_elements(self) -> float:
        """Memory of a training step in elements of the image network's feature maps."""
        light = self.encode + TRAINING_DENOISES * self.denoise
        return LIGHT_MEMORY * light.elements + DECODER_MEMORY * TRAINING_DECODES * self.decode.elements


class _Known(nn.Module):
    """Stands in for the image network once its answer is known."""

    def __init__(self, answer: ImageOutput):
        super().__init__()
        self.answer = answer

    def forward(self, image: Tensor) -> ImageOutput:
        return self.answer


@dataclass(frozen=True)
class Architecture:
    """The image network of one configuration as planned by nnU-Net, and what it and the light networks on it cost.

    Attributes:
        section: the configuration's ``architecture`` in the plans.
        input_channels: of the image.
        heads: channels of the segmentation.
        patch: voxels along each axis.
    """

    section: Mapping[str, Any]
    input_channels: int
    heads: int
    patch: tuple[int, ...]
    _light: dict[DiffusionSettings, LightCost] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def of(cls, plan: Mapping[str, Any], input_channels: int, heads: int) -> Architecture:
        """Reads a configuration of the plans."""
        return cls(plan["architecture"], input_channels, heads, tuple(int(n) for n in plan["patch_size"]))

    @property
    def arch_kwargs(self) -> Mapping[str, Any]:
        return self.section["arch_kwargs"]

    @property
    def grids(self) -> list[tuple[int, ...]]:
        return stage_grids(self.patch, self.arch_kwargs["strides"])

    def strides(self, stage: int) -> tuple[int, ...]:
        """Cumulative stride of a stage."""
        return tuple(int(v) for v in np.prod(self.arch_kwargs["strides"][: stage + 1], axis=0))

    @property
    def image(self) -> Cost:
        """One forward pass of the image network, without deep supervision."""
        return self._image_pass[0]

    @cached_property
    def _unet(self) -> nn.Module:
        return _unet(self.section, self.input_channels, self.heads)

    @cached_property
    def _image_pass(self) -> tuple[Cost, ImageOutput]:
        network = ImageNetwork(self._unet)
        return count(lambda: network(torch.zeros(1, self.input_channels, *self.patch, device="meta")))

    def memory_overhead(self, settings: DiffusionSettings) -> float:
        """Memory of the light networks in training relative to the image network's."""
        return self.light(settings).training_elements / self.image.elements

    def light(self, settings: DiffusionSettings) -> LightCost:
        """What the light networks of these sizes cost; counted once."""
        if settings not in self._light:
            self._light[settings] = self._count_light(settings)
        return self._light[settings]

    def _count_light(self, settings: DiffusionSettings) -> LightCost:
        def noise(stream: int, channels: int, scale: int = 1) -> Tensor:
            return torch.zeros(1, channels, *self.grids[settings.latent_stage], device="meta")

        with torch.device("meta"):
            # Regions or labels: the convolutions are the same.
            network = LatentDiffusionSegmenter(self._unet, self.arch_kwargs["strides"][1:], Heads(self.heads), settings).eval()
        network.image_network = _Known(self._image_pass[1])  # type: ignore[assignment]  # counted already
        encode, maps = count(lambda: network.encode(torch.empty(0, device="meta")))
        denoise, latent = count(lambda: network.sample(maps, noise, steps=1))  # type: ignore[arg-type]
        decode, _ = count(lambda: network.decode(latent, maps))
        return LightCost(encode, denoise, decode)


def _unet(section: Mapping[str, Any], input_channels: int, heads: int) -> nn.Module:
    """nnU-Net's planned network on the meta device."""
    with torch.device("meta"):
        return planned_network(section, input_channels, heads, initialise=False)


# ---- memory -----------------------------------------------------------------------------------------------------------


class _FusedAttention(torch.autograd.Function):
    """Attention as fused kernels keep it; the meta device knows only the formula, with all its cells squared."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        answer = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, answer)
        return answer


class CountAttention(TorchFunctionMode):
    """Attention keeps what fused kernels keep."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return _FusedAttention.apply(*args[:3])
        return func(*args, **(kwargs or {}))


def saved_bytes(network: nn.Module, training_pass: Callable[[], Any]) -> int:
    """Bytes of all tensors that a pass keeps for its backward pass, each storage once, without weights and buffers.

    Works on every device.
    """
    own = {t.untyped_storage()._cdata for t in (*network.parameters(), *network.buffers())}
    kept: dict[int, Tensor] = {}  # holds the tensors, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        key = tensor.untyped_storage()._cdata
        if key not in own:
            kept[key] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        training_pass()
    return sum(t.untyped_storage().nbytes() for t in kept.values())


def method_bytes(method_class: type[Method], configuration: ConfigurationManager, channels: int, heads: int) -> float:
    """What a method's network keeps for the backward pass of one patch, in float32.

    Args:
        method_class: states its memory by :meth:`~nndiffseg.methods.protocol.Method.training_pass`.
        configuration: nnU-Net's manager.
        channels: of the image.
        heads: of the segmentation.
    """
    method = method_class(MethodPlan.of(configuration, channels, heads))
    with torch.device("meta"):
        network = method.network()
        image, onehot = (torch.zeros(BATCH, c, *configuration.patch_size) for c in (channels, heads))
    _materialise_scalars(network)
    with CountAttention():
        return saved_bytes(network, lambda: method.training_pass(network, image, onehot)) / BATCH


def image_network_bytes(configuration: ConfigurationManager, channels: int, heads: int) -> float:
    """The same for the planned image network alone."""
    unet = _unet(configuration.configuration["architecture"], channels, heads)
    image = torch.zeros(BATCH, channels, *configuration.patch_size, device="meta")
    return saved_bytes(unet, lambda: unet(image)) / BATCH


def _materialise_scalars(network: nn.Module) -> None:
    """Counters and switches decide what a network does, so they need values also on the meta device: zeros at first."""
    for module in network.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.ndim == 0:
                setattr(module, name, torch.zeros((), dtype=buffer.dtype, device="cpu"))
