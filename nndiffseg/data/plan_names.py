"""The names in plans, checkpoints and dataset.json that nnU-Net imports, and which of them are allowed.

nnU-Net imports whatever its plans name: the network, its layers, preprocessor, resampling, reader, normalisation. A plans
file is data and may come from anybody, and ``"nonlin": "subprocess.Popen"`` with arguments is a command. So every name is
compared with those that the planners of nnU-Net 2.8.1 and of nndiffseg can write, or that a user may put in their place,
before anything looks for it. Classes of the user's own are found in the text of the user's files
(:mod:`nndiffseg.data.own_classes`). The comparison itself imports nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nndiffseg.data import own_classes
from nndiffseg.data.names import is_plain_name
from nndiffseg.errors import UserError

_UNETS = "dynamic_network_architectures.architectures"
_BLOCKS = "dynamic_network_architectures.building_blocks"


def _of_torch(module: str, *classes: str) -> frozenset[str]:
    """Both spellings that nnU-Net's plans have for the layers of torch."""
    return frozenset(f"{prefix}.{name}" for prefix in ("torch.nn", f"torch.nn.modules.{module}") for name in classes)


NETWORKS = frozenset(
    {
        f"{_UNETS}.unet.PlainConvUNet",
        f"{_UNETS}.unet.ResidualEncoderUNet",
        f"{_UNETS}.residual_unet.ResidualEncoderUNet",  # what nnU-Net makes of plans before 2.5; it then looks in unet
    }
)
#: argument of a network that is a class -> what it may be
ARCHITECTURE_NAMES: Mapping[str, frozenset[str]] = {
    "conv_op": _of_torch("conv", "Conv1d", "Conv2d", "Conv3d"),
    "norm_op": _of_torch("instancenorm", "InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d")
    | _of_torch("batchnorm", "BatchNorm1d", "BatchNorm2d", "BatchNorm3d"),
    "dropout_op": _of_torch("dropout", "Dropout", "Dropout1d", "Dropout2d", "Dropout3d"),
    "nonlin": _of_torch(
        "activation", "ELU", "GELU", "Hardswish", "LeakyReLU", "Mish", "PReLU", "ReLU", "ReLU6", "SELU", "SiLU"
    ),
    "block": frozenset({f"{_BLOCKS}.residual.BasicBlockD", f"{_BLOCKS}.residual.BottleneckD"}),
}
READERS = frozenset(
    {"NaturalImage2DIO", "NibabelIO", "NibabelIOWithReorient", "SimpleITKIO", "SimpleITKIOWithReorient", "Tiff3DIO"}
)
PREPROCESSORS = frozenset({"DefaultPreprocessor"})
RESAMPLING = frozenset({"no_resampling_hack", "resample_data_or_seg_to_shape", "resample_torch_fornnunet"})
NORMALIZATIONS = frozenset(
    {"CTNormalization", "NoNormalization", "RGBTo01Normalization", "RescaleTo01Normalization", "ZScoreNormalization"}
)
#: key at the top of the plans -> what it may be
PLAN_NAMES: Mapping[str, frozenset[str]] = {"image_reader_writer": READERS, "label_manager": frozenset({"LabelManager"})}
#: key of a configuration -> what it may be
CONFIGURATION_NAMES: Mapping[str, frozenset[str]] = {
    "preprocessor_name": PREPROCESSORS,
    "resampling_fn_data": RESAMPLING,
    "resampling_fn_seg": RESAMPLING,
    "resampling_fn_probabilities": RESAMPLING,
    "UNet_class_name": frozenset({"PlainConvUNet", "ResidualEncoderUNet"}),  # plans before 2.5
}
#: keys at the top of the plans that become names of folders
FOLDER_NAMES = frozenset({"dataset_name", "plans_name"})
#: longest part of a foreign name that a message repeats
SHOWN = 60
#: end of every message
REMEDY = "use plans or a model that nnU-Net or nndiffseg made and that come from someone you trust, or plan again"


def check_plan_names(plans: Any, where: str) -> None:
    """Checks that plans name nothing but what the planners of nnU-Net and nndiffseg can name.

    All configurations are checked, whichever is used. One that inherits holds its own changes only, and nnU-Net takes
    ``architecture`` whole from one of them, so that each can be checked alone.

    Args:
        plans: content of a plans file; foreign, so anything at all.
        where: what they are or where they stand, the start of the message.

    Raises:
        UserError: another name, or no plans at all.
    """
    configurations = plans.get("configurations") if isinstance(plans, dict) else None
    if not isinstance(plans, dict) or not isinstance(configurations, dict):
        raise UserError(f"{where} must hold a JSON object with configurations; {REMEDY}.")
    for key, allowed in PLAN_NAMES.items():
        if key in plans and not (allowed is READERS and _is_own_reader(plans[key])):
            _check(plans[key], allowed, key, where)
    for key in FOLDER_NAMES & plans.keys():
        if not is_plain_name(plans[key]):
            raise _refusal(plans[key], key, where)
    planner = plans.get("experiment_planner_used", "unknown")
    if not is_identifier(planner):
        raise _refusal(planner, "experiment_planner_used", where)
    for name, configuration in configurations.items():
        if not is_plain_name(name):
            raise _refusal(name, "the name of a configuration", where)
        _check_configuration(configuration, where, f" of {_shown(name)}")
        _check_inheritance(str(name), configurations, where)


def check_architecture(architecture: Any, where: str, of: str = "") -> None:
    """Checks the ``architecture`` of one configuration, all that :func:`get_network_from_plans` of nnU-Net imports.

    Args:
        architecture: foreign, so anything at all.
        where: the start of the message.
        of: a part of the message, such as ``" of '2d'"``.

    Raises:
        UserError: a name that no planner writes, or a part is missing or of another type.
    """
    if not isinstance(architecture, dict):
        raise _refusal(architecture, f"architecture{of}", where)
    _check(architecture.get("network_class_name"), NETWORKS, f"network_class_name{of}", where)
    arguments, imported = architecture.get("arch_kwargs"), architecture.get("_kw_requires_import")
    if not isinstance(arguments, dict):
        raise _refusal(arguments, f"arch_kwargs{of}", where)
    if not isinstance(imported, (list, tuple)):
        raise _refusal(imported, f"_kw_requires_import{of}", where)
    for key in imported:
        if not isinstance(key, str) or key not in ARCHITECTURE_NAMES or key not in arguments:
            raise _refusal(key, f"_kw_requires_import{of}", where)
    for key, value in _items(arguments):
        if not isinstance(key, str):
            raise _refusal(key, f"a key in arch_kwargs{of}", where)
        if key in ARCHITECTURE_NAMES and value is not None:  # whether the plans ask for its import or not
            _check(value, ARCHITECTURE_NAMES[key], f"{key}{of}", where)


def check_reader(dataset_json: Mapping[str, Any], where: str = "dataset.json") -> None:
    """Checks the reader that dataset.json may ask for.

    Raises:
        UserError: it is none of nnU-Net's, nor one that the user has added to nnU-Net.
    """
    name = dataset_json.get("overwrite_image_reader_writer", "None")
    if not isinstance(name, str) or (name not in READERS | {"None"} and not _is_own_reader(name)):
        raise UserError(f"{where} asks for the unknown reader {_shown(name)}; leave overwrite_image_reader_writer out.")


def is_identifier(name: Any) -> bool:
    """Whether something can be the name of a class: no dots, no paths, no special attributes of Python."""
    return isinstance(name, str) and name.isidentifier() and not name.startswith("__")


def _check_configuration(configuration: Any, where: str, of: str) -> None:
    if not isinstance(configuration, dict):
        raise _refusal(configuration, f"the content{of}", where)
    for key, allowed in CONFIGURATION_NAMES.items():
        if key in configuration:
            _check(configuration[key], allowed, f"{key}{of}", where)
    if "data_identifier" in configuration and not is_plain_name(configuration["data_identifier"]):
        raise _refusal(configuration["data_identifier"], f"data_identifier{of}", where)
    if "normalization_schemes" in configuration:
        schemes = configuration["normalization_schemes"]
        if not isinstance(schemes, (list, tuple)):
            raise _refusal(schemes, f"normalization_schemes{of}", where)
        for scheme in schemes:
            if not (is_identifier(scheme) and _is_own_normalization(scheme)):
                _check(scheme, NORMALIZATIONS, f"normalization_schemes{of}", where)
    if "architecture" in configuration:
        check_architecture(configuration["architecture"], where, of)


def _is_own_normalization(name: str) -> bool:
    """Whether the user has put a class of this name where normalisations are looked for."""
    return name not in NORMALIZATIONS and (
        own_classes.stands_in_nnunet(name, own_classes.NORMALIZATIONS) or own_classes.stands_in_own_folder(name)
    )


def _is_own_reader(name: Any) -> bool:
    """Whether the user has put a class of this name into nnU-Net's package, the only place where nnU-Net looks for readers."""
    return is_identifier(name) and name not in READERS and own_classes.stands_in_nnunet(name, own_classes.READERS)


def _check_inheritance(name: str, configurations: Mapping[str, Any], where: str) -> None:
    """Follows ``inherits_from``; every step must lead to another configuration, and none back."""
    visited = {name}
    configuration = configurations.get(name)
    while isinstance(configuration, dict) and "inherits_from" in configuration:
        parent = configuration["inherits_from"]
        if not isinstance(parent, str) or parent not in configurations or parent in visited:
            raise _refusal(parent, f"inherits_from of {_shown(name)}", where)
        visited.add(parent)
        configuration = configurations[parent]


def _items(arguments: Mapping[Any, Any]) -> Iterator[tuple[Any, Any]]:
    """Keys and values at every depth; no recursion, because foreign files may be nested deeper than Python allows."""
    waiting: list[Any] = [arguments]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Mapping):
            yield from value.items()
            waiting.extend(value.values())
        elif isinstance(value, (list, tuple)):
            waiting.extend(value)


def _check(name: Any, allowed: frozenset[str], what: str, where: str) -> None:
    if not isinstance(name, str) or name not in allowed:
        raise _refusal(name, what, where)


def _refusal(name: Any, what: str, where: str) -> UserError:
    return UserError(f"{where} must not have {_shown(name)} as {what}, which no planner writes; {REMEDY}.")


def _shown(name: Any) -> str:
    if isinstance(name, (list, tuple, dict)):
        return f"a {type(name).__name__}"
    text = ascii(name[: SHOWN + 1] if isinstance(name, str) else name)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
