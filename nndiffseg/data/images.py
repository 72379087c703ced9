"""Reads images with nnU-Net's readers; every defect of a file is reported in one sentence."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
from nnunetv2.imageio.reader_writer_registry import LIST_OF_IO_CLASSES, recursive_find_reader_writer_by_name
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nndiffseg.data.file_kind import READ_ERRORS, check_components, is_sheared, refusal
from nndiffseg.data.files import read_json
from nndiffseg.data.memory import TOO_LITTLE, LittleMemoryError, is_out_of_memory
from nndiffseg.data.nifti import SPACING, check_nifti
from nndiffseg.data.plan_names import check_plan_names, check_reader
from nndiffseg.errors import UserError

#: a slice thicker than this many pixels marks a 2D image
THICK = 900
PIXELS = "pixels"


def find_reader(dataset_json: Mapping[str, Any], example: str | Path, others: Iterable[str] = ()) -> type[BaseReaderWriter]:
    """nnU-Net's choice of reader: the one that dataset.json names, or the first that can read ``example``.

    Where one of the files ``others`` has axes that are not at right angles, it is the one that can read that one too, so that
    the choice does not depend on the order of the cases.

    Raises:
        UserError: no reader for this file ending, or ``example`` is broken.
    """
    check_reader(dataset_json)
    name = dataset_json.get("overwrite_image_reader_writer", "None")
    if name != "None":
        return recursive_find_reader_writer_by_name(name)
    ending = str(dataset_json["file_ending"])
    matching = [r for r in LIST_OF_IO_CLASSES if ending.lower() in r.supported_file_endings]
    if not matching:
        endings = sorted({e for r in LIST_OF_IO_CLASSES for e in r.supported_file_endings})
        raise UserError(f"dataset.json has the file_ending {ending}; nnU-Net reads {', '.join(endings)}.")
    problem = None
    for reader in matching:
        try:
            read_image(reader(), example)
            return NibabelIO if reader is SimpleITKIO and any(is_sheared(f) for f in others) else reader
        except UserError as error:
            problem = problem or error
    assert problem is not None
    raise problem


def planned_reader(plans_file: Path, dataset_json: Mapping[str, Any], example: str | Path) -> type[BaseReaderWriter]:
    """The reader named in a model's plans, if that file exists, or else :func:`find_reader` of ``example``.

    Raises:
        UserError: the plans are not as planners write them, or as :func:`find_reader`.
    """
    if plans_file.is_file():
        plans = read_json(plans_file, "predict again")
        check_plan_names(plans, str(plans_file))
        if name := plans.get("image_reader_writer"):
            return recursive_find_reader_writer_by_name(name)
    return find_reader(dataset_json, example)


def is_flat(shape: Sequence[int], spacing: Sequence[float]) -> bool:
    """Whether an image ``(z, y, x)`` is 2D: nnU-Net's readers give it one slice of a huge thickness."""
    return shape[0] == 1 and spacing[0] > THICK * max(spacing[1:])


def volume_unit(reader: type[BaseReaderWriter]) -> str:
    """``ml``, or ``pixels`` for photographs, whose pixels have no size; then keys that end in ``_ml`` count 1000 pixels."""
    return PIXELS if issubclass(reader, NaturalImage2DIO) else "ml"


def unit_of_model(folder: Path) -> str:
    """:func:`volume_unit` by the plans of the model in a folder."""
    file = folder / "plans.json"
    plans = read_json(file, "copy the model again") if file.is_file() else None
    natural = isinstance(plans, dict) and plans.get("image_reader_writer") == NaturalImage2DIO.__name__
    return PIXELS if natural else "ml"


def voxel_volume(shape: Sequence[int], spacing: Sequence[float]) -> float:
    """Volume of a voxel in mm^3; a 2D image counts as 1 mm thick."""
    return float(np.prod(spacing[1:] if is_flat(shape, spacing) else spacing))


def read_image(reader: BaseReaderWriter, file: str | Path, *, label: bool = False) -> tuple[np.ndarray, dict[str, Any]]:
    """Reads one image file or label.

    Returns:
        The array ``(C, *spatial)`` with three spatial axes and the properties as nnU-Net's reader gives them.

    Raises:
        UserError: the file is missing, unreadable, truncated, or holds NaN or infinite voxels; or memory is too small for it.
    """
    file = str(file)
    if not os.path.isfile(file):
        raise UserError(f"{file} is missing; put it there or take the case out.")
    check_components(file, label=label)
    invalid, sound = 0, False
    try:
        if file.endswith((".nii", ".nii.gz")):
            invalid = check_nifti(file)
            sound = True
        with contextlib.redirect_stdout(io.StringIO()):  # the readers print what the sentences here say
            array, properties = reader.read_seg(file) if label else reader.read_images((file,))
    except READ_ERRORS as error:
        if sound and is_out_of_memory(error):
            raise LittleMemoryError(f"{TOO_LITTLE} to read {file}; close what else runs, or use fewer processes.") from None
        raise refusal(file, error) from None
    if not all(SPACING[0] <= float(s) <= SPACING[1] for s in properties["spacing"]):  # NaN is neither
        raise UserError(f"{file} has the spacing {_show(properties['spacing'])}, which no image has; correct its header.")
    if invalid := invalid or int((~np.isfinite(array)).sum()):
        raise UserError(f"{file} holds {invalid} NaN or infinite voxels; replace them by a valid intensity.")
    if label and len(array) != 1:
        raise UserError(
            f"{file} holds {len(array)} channels or volumes; a label has one, with the label numbers as values, so export it "
            "as a single label map."
        )
    return array, three_axes(properties)


def three_axes(properties: dict[str, Any]) -> dict[str, Any]:
    """Properties of a case's grid from those of a 4D image, which holds its channels; others as they are.

    nnU-Net's readers join the channels and keep a geometry of four axes, with which no segmentation can be written.
    """
    geometry = properties.get("sitk_stuff")
    if geometry is None or len(geometry["spacing"]) != 4:
        return properties
    direction = np.asarray(geometry["direction"], float).reshape(4, 4)[:3, :3]
    spatial = {
        "spacing": geometry["spacing"][:3],
        "origin": geometry["origin"][:3],
        "direction": tuple(direction.ravel().tolist()),
    }
    return {**properties, "sitk_stuff": {**geometry, **spatial}}


def geometry_mismatch(a: Mapping[str, Any], b: Mapping[str, Any], shape_a: tuple, shape_b: tuple) -> str | None:
    """What differs between two images' geometries, in words, or None.

    Tolerances: spacing 0.1 %, origin a tenth of a voxel, direction cosines 0.01.

    Args:
        a, b: properties as nnU-Net's readers give them.
        shape_a, shape_b: spatial shapes.
    """
    if shape_a != shape_b:
        return f"shape {_show(shape_a)} against {_show(shape_b)}"
    if not np.allclose(a["spacing"], b["spacing"], rtol=1e-3, atol=1e-5):
        return f"spacing {_show(a['spacing'])} against {_show(b['spacing'])}"
    voxel = float(min(a["spacing"]))
    if "sitk_stuff" in a and "sitk_stuff" in b:
        for what, tolerance in (("direction", 0.01), ("origin", 0.1 * voxel)):
            u, v = a["sitk_stuff"][what], b["sitk_stuff"][what]
            if not np.allclose(u, v, rtol=0, atol=tolerance):
                return f"{what} {_show(u)} against {_show(v)}"
    if "nibabel_stuff" in a and "nibabel_stuff" in b:
        u, v = (np.asarray(p["nibabel_stuff"]["original_affine"], float) for p in (a, b))
        if not np.allclose(u[:3, :3], v[:3, :3], rtol=0, atol=0.01 * voxel):
            return "direction"
        if not np.allclose(u[:3, 3], v[:3, 3], rtol=0, atol=0.1 * voxel):
            return f"origin {_show(u[:3, 3])} against {_show(v[:3, 3])}"
    return None


def _show(values: Any) -> str:
    return "x".join(f"{float(v):.6g}" for v in values)
