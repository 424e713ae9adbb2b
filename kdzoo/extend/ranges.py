"""What a key may be set to when it is tuned: a range of numbers, or a list of choices."""

from __future__ import annotations

import math
from typing import Any

from pydantic import ConfigDict, Field, TypeAdapter, model_validator
from pydantic.dataclasses import dataclass

__all__ = ["CHOICES", "RANGE", "Choices", "Domain", "Range"]

# Dataclasses and no models: beside a param, pydantic would take a model for the param's type.
_CONFIG = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class Range:
    """Numbers from ``low`` to ``high``, both included.

    Beside a param it is what ``space: default`` takes:
    ``temperature: Annotated[float, kdzoo.Range(low=1, high=10)] = kdzoo.Field(4.0, ...)``.
    """

    low: int | float = Field(description="The lowest value.")
    high: int | float = Field(description="The highest value.")
    step: int | float | None = Field(
        None, gt=0, description="Only every so many; whole ends and a whole step: whole numbers."
    )
    log: bool = Field(False, description="Drawn evenly on a logarithmic scale.")

    @model_validator(mode="after")
    def _not_empty(self) -> Range:
        if self.low >= self.high:
            raise ValueError(f"low is {self.low} and high is {self.high}; low must be below high")
        if self.log and self.low <= 0:
            raise ValueError(f"low is {self.low}; on a logarithmic scale it must be above 0")
        if self.log and self.step is not None:
            raise ValueError("has both step and log; remove one of the two")
        if self.step is not None:
            steps = (self.high - self.low) / self.step
            if steps < 1 or not math.isclose(steps, round(steps), rel_tol=1e-9):
                raise ValueError(f"steps of {self.step} do not lead from {self.low} to {self.high}")
        return self

    @property
    def ends(self) -> list[Any]:
        """The values by which it is checked."""
        return [self.low, self.high]

    @property
    def whole(self) -> bool:
        """Whether all that was said of it is whole numbers."""
        return all(isinstance(n, int) for n in (self.low, self.high, self.step or 1))


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class Choices:
    """One of several values: numbers, text, or whole entries of a spec.

    Beside a param: ``balance: Annotated[bool, kdzoo.Choices(choices=(True, False))] = ...``.
    """

    choices: tuple[Any, ...] = Field(min_length=1, description="The values.")

    @model_validator(mode="after")
    def _all_different(self) -> Choices:
        for i, value in enumerate(self.choices):
            if value in self.choices[:i]:
                raise ValueError(f"has {value!r} twice")
        return self

    @property
    def ends(self) -> list[Any]:
        """The values by which it is checked: all."""
        return list(self.choices)


Domain = Range | Choices

RANGE = TypeAdapter(Range)
CHOICES = TypeAdapter(Choices)
