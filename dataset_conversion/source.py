"""The files of a dataset as its publishers lay them out, found by their names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nndiffseg.data.listing import check_training_name
from nndiffseg.data.names import check_case_id
from nndiffseg.errors import UserError

#: no dataset converted here has more files; a home folder may have
MOST_FILES = 1_000_000
#: so many names are printed
SHOWN = 3


@dataclass(frozen=True)
class Part:
    """Training or test cases of a dataset, described by the paths of their files.

    Paths are patterns (regular expressions, upper and lower case alike) for the end of a path that begins with the name of the
    dataset's own folder, with ``/`` between folders. Every group whose name begins with ``case`` belongs to the name of the
    case; image and label of a case have the same ones. ``rater`` tells the annotations of an image apart.

    Attributes:
        what: ``training images``, for messages.
        images: path of an image.
        labels: path of a label; None where the publishers keep the labels to themselves.
        count: numbers of images that the publishers state for one release or another; empty: they state none.
        example: path of an image as it is published, for messages.
        test: they go into ``imagesTs`` and ``labelsTs``.
        prefix: what case names begin with.
        pieces: files of one label, such as one for each lung.
        some_unlabelled: the publishers give labels for a part of the images only; the others are left out.
        unused: paths of files that belong to the dataset and not to this part, so that nothing is said about them.
    """

    what: str
    images: str
    labels: str | None
    count: tuple[int, ...]
    example: str
    test: bool = False
    prefix: str = ""
    pieces: int = 1
    some_unlabelled: bool = False
    unused: str | None = None


@dataclass(frozen=True)
class SourceCase:
    """One image and the files of each of its annotations, none for an unlabelled test image."""

    name: str
    image: Path
    labels: Mapping[str, tuple[Path, ...]]
    test: bool
    group: str = ""


def list_files(source: Path) -> dict[str, Path]:
    """All files below a folder: path with its name in front, ``/`` between folders -> file, sorted.

    Hidden files and folders are left out, and so are what macOS packs beside the files and datasets in nnU-Net's raw format,
    which may lie there when ``source`` is the working folder.

    Raises:
        UserError: it is no folder, or holds more files than any dataset does.
    """
    source = source.resolve()
    if not source.is_dir():
        raise UserError(f"{source} is not a folder; give the folder of the downloaded and unpacked dataset.")
    found: dict[str, Path] = {}
    seen: set[str] = set()
    for folder, inner, names in os.walk(source, followlinks=True):
        real = os.path.realpath(folder)
        inner[:] = sorted(n for n in inner if not _skipped(n) and real not in seen)
        if real in seen:  # a link back
            continue
        seen.add(real)
        place = (source.name, *Path(folder).relative_to(source).parts)
        for name in sorted(n for n in names if not n.startswith(".")):
            found["/".join((*place, name))] = Path(folder, name)
        if len(found) > MOST_FILES:
            raise UserError(f"{source} holds more than {MOST_FILES:,} files; give the dataset's own folder.")
    return found


def _skipped(folder: str) -> bool:
    return folder.startswith(".") or folder == "__MACOSX" or re.fullmatch(r"Dataset\d{3,}_.+", folder) is not None


def find_cases(title: str, parts: Sequence[Part], source: Path, raters: int) -> tuple[list[SourceCase], list[str]]:
    """The cases of a dataset and remarks about what is not as published.

    Raises:
        UserError: there are no training cases; an image lacks a label or a label its image, or two files have one place.
    """
    files = list_files(source)
    used: set[str] = set()
    cases = [case for part in parts for case in _cases_of(part, files, source, used)]
    if len({(c.test, c.name) for c in cases}) < len(cases):
        twice = next(c.name for i, c in enumerate(cases) if c.name in {d.name for d in cases[:i]})
        raise UserError(f"{source} holds two cases {twice}; give the folder of one release of {title}.")
    if not any(not c.test for c in cases):
        part = next(p for p in parts if not p.test)
        raise UserError(f"{source} holds no {part.what} of {title}, such as {part.example}; give the folder that holds them.")
    remarks = [*_count_remark(title, parts, files), *_rater_remark(cases, raters), *_left_out(files, used)]
    return cases, remarks


def _cases_of(part: Part, files: Mapping[str, Path], source: Path, used: set[str]) -> Iterator[SourceCase]:
    images: dict[str, str] = {}
    names: dict[str, str] = {}
    for path, case, _ in _matches(part.images, files):
        if (key := case.casefold()) in images:
            raise UserError(f"{path} and {images[key]} are the same image twice; take one of them out of {source}.")
        images[key], names[key] = path, part.prefix + case
    labels: dict[str, dict[str, list[Path]]] = {}
    used.update(path for path, *_ in _matches(part.unused, files))
    for path, case, rater in _matches(part.labels, files):
        labels.setdefault(case.casefold(), {}).setdefault(rater, []).append(files[path])
        used.add(path)
    used.update(images.values())
    if alone := sorted(set(labels) - set(images)):
        file = next(iter(labels[alone[0]].values()))[0]
        raise UserError(f"{file} has no image{_more(len(alone))}; add the image, or take the label out.")
    for key, path in images.items():
        check_case_id(names[key], str(source))
        check_training_name(names[key], str(source))
        annotations = labels.get(key, {})
        if part.labels and not annotations:
            if part.some_unlabelled:
                continue
            number = len(set(images) - set(labels))
            raise UserError(f"{files[path]} has no label{_more(number)}; complete the download, or take the image out.")
        for found in annotations.values():
            if len(found) != part.pieces:
                raise UserError(
                    f"{files[path]} has {len(found)} of the {part.pieces} files of a label (here {found[0].name}); complete "
                    "the download, or take the image and its labels out."
                )
        yield SourceCase(names[key], files[path], {r: tuple(annotations[r]) for r in sorted(annotations)}, part.test)


def parts_present(parts: Sequence[Part], source: Path) -> list[Part]:
    """Those parts of which there is an image."""
    files = list_files(source)
    return [p for p in parts if any(True for _ in _matches(p.images, files))]


def _matches(pattern: str | None, files: Mapping[str, Path]) -> Iterator[tuple[str, str, str]]:
    """Path, name of the case, and rater of each file that matches."""
    if pattern is None:
        return
    expression = re.compile(rf"(?:^|/){pattern}$", re.IGNORECASE | re.ASCII)
    for path in files:
        if match := expression.search(path):
            groups = match.groupdict()
            case = "_".join(v for k, v in groups.items() if k.startswith("case") and v)
            rater = groups.get("rater") or ""
            yield path, case, f"rater{int(rater)}" if rater.isdigit() else rater


def _count_remark(title: str, parts: Sequence[Part], files: Mapping[str, Path]) -> list[str]:
    counted = [(p, sum(1 for _ in _matches(p.images, files))) for p in parts if p.count]
    wrong = [f"{n} {p.what} (published: {' or '.join(map(str, p.count))})" for p, n in counted if n not in p.count]
    if not wrong:
        return []
    return [f"{title} has here {' and '.join(wrong)}; complete the download before comparing with published results."]


def _rater_remark(cases: Sequence[SourceCase], raters: int) -> list[str]:
    few = [c for c in cases if c.labels and len(c.labels) != raters]
    if not few:
        return []
    return [f"{few[0].name} has {len(few[0].labels)} of {raters} annotations{_more(len(few))}; those that are there are used."]


def _left_out(files: Mapping[str, Path], used: set[str]) -> list[str]:
    """Files beside the used ones, of their kind, that no pattern takes."""
    places = {(p.rpartition("/")[0], Path(p).suffix.lower()) for p in used}
    others = [p for p in files if p not in used and (p.rpartition("/")[0], Path(p).suffix.lower()) in places]
    if not others:
        return []
    more = f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
    return [f"Left out, since their names are none of the dataset's: {', '.join(others[:SHOWN])}{more}."]


def _more(number: int) -> str:
    return f" (and {number - 1} more like it)" if number > 1 else ""
