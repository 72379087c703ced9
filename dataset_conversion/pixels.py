"""Images and binary masks as arrays: reading, resizing without aliasing, writing."""

from __future__ import annotations

import warnings
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nndiffseg.data.file_kind import READ_ERRORS
from nndiffseg.errors import UserError

#: most pixels of an image: a radiograph has 20 million, a dermoscopy 30
MOST_PIXELS = 150_000_000


def read_array(file: Path) -> NDArray:
    """Pixels of a grey or colour image, ``(H, W)`` or ``(H, W, 3)``, in the file's own bit depth.

    Raises:
        UserError: the file is missing, not an image, or larger than :data:`MOST_PIXELS`.
    """
    return _read(file, None)


def read_picture(file: Path, *, colour: bool) -> NDArray:
    """Pixels of an image of any kind: ``(H, W, 3)`` with 8 bits, or grey ``(H, W)`` with 8 or 16 bits.

    Palettes are resolved, transparency is dropped, and grey is repeated where ``colour`` asks for three channels.

    Raises:
        UserError: as :func:`read_array`.
    """
    return _read(file, "RGB" if colour else "L")


def _read(file: Path, mode: str | None) -> NDArray:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit here is another one
            image = Image.open(file)
        with image:
            if image.width * image.height > MOST_PIXELS:
                raise UserError(f"{file} has {image.width}x{image.height} pixels, which no image here has; replace it.")
            if mode is None or image.mode == mode:
                return np.asarray(image)
            if mode == "L" and image.mode.startswith("I"):  # 16 bits, which PIL would cut off at 255
                return np.asarray(image).astype(np.uint16)
            return np.asarray(image.convert(mode))
    except FileNotFoundError:
        raise UserError(f"{file} is missing; put it there or download the dataset again (docs/datasets.md).") from None
    except (*READ_ERRORS, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{file} cannot be read as an image ({reason}); replace it.") from None


def read_mask(file: Path) -> NDArray[np.uint8]:
    """A binary mask as 0 and 1, ``(H, W)``; the file may hold 0 and 1, or 0 and 255.

    Raises:
        UserError: it is not a binary grey image.
    """
    array = read_array(file)
    highest = array.max()
    if array.ndim != 2 or highest not in (0, 1, 255) or not ((array == 0) | (array == highest)).all():
        raise UserError(f"{file} is not a binary mask with the values 0 and 1 or 0 and 255; replace it.")
    return (array > 0).astype(np.uint8)


def matching_mask(file: Path, pixels: NDArray) -> NDArray[np.uint8]:
    """:func:`read_mask`, refusing a mask whose size is not the image's."""
    mask = read_mask(file)
    if mask.shape != pixels.shape[:2]:
        sizes = " against ".join(f"{h}x{w}" for h, w in (mask.shape, pixels.shape[:2]))
        raise UserError(f"{file} and its image differ in size ({sizes}); replace it by the mask of that image.")
    return mask


def area_resize(array: NDArray, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Every new pixel is the mean over the area that it covers, so the image's mean is kept and nothing aliases.

    Args:
        array: ``(H, W)`` or ``(H, W, C)``.
        shape: new height and width. Where it is larger than the old one, pixels are repeated.
    """
    rows, columns = (_coverage(old, new) for old, new in zip(array.shape[:2], shape, strict=True))
    partly = np.tensordot(rows, array.astype(np.float64), axes=(1, 0))  # (h, W, ...)
    return np.moveaxis(np.tensordot(columns, partly, axes=(1, 1)), 0, 1)  # (h, w, ...)


@lru_cache(maxsize=8)
def _coverage(old: int, new: int) -> NDArray[np.float64]:
    """``(new, old)``: the share of each old pixel in each new one; rows sum to 1."""
    step = old / new
    start = np.arange(new)[:, None] * step
    pixel = np.arange(old)[None]
    return np.clip(np.minimum(start + step, pixel + 1) - np.maximum(start, pixel), 0, None) / step


def resize_image(array: NDArray, shape: tuple[int, int] | None) -> NDArray:
    """:func:`area_resize` rounded to the image's own integer type; unchanged if ``shape`` is None or its own."""
    if shape is None or array.shape[:2] == shape:
        return array
    return np.rint(area_resize(array, shape)).astype(array.dtype)


def resize_mask(mask: NDArray[np.uint8], shape: tuple[int, int] | None) -> NDArray[np.uint8]:
    """A pixel is 1 where the mask covers at least half of its area."""
    if shape is None or mask.shape == shape:
        return mask
    return (area_resize(mask, shape) >= 0.5 - 1e-9).astype(np.uint8)  # ties survive rounding


def write_png(array: NDArray, file: Path) -> None:
    """Writes 8- or 16-bit grey or 8-bit colour."""
    Image.fromarray(np.ascontiguousarray(array)).save(file, format="PNG")
