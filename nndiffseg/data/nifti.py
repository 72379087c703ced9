"""The header of a NIfTI file, checked before any library builds an image from it, and its bytes.

nibabel and ITK answer a damaged header each in their own way: with an exception of their own, with the memory of an image of
10^18 voxels, or with an image of infinite spacing. Here every defect is a :class:`ValueError` or :class:`EOFError` with the
reason in words, of which :func:`nndiffseg.data.images.read_image` makes the sentence.
"""

from __future__ import annotations

import gzip
from typing import Any

import nibabel
import numpy as np

#: most voxels of an image: a whole-body CT has a tenth of it
MOST_VOXELS = 2**32
#: mm; what an image's spacing can be
SPACING = (1e-6, 1e6)
#: bytes that may follow the voxels; ITK writes none
TRAILING = 2**26
CHUNK = 2**22


def nifti_image(file: str) -> Any:
    """nibabel's image of a file whose header was checked; its voxels are not read.

    Raises:
        ValueError: the header is damaged, or says what no image has.
    """
    try:
        image: Any = nibabel.load(file)
        shape = tuple(int(n) for n in image.shape)
        zooms = _stored_spacing(file, image.header)[: len(shape)]
        affine, offset, kind = np.asarray(image.affine, float), image.dataobj.offset, image.dataobj.dtype
        offset = int(offset)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # nibabel's own exceptions have no common base
        raise ValueError(f"damaged header: {' '.join(str(error).split())[:100] or type(error).__name__}") from None
    if not 2 <= len(shape) <= 7 or min(shape) < 1 or np.prod([float(n) for n in shape]) > MOST_VOXELS:
        raise ValueError(f"its header says {'x'.join(map(str, shape))[:60]} voxels")
    if kind.kind not in "iufcV" or offset < 0:
        raise ValueError("its header says no type of number, or a place of the voxels before the file")
    if not (np.isfinite(zooms).all() and (np.abs(zooms) >= SPACING[0]).all() and (np.abs(zooms) <= SPACING[1]).all()):
        raise ValueError(f"its header says the spacing {'x'.join(f'{z:g}' for z in zooms)}")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < SPACING[0] ** 3:
        raise ValueError("its header says axes that span no space (sform, qform)")
    return image


def _stored_spacing(file: str, header: Any) -> np.ndarray:
    """As it stands in the file: nibabel makes 1 of 0."""
    kind = type(header)
    with _opened(file) as stream:
        raw = kind(stream.read(kind.template_dtype.itemsize), header.endianness, check=False)
    return np.array(raw["pixdim"][1:4], float)


def _opened(file: str) -> Any:
    return gzip.open(file) if file.endswith(".gz") else open(file, "rb")


def check_nifti(file: str) -> int:
    """Checks header and bytes.

    The bytes are read once more than needed, because ITK's reader hides two defects: it fills what is missing of a truncated
    file with whatever memory held, and turns NaN and infinite voxels into 0.

    Returns:
        The number of NaN or infinite voxels.

    Raises:
        ValueError: see :func:`nifti_image`.
        EOFError: the file is shorter than its header says, or its gzip stream ends early.
        OSError: wrong gzip checksum.
    """
    stored = nifti_image(file).dataobj
    offset, size = int(stored.offset), stored.dtype.itemsize
    wanted = offset + int(np.prod(stored.shape, dtype=np.int64)) * size
    have, invalid, rest = 0, 0, b""
    with _opened(file) as stream:
        while have < offset and (chunk := stream.read(min(CHUNK, offset - have))):
            have += len(chunk)
        while chunk := stream.read(CHUNK):
            have += len(chunk)
            if have > wanted + TRAILING:
                raise ValueError(f"more than {have} bytes instead of {wanted}")
            if stored.dtype.kind == "f":
                chunk = rest + chunk
                whole = len(chunk) - len(chunk) % size
                rest = chunk[whole:]
                invalid += int((~np.isfinite(np.frombuffer(chunk[:whole], stored.dtype))).sum())
    if have < wanted:
        raise EOFError(f"{have} bytes instead of {wanted}")
    return invalid
