"""Reads a report back: its tags, its text, the cells of its tables and its pictures."""

from __future__ import annotations

import base64
import io
from html.parser import HTMLParser

import numpy as np
from PIL import Image


class ParsedPage(HTMLParser):
    """What a browser would find in a page.

    Attributes:
        tags: with their attributes, in order.
        text: all of it.
        rows: the text of each cell, per row of all tables.
        open: tags that are not closed yet.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "input"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    @property
    def words(self) -> str:
        """The text with single spaces, as a browser shows it."""
        return " ".join(self.text.split())

    def attributes(self, tag: str, name: str) -> list[str | None]:
        return [attrs[name] for t, attrs in self.tags if t == tag and name in attrs]

    def pictures(self) -> list[Image.Image]:
        """Charts and middle frames: what a page shows at first, without the samples."""
        return [open_picture(attrs["src"] or "") for attrs in self._shown()]

    def described(self) -> list[str | None]:
        """What these show."""
        return [attrs["alt"] for attrs in self._shown()]

    def frames(self, case: str) -> list[Image.Image]:
        """All slices of a case, those that are hidden at first as well."""
        wanted = [a for tag, a in self.tags if tag == "img" and (a["alt"] or "").startswith(f"Slices of {case}")]
        return [open_picture(attrs["src"] or "") for attrs in wanted]

    def samples(self) -> list[str | None]:
        """Descriptions of the pictures of samples."""
        return [alt for alt in self.attributes("img", "alt") if (alt or "").startswith("Sample ")]

    def _shown(self) -> list[dict[str, str | None]]:
        pictures = [attrs for tag, attrs in self.tags if tag == "img" and "hidden" not in attrs]
        return [attrs for attrs in pictures if not (attrs["alt"] or "").startswith("Sample ")]


def open_picture(source: str) -> Image.Image:
    """The PNG or WebP in a data URI."""
    start, _, content = source.partition(";base64,")
    assert start in ("data:image/png", "data:image/webp")
    return Image.open(io.BytesIO(base64.b64decode(content)))


def pixels_of_colour(picture: Image.Image, colour: str, tolerance: int = 4) -> int:
    """Number of pixels close to ``#rrggbb``; slices are compressed with loss, and thin lines lose some of their colour."""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(np.asarray(picture).astype(int) - wanted).max(-1) <= tolerance).sum())
