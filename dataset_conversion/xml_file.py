"""XML of somebody else, read without entities: no file is included, and nothing grows on the way into memory."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import NoReturn
from xml.parsers import expat

from nndiffseg.errors import UserError

#: bytes; the largest annotation of the datasets read here has 12 MB
LARGEST = 200_000_000


class _Refused(Exception):
    pass


def read_xml(file: Path) -> ET.Element:
    """The root element; namespaces are left out of the tags.

    Raises:
        UserError: the file is missing, no XML, too large, or declares entities, which no annotation needs.
    """
    if not file.is_file():
        raise UserError(f"{file} is missing; put it there or download the dataset again.")
    if (size := file.stat().st_size) > LARGEST:
        raise UserError(f"{file} has {size / 1e6:.0f} MB, far more than any annotation; replace it.")
    builder, parser = ET.TreeBuilder(), expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = lambda tag, attributes: builder.start(tag.rpartition(":")[2], attributes)
    parser.EndElementHandler = lambda tag: builder.end(tag.rpartition(":")[2])
    parser.CharacterDataHandler = builder.data
    parser.EntityDeclHandler = _refuse
    parser.ExternalEntityRefHandler = _refuse
    try:
        with file.open("rb") as stream:
            parser.ParseFile(stream)
        return builder.close()
    except _Refused:
        raise UserError(f"{file} declares entities, which no annotation needs; replace it.") from None
    except (expat.ExpatError, AssertionError, ValueError, LookupError) as error:
        raise UserError(f"{file} cannot be read as XML ({error}); download it again.") from None


def _refuse(*_: object) -> NoReturn:
    raise _Refused
