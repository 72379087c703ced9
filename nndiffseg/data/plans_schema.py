"""What nnU-Net's plans may hold: their form and the bounds of their numbers, checked once where plans enter.

nnU-Net 2.8.1 reads plans as they are, so that a missing key, a text for a number or a patch of 10^9 voxels ends in a traceback
or in a hang wherever it happens to be used first. Keys that nnU-Net does not know are left alone, but for those of networks and
of resampling, which become arguments of a function.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nndiffseg.data.plan_names import REMEDY, check_plan_names
from nndiffseg.errors import UserError

#: most voxels of a patch, and most weights of a network: ten times nnU-Net's largest plans and more
MOST_VOXELS, MOST_WEIGHTS = 2**28, 2**31

Size = Annotated[int, Field(strict=True, ge=1, le=2**16)]
Few = Annotated[int, Field(strict=True, ge=1, le=64)]
Channels = Annotated[int, Field(strict=True, ge=1, le=2**13)]
Kernel = Annotated[int, Field(strict=True, ge=1, le=31)]
Stride = Annotated[int, Field(strict=True, ge=1, le=16)]
Order = Annotated[int, Field(strict=True, ge=0, le=5)]
Millimetres = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
Flag = Annotated[bool, Field(strict=True)]
Axis = Annotated[int, Field(strict=True, ge=0, le=2)]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Axes = Annotated[list[Axis], Field(min_length=3, max_length=3)]
_EACH = Field(min_length=2, max_length=3)
Kernels = Annotated[list[Annotated[list[Kernel], _EACH]], Field(max_length=20)]
Strides = Annotated[list[Annotated[list[Stride], _EACH]], Field(max_length=20)]


class _Open(BaseModel):
    """Keys of users and of later versions are left alone."""

    model_config = ConfigDict(extra="allow")


class _Closed(BaseModel):
    """All keys become arguments of a function."""

    model_config = ConfigDict(extra="forbid")


class Intensities(_Open):
    """Of one channel's foreground; NaN where there is none."""

    mean: float
    median: float
    std: float
    min: float
    max: float
    percentile_99_5: float
    percentile_00_5: float


class Resampling(_Closed):
    """Arguments of nnU-Net's resampling functions."""

    is_seg: Flag = False
    order: Order = 3
    order_z: Order = 0
    force_separate_z: Flag | None = None
    separate_z_anisotropy_threshold: Millimetres = 3.0
    num_threads: Few = 4
    memefficient_seg_resampling: Flag = False
    mode: Annotated[str, Field(pattern=r"^(linear|nearest|nearest-exact|bilinear|bicubic|trilinear|area)$")] = "linear"
    aniso_axis_mode: Annotated[str, Field(pattern=r"^(linear|nearest|nearest-exact)$")] = "nearest-exact"


class LayerArguments(_Closed):
    """Arguments of torch's layers of normalisation, dropout and activation."""

    eps: Annotated[float, Field(gt=0, le=1)] = 1e-5
    affine: Flag = True
    momentum: Annotated[float, Field(ge=0, le=1)] | None = None
    track_running_stats: Flag = False
    inplace: Flag = False
    p: Annotated[float, Field(ge=0, le=1)] = 0.0
    negative_slope: Annotated[float, Field(ge=-1, le=1)] = 0.01
    alpha: Annotated[float, Field(ge=0, le=100)] = 1.0
    num_parameters: Channels = 1
    init: Annotated[float, Field(ge=-1, le=1)] = 0.25
    approximate: Annotated[str, Field(pattern=r"^(none|tanh)$")] = "none"


Convolutions = Annotated[list[Few], Field(max_length=20)] | Few


class ArchitectureArguments(_Closed):
    """Arguments of nnU-Net's two U-Nets; names of classes are checked by :mod:`nndiffseg.data.plan_names`."""

    n_stages: Annotated[int, Field(strict=True, ge=2, le=20)]
    features_per_stage: Annotated[list[Channels], Field(max_length=20)]
    conv_op: Name
    kernel_sizes: Kernels
    strides: Strides
    n_conv_per_stage: Convolutions | None = None
    n_blocks_per_stage: Convolutions | None = None
    n_conv_per_stage_decoder: Convolutions
    conv_bias: Flag = False
    norm_op: Name | None = None
    norm_op_kwargs: LayerArguments | None = None
    dropout_op: Name | None = None
    dropout_op_kwargs: LayerArguments | None = None
    nonlin: Name | None = None
    nonlin_kwargs: LayerArguments | None = None
    deep_supervision: Flag = True
    nonlin_first: Flag = False
    block: Name | None = None
    bottleneck_channels: Annotated[list[Channels], Field(max_length=20)] | Channels | None = None
    stem_channels: Channels | None = None

    def problem(self, patch: list[int]) -> str | None:
        """What does not fit together, in words, or None."""
        stages, axes = self.n_stages, len(patch)
        encoder = self.n_blocks_per_stage if self.n_conv_per_stage is None else self.n_conv_per_stage
        if encoder is None:
            return "no number of convolutions"
        for values, number in (
            (self.features_per_stage, stages),
            (self.kernel_sizes, stages),
            (self.strides, stages),
            (encoder, stages),
            (self.n_conv_per_stage_decoder, stages - 1),
        ):
            if isinstance(values, list) and len(values) != number:
                return f"{len(values)} instead of {number} stages"
        if any(len(v) != axes for v in (*self.kernel_sizes, *self.strides)) or not self.conv_op.endswith(f"Conv{axes}d"):
            return f"convolutions of other than {axes} axes"
        if any(k % 2 == 0 for kernel in self.kernel_sizes for k in kernel):
            return "kernels of even size"
        if any(n % math.prod(s[axis] for s in self.strides) for axis, n in enumerate(patch)):
            return "a patch that its strides do not divide"
        return "more weights than any network has" if self._weights(encoder) > MOST_WEIGHTS else None

    def _weights(self, encoder: list[int] | int) -> int:
        per_stage = encoder if isinstance(encoder, list) else [encoder] * self.n_stages
        features = zip(self.features_per_stage, self.kernel_sizes, per_stage, strict=True)
        return sum(4 * channels**2 * math.prod(kernel) * number for channels, kernel, number in features)


class Architecture(_Open):
    """Of a network."""

    network_class_name: Name
    arch_kwargs: ArchitectureArguments


class OldNetwork(_Open):
    """Of plans before nnU-Net 2.5, which nnU-Net turns into an :class:`Architecture`."""

    UNet_class_name: Name
    UNet_base_num_features: Channels
    unet_max_num_features: Channels
    n_conv_per_stage_encoder: Annotated[list[Few], Field(min_length=2, max_length=20)]
    n_conv_per_stage_decoder: Annotated[list[Few], Field(max_length=20)]
    num_pool_per_axis: list[Annotated[int, Field(strict=True, ge=0, le=20)]]
    pool_op_kernel_sizes: Strides
    conv_kernel_sizes: Kernels

    def arguments(self, axes: int) -> ArchitectureArguments:
        """As nnU-Net's ConfigurationManager makes them."""
        stages, widest = len(self.n_conv_per_stage_encoder), self.unet_max_num_features
        return ArchitectureArguments(
            n_stages=stages,
            features_per_stage=[min(self.UNet_base_num_features * 2**i, widest) for i in range(stages)],
            conv_op=f"torch.nn.modules.conv.Conv{axes}d",
            kernel_sizes=self.conv_kernel_sizes,
            strides=self.pool_op_kernel_sizes,
            n_conv_per_stage=self.n_conv_per_stage_encoder,
            n_conv_per_stage_decoder=self.n_conv_per_stage_decoder,
        )


class Diffusion(_Open):
    """nndiffseg's own part; settings and options are checked where they are read (:mod:`nndiffseg.data.schema`)."""

    settings: dict[str, Any] | None = None
    regions: Flag | None = None
    options: dict[str, dict[str, Any]] = {}


class Configuration(_Open):
    """One configuration, with what it inherits."""

    data_identifier: Name
    preprocessor_name: Name
    batch_size: Annotated[int, Field(strict=True, ge=1, le=2**14)]
    patch_size: Annotated[list[Size], _EACH]
    spacing: Annotated[list[Millimetres], _EACH]
    median_image_size_in_voxels: Annotated[list[Annotated[float, Field(ge=0, le=1e9)]], Field(max_length=3)] = []
    normalization_schemes: Annotated[list[Name], Field(min_length=1, max_length=1000)]
    use_mask_for_norm: Annotated[list[Flag], Field(min_length=1, max_length=1000)]
    resampling_fn_data: Name
    resampling_fn_seg: Name
    resampling_fn_probabilities: Name
    resampling_fn_data_kwargs: Resampling
    resampling_fn_seg_kwargs: Resampling
    resampling_fn_probabilities_kwargs: Resampling
    batch_dice: Flag = False
    previous_stage: Name | None = None
    next_stage: Name | list[Name] | None = None
    architecture: Architecture | None = None
    diffusion: Diffusion | None = None

    def problem(self) -> str | None:
        """What does not fit together, in words, or None."""
        if math.prod(self.patch_size) * self.batch_size > MOST_VOXELS:
            return "larger patches than any graphics card holds"
        if len(self.normalization_schemes) != len(self.use_mask_for_norm):
            return "normalization_schemes and use_mask_for_norm of different length"
        return None


class Plans(_Open):
    """All of a plans file."""

    dataset_name: Name
    plans_name: Name
    image_reader_writer: Name
    transpose_forward: Axes
    transpose_backward: Axes
    label_manager: Name = "LabelManager"
    configurations: Annotated[dict[str, Any], Field(min_length=1, max_length=1000)]
    foreground_intensity_properties_per_channel: Annotated[dict[str, Intensities], Field(max_length=1000)] | None = None


def check_plans(plans: Any, where: str) -> None:
    """Checks a plans file: first the names in it, before anything looks for one of them, then form and numbers.

    Args:
        plans: its content; foreign, so anything at all.
        where: what it is or where it stands, the start of the message.

    Raises:
        UserError: it names what no planner writes, a part is missing or of another type, or a number is out of range.
    """
    check_plan_names(plans, where)
    whole = _checked(Plans, plans, where, "")
    forward, backward = whole.transpose_forward, whole.transpose_backward
    if sorted(forward) != [0, 1, 2] or [forward[i] for i in backward] != [0, 1, 2]:
        raise UserError(f"{where} must not have axes whose order is not undone again (transpose_backward); {REMEDY}.")
    for name in whole.configurations:
        of = f" of {ascii(name)[:60]}"
        values = _inherited(whole.configurations, name)
        configuration: Configuration = _checked(Configuration, values, where, of)
        axes = len(configuration.patch_size)
        architecture = configuration.architecture
        network = architecture.arch_kwargs if architecture else _checked(OldNetwork, values, where, of).arguments(axes)
        problem = configuration.problem() or network.problem(configuration.patch_size) or _needs(configuration, whole)
        if problem := problem or _stages(name, configuration, whole.configurations):
            raise UserError(f"{where} must not have {problem}{of}; {REMEDY}.")


def _needs(configuration: Configuration, plans: Plans) -> str | None:
    known = plans.foreground_intensity_properties_per_channel or {}
    for channel, scheme in enumerate(configuration.normalization_schemes):
        if scheme == "CTNormalization" and str(channel) not in known:
            return f"CTNormalization without the intensities of channel {channel}"
    return None


def _stages(name: str, configuration: Configuration, configurations: Mapping[str, Any]) -> str | None:
    """What is wrong with the stages before this one of a cascade, whose names become those of folders."""
    before, visited = configuration.previous_stage, {name}
    while before is not None:
        if not isinstance(before, str) or before not in configurations:
            return f"the previous_stage {ascii(before)[:60]}, which is no configuration,"
        if before in visited:
            return "a previous_stage that leads back"
        visited.add(before)
        before = _inherited(configurations, before).get("previous_stage")
    return None


def _inherited(configurations: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A configuration on top of those it inherits from, which are known to lead to no circle."""
    own = configurations[name]
    parent = own.get("inherits_from")
    return own if parent is None else _inherited(configurations, parent) | own


def _checked(kind: Any, values: Any, where: str, of: str) -> Any:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])[:80]
        reason = first["msg"][:1].lower() + first["msg"][1:]
        raise UserError(f"{where} holds no valid {ascii(place)[1:-1]}{of} ({reason}); {REMEDY}.") from None
