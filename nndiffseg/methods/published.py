"""What the published methods share: their setting, ``planned`` or ``paper``, and the optimiser's numbers as options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import ArgsKwargs

from nndiffseg.data.schema import CONFIG, Positive, Share, Switch, Weight
from nndiffseg.methods.protocol import Method, MethodOptions, Recipe

Beta = Annotated[float, Field(strict=True, ge=0, lt=1)]


@dataclass(frozen=True, config=CONFIG)
class PublishedOptions(MethodOptions):
    """Options that every published method has.

    Attributes:
        setting: ``planned``, what this package makes of the method, or ``paper``: all other options then default to the
            published values, as far as they are built. What is given explicitly counts in either case.
        learning_rate: at its peak.
        weight_decay: of AdamW; 0 makes it Adam.
        beta1, beta2: of AdamW.
        gradient_clipping: norms of gradients are clipped to 1.
        weight_average: decay of the average of the weights; 0 for none.
    """

    #: what ``setting=paper`` changes
    paper: ClassVar[Mapping[str, Any]] = {}

    setting: Literal["planned", "paper"] = "planned"
    learning_rate: Positive = 1e-3
    weight_decay: Weight = 1e-2
    beta1: Beta = 0.9
    beta2: Beta = 0.999
    gradient_clipping: Switch = True
    weight_average: Share = 0.999

    @model_validator(mode="before")
    @classmethod
    def _published(cls, given: Any) -> Any:
        """Puts the published values below those that are given."""
        values = given.kwargs if isinstance(given, ArgsKwargs) else given
        if isinstance(values, Mapping) and values.get("setting") == "paper":
            return {**cls.paper, **values}
        return given


class PublishedMethod(Method):
    """A published method: its options name the optimiser's numbers."""

    @property
    def recipe(self) -> Recipe:
        o = self.options
        clip = 1.0 if o.gradient_clipping else float("inf")
        return Recipe(o.learning_rate, o.weight_decay, (o.beta1, o.beta2), clip, o.weight_average)
