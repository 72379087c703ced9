"""A public dataset as a declaration: what it is, how its files are called, and how they become nnU-Net's raw format."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from nndiffseg.data.files import read_json, write_json
from nndiffseg.data.groups import FOLDS, balanced_folds
from nndiffseg.data.parallel import default_processes, map_cases
from nndiffseg.data.splits import Fold, make_folds
from nndiffseg.dataset_conversion.labels import Above, LabelReader, UnusableAnnotationError
from nndiffseg.dataset_conversion.multirater import finish_multirater
from nndiffseg.dataset_conversion.pixels import read_picture
from nndiffseg.dataset_conversion.raw_dataset import Converter, Writable, folder_name, link, new_dataset, write_csv, write_file
from nndiffseg.dataset_conversion.source import Part, SourceCase, find_cases
from nndiffseg.dataset_conversion.volumes import read_channels, read_label_volume
from nndiffseg.errors import UserError

#: with fewer source files no worker processes are started
MANY = 64


@dataclass(frozen=True)
class OpenCase:
    """A case ready to be written: its channels, the label of each annotation, its group, and remarks."""

    name: str
    channels: Sequence[Writable]
    labels: Mapping[str, Writable]
    group: str
    test: bool
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Written:
    """What is left of a case when its files are written."""

    name: str
    annotations: tuple[str, ...]
    group: str
    test: bool
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class Published:
    """A public dataset.

    Functions in it are functions of a module, since worker processes get them.

    Attributes:
        name: what the command calls it, and the dataset's name.
        number: of the dataset, unless the user gives another.
        task: what is segmented in what, for the list.
        licence: of the data.
        reference: what to cite.
        get: where the data are.
        channels: names of the image's channels; three of a photograph are one file.
        labels: as in dataset.json; regions are lists.
        parts: training and test cases.
        order: regions_class_order.
        raters: annotations of each image; more than one make a case of each.
        ending: ``.png`` for photographs, ``.nii.gz`` for volumes and slices with a spacing.
        read_label: of photographs.
        values: of NIfTI labels -> labels; default: those of ``labels``.
        groups: source folder and names of cases -> group of each; None: each is a patient of its own.
        folds: source folder and names -> folds as published, or None where the file is missing.
        cases: source folder, and whether to show progress -> cases and remarks, instead of ``parts``.
        open: one of these -> what to write, instead of reading image and labels from their files.
    """

    name: str
    number: int
    task: str
    licence: str
    reference: str
    get: str
    channels: tuple[str, ...]
    labels: Mapping[str, int | Sequence[int]]
    parts: tuple[Part, ...] = ()
    order: tuple[int, ...] | None = None
    raters: int = 1
    ending: str = ".png"
    read_label: LabelReader = Above()  # noqa: RUF009  frozen
    values: Mapping[int, int] | None = None
    groups: Callable[[Path, Sequence[str]], Mapping[str, str]] | None = None
    folds: Callable[[Path, Sequence[str]], list[Fold] | None] | None = None
    cases: Callable[[Path, bool], tuple[list[SourceCase], list[str]]] | None = None
    open: Callable[[Published, SourceCase], Iterator[OpenCase]] | None = None

    def converter(self) -> Converter:
        """What the command knows of it; there worker processes can be started."""
        convert = partial(self.convert, processes=None)
        return Converter(self.name, self.number, self.task, self.licence, self.get, convert)

    def convert(
        self,
        source: Path,
        raw: Path,
        *,
        dataset_id: int | None = None,
        overwrite: bool = False,
        progress: bool = True,
        processes: int | None = 1,
    ) -> Path:
        """Writes the dataset in nnU-Net's raw format.

        Args:
            source: the dataset as downloaded and unpacked.
            raw: nnU-Net's raw folder.
            dataset_id: number of the dataset.
            overwrite: replace the dataset if it exists.
            progress: show a progress bar.
            processes: worker processes; None: several where there are many cases.

        Returns:
            The dataset's folder.

        Raises:
            UserError: ``source`` is not this dataset or damaged, or another dataset is in its place.
        """
        cases, remarks = self._find(source, progress)
        groups = self.groups(source, [c.name for c in cases]) if self.groups else {}
        cases = [SourceCase(c.name, c.image, c.labels, c.test, groups.get(c.name, c.group or c.name)) for c in cases]
        name = folder_name(self.name, self.number if dataset_id is None else dataset_id)
        with new_dataset(raw, name, overwrite=overwrite) as folder:
            for sub in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
                (folder / sub).mkdir()
            written = self._write(folder, cases, progress, processes)
            remarks += _summed([r for w in written for r in w.remarks])
            number = self._finish(folder, source, [w for w in written if not w.test and w.annotations])
            for sub in ("imagesTs", "labelsTs"):
                if not any((folder / sub).iterdir()):
                    (folder / sub).rmdir()
            write_json(self._dataset_json(number, remarks), folder / "dataset.json")
        return raw / name

    def _find(self, source: Path, progress: bool) -> tuple[list[SourceCase], list[str]]:
        if self.cases is not None:
            return self.cases(source, progress)
        return find_cases(self.name, self.parts, source, self.raters)

    def _write(self, folder: Path, cases: Sequence[SourceCase], progress: bool, processes: int | None) -> list[Written]:
        if processes is None:
            processes = default_processes() if len(cases) >= MANY else 1
        several = map_cases(
            write_case,
            [(self, case, folder) for case in cases],
            processes,
            description=f"Converting {self.name}",
            progress=progress,
            flags="nnUNet_def_n_proc=1",
        )
        return [written for some in several for written in some]

    def _finish(self, folder: Path, source: Path, written: Sequence[Written]) -> int:
        """Writes folds, groups and the annotations of validation cases; returns the number of cases."""
        if not written:
            raise UserError(f"{source} holds no usable label of {self.name}; download it again.")
        names, groups = [w.name for w in written], [w.group for w in written]
        if self.raters > 1:
            number = min(FOLDS, len(set(groups)))
            folds = balanced_folds(groups, number) if number > 1 else None
            return finish_multirater(folder, names, groups, [w.annotations for w in written], folds, self.ending)
        own = self.folds(source, names) if self.folds else None
        grouped = len(set(groups)) < len(groups)
        if own is None and not grouped:
            return len(written)  # nnU-Net's own folds
        if grouped:
            write_csv(folder / "cases.csv", ("case", "group"), list(zip(names, groups, strict=True)))
        if splits := own or make_folds(names, dict(zip(names, groups, strict=True))):
            write_json(splits, folder / "splits_final.json")
        return len(written)

    def _dataset_json(self, number: int, remarks: Sequence[str]) -> dict[str, Any]:
        regions = {} if self.order is None else {"regions_class_order": list(self.order)}
        return {
            "channel_names": {str(i): c for i, c in enumerate(self.channels)},
            "labels": {k: v if isinstance(v, int) else list(v) for k, v in self.labels.items()},
            **regions,
            "numTraining": number,
            "file_ending": self.ending,
            "name": self.name,
            "description": self.task,
            "reference": self.reference,
            "licence": self.licence,
            "release": self.get,
            "remarks": list(remarks),
        }


def write_case(dataset: Published, case: SourceCase, folder: Path) -> list[Written]:
    """Writes one image of the source, which is one case or several, and its labels."""
    read = dataset.open or (open_volume if dataset.ending == ".nii.gz" else open_picture)
    return [_write(opened, folder, dataset) for opened in read(dataset, case)]


def _write(case: OpenCase, folder: Path, dataset: Published) -> Written:
    kind, ending = "Ts" if case.test else "Tr", dataset.ending
    several = dataset.raters > 1
    names = [f"{case.name}_a{i:02d}" if several else case.name for i in range(len(case.labels))]
    unlabelled = not names and case.test  # the publishers keep the label to themselves
    for name in [case.name] if unlabelled or (several and case.test) else names:
        for c, channel in enumerate(case.channels):
            target, first = (folder / f"images{kind}" / f"{n}_{c:04d}{ending}" for n in (name, names[0] if names else name))
            if several and not case.test and target != first:
                link(first, target)
            else:
                write_file(channel, target)
    if several and case.test:
        places = [folder / "labelsTs" / case.name / f"{annotation}{ending}" for annotation in case.labels]
    else:
        places = [folder / f"labels{kind}" / f"{name}{ending}" for name in names]
    for place, label in zip(places, case.labels.values(), strict=True):
        place.parent.mkdir(exist_ok=True)
        write_file(label, place)
    return Written(case.name, tuple(case.labels), case.group, case.test, case.remarks)


def open_picture(dataset: Published, case: SourceCase) -> Iterator[OpenCase]:
    """A photograph and its labels."""
    image = read_picture(case.image, colour=len(dataset.channels) == 3)
    labels: dict[str, NDArray] = {}
    remarks = []
    for annotation, files in case.labels.items():
        try:
            labels[annotation] = dataset.read_label(files, image)
        except UnusableAnnotationError as error:
            remarks.append(str(error))
    yield OpenCase(case.name, [image], labels, case.group, case.test, tuple(remarks))


def open_volume(dataset: Published, case: SourceCase) -> Iterator[OpenCase]:
    """A NIfTI image and its labels, on one grid."""
    files = [file for (file,) in case.labels.values()]
    channels = read_channels(case.image, len(dataset.channels), files)
    values = dataset.values or {
        v: v for label in dataset.labels.values() for v in ([label] if isinstance(label, int) else label)
    }
    read = {a: read_label_volume(file, channels[0], values) for a, (file,) in case.labels.items()}
    remarks = tuple(f"{case.name}: {remark}" for _, remark in read.values() if remark)
    yield OpenCase(case.name, channels, {a: label for a, (label, _) in read.items()}, case.group, case.test, remarks)


def _summed(remarks: Sequence[str]) -> list[str]:
    """The first of them, and how many more there are."""
    if not remarks:
        return []
    more = f" (and {len(remarks) - 1} more like it)" if len(remarks) > 1 else ""
    return [f"{remarks[0].rstrip('.')}{more}."]


def read_folds(files: Sequence[Path], names: Mapping[str, str]) -> list[Fold]:
    """Folds from JSON files with the lists ``train`` and ``val``.

    Args:
        files: one of each fold.
        names: an entry of the lists as text -> name of the case.

    Raises:
        UserError: a file is not like that, or names an unknown case.
    """
    folds: list[Fold] = []
    for file in files:
        content = read_json(file, "download it again")
        try:
            folds.append({side: sorted(names[str(entry)] for entry in content[side]) for side in ("train", "val")})
        except (KeyError, TypeError) as error:
            raise UserError(f"{file} does not list the cases of a fold ({error}); download it again.") from None
    return folds
