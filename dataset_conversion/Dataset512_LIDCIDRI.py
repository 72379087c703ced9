"""LIDC-IDRI: lung nodules in CT, outlined by four radiologists; one case for each nodule, cut out of its scan.

Armato et al., Med Phys 38(2):915-931, 2011. A nodule is what hangs together in the union of all readers' outlines of
nodules of 3 mm or more; the case is the box around it with 16 mm on each side, in the scan's geometry and in Hounsfield
units, and the label of a reader is all that this reader outlined in the box, nothing where it was not seen. Readers are
told apart in a scan only: reader1 of two scans need not be one person. Outlines are the first pixels outside, so they do
not belong to the nodule. Scans of one patient stay together. DICOM folders and XML files are matched by the series, so the
XML may lie elsewhere.

    nndiffseg_convert LIDC-IDRI FOLDER     with LIDC-IDRI-0001/.../000001.dcm and .../069.xml
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from tqdm import tqdm

from nndiffseg.dataset_conversion.dicom import Series, find_series, read_series
from nndiffseg.dataset_conversion.polygons import fill
from nndiffseg.dataset_conversion.published import OpenCase, Published
from nndiffseg.dataset_conversion.source import SourceCase, list_files
from nndiffseg.dataset_conversion.volumes import on_grid
from nndiffseg.dataset_conversion.xml_file import read_xml
from nndiffseg.errors import UserError

SCANS = 1018
MARGIN = 16.0  # mm


def find(source: Path, progress: bool) -> tuple[list[SourceCase], list[str]]:
    """One case for each scan: ``image`` is the folder of its slices, its only label the XML file."""
    files = list_files(source)
    series = {s.uid: s for s in find_series(files, progress=progress)}
    found: dict[str, Path] = {}
    annotations = [f for p, f in files.items() if p.lower().endswith(".xml")]
    for file in tqdm(annotations, desc="Reading annotations", disable=not progress, dynamic_ncols=True):
        root = read_xml(file)
        if root.tag == "LidcReadMessage" and (uid := _series_of(root)) in series:
            found.setdefault(uid, file)
    if not found:
        raise UserError(
            f"{source} holds no CT scan of LIDC-IDRI with its XML file, such as LIDC-IDRI-0001/.../000001.dcm and 069.xml; "
            "give the folder that holds both."
        )
    if alone := sorted(str(s.folder) for uid, s in series.items() if uid not in found):
        more = f" (and {len(alone) - 1} more like it)" if len(alone) > 1 else ""
        raise UserError(f"{alone[0]} has no XML file of its readers{more}; complete the download, or take the scan out.")
    cases = [
        SourceCase(name, series[uid].folder, {"": (found[uid],)}, False, patient)
        for uid, name, patient in _named(series, found)
    ]
    remarks = [f"LIDC-IDRI has here {len(found)} scans (published: {SCANS}); complete the download before comparing."]
    return cases, remarks if len(found) != SCANS else []


def _named(series: dict[str, Series], found: dict[str, Path]) -> Iterator[tuple[str, str, str]]:
    """Series, name of the scan and patient, in the order of the patients."""
    count: dict[str, int] = {}
    for s in sorted((series[uid] for uid in found), key=lambda s: (s.patient, s.uid)):
        count[s.patient] = count.get(s.patient, 0) + 1
        yield s.uid, f"{s.patient}_s{count[s.patient]}", s.patient


def _series_of(root: Element) -> str:
    for tag in ("SeriesInstanceUid", "CTSeriesInstanceUid"):
        if (element := root.find(f".//{tag}")) is not None:
            return (element.text or "").strip()
    return ""


def nodules(dataset: Published, case: SourceCase) -> Iterator[OpenCase]:
    """Every nodule of a scan, with the masks of its readers."""
    scan, slices = read_series(case.image)
    (file,) = case.labels[""]
    masks = reader_masks(file, slices, scan.GetSize()[::-1])
    lumps, _ = ndimage.label(np.logical_or.reduce(masks), np.ones((3, 3, 3)))
    margin = [round(MARGIN / s) for s in scan.GetSpacing()[::-1]]
    remarks = () if len(masks) == dataset.raters else (f"{case.name} has {len(masks)} of {dataset.raters} readers.",)
    for i, box in enumerate(ndimage.find_objects(lumps), 1):
        wide = [slice(max(0, b.start - m), min(n, b.stop + m)) for b, m, n in zip(box, margin, lumps.shape, strict=True)]
        image = scan[tuple(wide[::-1])]
        labels = {f"reader{k}": on_grid(mask[tuple(wide)].astype(np.uint8), image) for k, mask in enumerate(masks, 1)}
        yield OpenCase(f"{case.name}_n{i:02d}", [image], labels, case.group, case.test, remarks if i == 1 else ())


def reader_masks(file: Path, slices: Sequence[str], shape: tuple[int, ...]) -> list[NDArray[np.bool_]]:
    """Masks ``(z, y, x)`` of the nodules that each reader outlined.

    Args:
        file: XML of the scan.
        slices: unique id of the image in each slice.
        shape: of the scan.

    Raises:
        UserError: an outline lies on an image that is not in the series, or the file is not as LIDC-IDRI writes it.
    """
    place = {uid: z for z, uid in enumerate(slices)}
    masks = []
    for session in read_xml(file).iter("readingSession"):
        mask = np.zeros(shape, bool)
        for roi in session.iter("roi"):
            try:
                outline = [(int(e.findtext("xCoord", "")), int(e.findtext("yCoord", ""))) for e in roi.iter("edgeMap")]
                z = place[roi.findtext("imageSOP_UID", "").strip()] if len(outline) > 2 else 0
            except (ValueError, KeyError) as error:
                raise UserError(
                    f"{file} has an outline that fits no image of its scan ({error}); download both again."
                ) from None
            if len(outline) > 2:  # a single point marks a nodule below 3 mm
                inside = fill([outline], (shape[1], shape[2]), edge=False).astype(bool)
                mask[z] = (
                    mask[z] & ~inside if roi.findtext("inclusion", "TRUE").strip().upper() == "FALSE" else mask[z] | inside
                )
        masks.append(mask)
    if not masks:
        raise UserError(f"{file} holds no reading of a scan; download it again.")
    return masks


LIDC = Published(
    name="LIDC-IDRI",
    number=512,
    task="lung nodules of 3 mm or more in CT, cut out, four readers, 3D",
    licence="CC BY 3.0",
    reference="Armato et al., The Lung Image Database Consortium (LIDC) and Image Database Resource Initiative (IDRI), "
    "Med Phys 38(2):915-931, 2011",
    get="https://doi.org/10.7937/K9/TCIA.2015.LO9QL9SX",
    channels=("CT",),
    labels={"background": 0, "nodule": 1},
    ending=".nii.gz",
    raters=4,
    cases=find,
    open=nodules,
)
CONVERTERS = (LIDC.converter(),)
