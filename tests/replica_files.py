"""Files of the small copies of public datasets: pictures, volumes, and LIDC-IDRI's DICOM series with their XML."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from PIL import Image

SIDE = 16


def picture(file: Path, array: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(file)


def volume(file: Path, array: np.ndarray, spacing: Sequence[float] = (0.5, 0.75, 2.0)) -> None:
    """An image with an origin and a direction of its own."""
    file.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing[: array.ndim])
    image.SetOrigin((3.0, -5.0, 7.0)[: array.ndim])
    if array.ndim == 3:
        image.SetDirection((0, 1, 0, -1, 0, 0, 0, 0, 1))
    sitk.WriteImage(image, str(file), True)


def colours(seed: int, side: int = SIDE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3)).astype(np.uint8)


def grey(seed: int, side: int = SIDE) -> np.ndarray:
    return colours(seed, side)[..., 0]


def square(value: int, start: int = 4, stop: int = 10, side: int = SIDE, background: int = 0) -> np.ndarray:
    mask = np.full((side, side), background, np.uint8)
    mask[start:stop, start:stop] = value
    return mask


def ct(seed: int, depth: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 1000, (depth, SIDE, SIDE)).astype(np.int16)


def blocks(values: Sequence[int], depth: int = 4, shift: int = 0) -> np.ndarray:
    """One slab for each value."""
    label = np.zeros((depth, SIDE, SIDE), np.uint8)
    for i, value in enumerate(values):
        label[1:3, 4 + shift : 10, i] = value
    return label


def ring(image: np.ndarray, start: int, stop: int) -> np.ndarray:
    """A copy with a closed square contour drawn into it."""
    drawn = image.copy()
    inner = drawn[start + 1 : stop - 1, start + 1 : stop - 1].copy()
    drawn[start:stop, start:stop] = (0, 0, 255)
    drawn[start + 1 : stop - 1, start + 1 : stop - 1] = inner
    return drawn


def dicom_series(folder: Path, scan: np.ndarray, patient: str, uid: str, *, modality: str = "CT") -> list[str]:
    """A series ``(z, y, x)`` of 0.7x0.7x2.5 mm, its files named in another order; ids of the images in order."""
    folder.mkdir(parents=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    uids = []
    for z, pixels in enumerate(scan):
        image = sitk.GetImageFromArray(pixels)
        image.SetSpacing((0.7, 0.7))
        uids.append(f"{uid}.{z + 1}")
        for tag, value in {
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
            "0008|0018": uids[-1],
            "0008|0060": modality,
            "0010|0020": patient,
            "0020|000d": "1.2.9",
            "0020|000e": uid,
            "0020|0032": f"-3\\4\\{-20 + 2.5 * z}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0020|0013": str(z),
            "0018|0050": "2.5",
            "0028|1052": "-1024",
            "0028|1053": "1",
        }.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{(7 * z + 3) % len(scan):06d}.dcm"))
        writer.Execute(image)
    return uids


def lidc(folder: Path) -> None:
    """Two scans of one patient and one of another; each has a nodule of all four readers and one of two of them."""
    for n, (patient, uid) in enumerate((("0001", "1.2.1"), ("0001", "1.2.2"), ("0007", "1.2.3"))):
        place = folder / f"LIDC-IDRI-{patient}/study{n}/series{n}"
        scan = np.random.default_rng(n).integers(-1000, 1000, (9, 64, 64)).astype(np.int16)
        slices = dicom_series(place, scan, f"LIDC-IDRI-{patient}", uid)
        (place / "069.xml").write_text(lidc_xml(uid, slices))


def lidc_xml(uid: str, slices: Sequence[str]) -> str:
    """Reader k outlines a square of 4 + k pixels inside in slices 3 and 4, reader 1 with a hole; 3 and 4 another, far one."""

    def roi(z: int, x: int, size: int, inclusion: str = "TRUE") -> str:
        corners = [(x, 10), (x + size, 10), (x + size, 10 + size), (x, 10 + size)]
        edge = "".join(f"<edgeMap><xCoord>{a}</xCoord><yCoord>{b}</yCoord></edgeMap>" for a, b in corners)
        return f"<roi><imageSOP_UID>{slices[z]}</imageSOP_UID><inclusion>{inclusion}</inclusion>{edge}</roi>"

    small = f"<roi><imageSOP_UID>{slices[6]}</imageSOP_UID><edgeMap><xCoord>3</xCoord><yCoord>3</yCoord></edgeMap></roi>"
    sessions = ""
    for reader in range(1, 5):
        near = roi(3, 8, 5 + reader) + roi(4, 8, 5 + reader) + (roi(3, 9, 4, "FALSE") if reader == 1 else "")
        far = f"<unblindedReadNodule>{roi(4, 52, 6)}</unblindedReadNodule>" if reader > 2 else ""
        sessions += (
            f"<readingSession><unblindedReadNodule>{near}</unblindedReadNodule>{far}"
            f"<unblindedReadNodule>{small}</unblindedReadNodule></readingSession>"
        )
    header = f"<ResponseHeader><SeriesInstanceUid>{uid}</SeriesInstanceUid></ResponseHeader>"
    return f'<?xml version="1.0"?><LidcReadMessage xmlns="http://www.nih.gov">{header}{sessions}</LidcReadMessage>'
