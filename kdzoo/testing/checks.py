"""What a check is, and what can come of it."""

from __future__ import annotations

import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

import pydantic

from kdzoo.errors import SpecError
from kdzoo.extend.component import Component
from kdzoo.extend.isolation import TORCH_SETTINGS, changed_settings
from kdzoo.extend.registry import check_component

__all__ = [
    "Checks",
    "ContractError",
    "NotApplicable",
    "Result",
    "Status",
    "after",
    "require",
    "slow",
    "sometimes",
]

C = TypeVar("C", bound=Component)
_Check = TypeVar("_Check", bound=Callable[..., None])

Status = Literal["passed", "failed", "expected failure", "not applicable"]


class ContractError(AssertionError):
    """A component does not keep its contract; the message says what would be right."""


class NotApplicable(Exception):  # noqa: N818 (it is no error)
    """There is nothing in this component that the check could look at."""


@dataclass(frozen=True)
class Result:
    """What came of one check.

    Attributes:
        check: its name.
        status: ``passed``, ``failed``, ``expected failure`` or ``not applicable``.
        reason: why it is not ``passed``.
        cause: what was raised where it failed.
    """

    check: str
    status: Status
    reason: str = ""
    cause: BaseException | None = None


def require(holds: bool, otherwise: str) -> None:
    """The heart of a check.

    Raises:
        ContractError: it does not hold.
    """
    if not holds:
        raise ContractError(otherwise)


def slow(check: _Check) -> _Check:
    """Mark a check that takes seconds, and is not run unless it is asked for."""
    check.slow = True  # type: ignore[attr-defined]
    return check


def sometimes(check: _Check) -> _Check:
    """Mark a check that does not apply to every component, or on every machine."""
    check.sometimes = True  # type: ignore[attr-defined]
    return check


def after(*others: str) -> Callable[[_Check], _Check]:
    """Mark a check whose failure says nothing of its own where one of these others fails, which ask
    whether there are answers at all, and whether those of equal calls are equal."""

    def mark(check: _Check) -> _Check:
        check.after = others  # type: ignore[attr-defined]
        return check

    return mark


class Checks(ABC, Generic[C]):
    """The checks of one kind of component: its public methods, in the order of their definition.

    Each check gets an instance of its own.

    Args:
        component: the class that is checked.
        entry: what a spec says of it beside ``use``, or a function from ``folder`` to that.
        folder: a directory that is empty.
    """

    base: ClassVar[type[Component]]

    def __init__(
        self,
        component: type[C],
        entry: Mapping[str, Any] | Callable[[Path], Mapping[str, Any]],
        folder: Path,
    ) -> None:
        self.component = component
        self.folder = folder
        self.given_entry = entry
        self.entry = dict(entry(folder) if callable(entry) else entry)

    @classmethod
    def methods(cls) -> Iterator[tuple[str, Callable[..., None]]]:
        """The names of the checks, and what they do."""
        for owner in reversed(cls.__mro__):
            if issubclass(owner, Checks):
                for name, value in vars(owner).items():
                    if not name.startswith("_") and inspect.isfunction(value):
                        yield name, value

    def _make(self) -> C:
        """A new component, as a spec's entry would make it."""
        # Validated as JSON, as a spec is: there a list may stand for a tuple.
        try:
            params = self.component.Params.model_validate_json(json.dumps(dict(self.entry)))
        except pydantic.ValidationError as error:
            raise SpecError(
                f"entry: is not what {self.component.__name__} takes: {error}"
            ) from error
        return self.component(params)

    def contract(self) -> None:
        """Its class is one that kdzoo takes: named, documented, its parameters described."""
        check_component(self.component, self.base)
        self._make()

    @sometimes
    def leaves_torch_alone(self) -> None:
        """It leaves torch's settings as they are, whatever is done with it."""
        failed: Exception | None = None
        with changed_settings(TORCH_SETTINGS) as changed:
            try:
                self._use()
            except Exception as error:  # perhaps because of what it changed, and that comes first
                failed = error
        require(
            not changed,
            f"it changed {', '.join(changed)}; that holds for everybody, so leave it to whoever "
            "runs it",
        )
        if failed is not None:
            raise NotApplicable("it fails before that, as other checks tell") from failed

    @abstractmethod
    def _use(self) -> None:
        """All that the engine does with one that is sound."""
