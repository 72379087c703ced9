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
        if tag not in ("meta", "img"):
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
        return [open_picture(source or "") for source in self.attributes("img", "src")]


def open_picture(source: str) -> Image.Image:
    """The PNG in a data URI."""
    start = "data:image/png;base64,"
    assert source.startswith(start)
    return Image.open(io.BytesIO(base64.b64decode(source[len(start) :])))


def pixels_of_colour(picture: Image.Image, colour: str) -> int:
    """Number of pixels close to ``#rrggbb``."""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(np.asarray(picture).astype(int) - wanted).max(-1) <= 4).sum())
