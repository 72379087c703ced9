"""Frozen, checked records that stand in plans, checkpoints and JSON files."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from nndiffseg.errors import UserError

#: of every record: unknown names are errors, and floats are finite
CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False)

#: of channels, strides, steps, samples: far more than a planner writes, so that no plans make a network or a run without end
Count = Annotated[int, Field(strict=True, ge=1, le=2**12)]
Index = Annotated[int, Field(strict=True, ge=0, le=2**20)]
Share = Annotated[float, Field(strict=True, ge=0, le=1)]
Weight = Annotated[float, Field(strict=True, ge=0, le=1e6)]
Positive = Annotated[float, Field(strict=True, gt=0, le=1e6)]
Real = Annotated[float, Field(strict=True, ge=-1e6, le=1e6)]
Switch = Annotated[bool, Field(strict=True)]

T = TypeVar("T")


def validated(record: type[T], values: Any, what: str, remedy: str = "") -> T:
    """A record from a mapping of its fields, as JSON gives them.

    Args:
        record: a pydantic dataclass with :data:`CONFIG`.
        values: names and values; foreign, so anything at all.
        what: what they are, for the message, such as ``"The plans' diffusion settings"``.
        remedy: what to type next, the end of the message.

    Raises:
        UserError: an unknown name, a missing one, a wrong type or a value out of range; one sentence.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{what} are {type(values).__name__} instead of names and values{remedy and '; ' + remedy}.")
    known = [f.name for f in dataclasses.fields(record)]  # type: ignore[arg-type]
    if unknown := sorted(str(k) for k in values if k not in known):
        raise UserError(f"{what} have no {unknown[0][:60]}; they are {', '.join(known) or 'none'}{remedy and '; ' + remedy}.")
    try:
        return TypeAdapter(record).validate_python(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(p) for p in first["loc"])[:60] or "value"
        reason = first["msg"][:1].lower() + first["msg"][1:]
        raise UserError(f"{what} have an invalid {name}: {reason}{remedy and '; ' + remedy}.") from None


def to_json(record: Any) -> dict[str, Any]:
    """A JSON-ready dictionary, the inverse of :func:`validated`; tuples become lists, records dictionaries."""
    return _plain(dataclasses.asdict(record))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
