"""What every component shares: a name and described, validated, immutable parameters."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

__all__ = ["Component", "Params"]


class Params(BaseModel):
    """Base class of a component's nested ``Params``.

    Immutable, strict about types, closed to unknown keys, without NaN and infinity. Sequences
    are tuples, and every field is described: ``Field(4.0, gt=0, description="...")``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


_Params = Params  # inside Component the plain name means the nested class


class Component:
    """Base class of everything a plugin adds.

    Attributes:
        kind: what it is, for messages and for the registry; set by kdzoo's base classes.
        engine_keys: the spec's own keys beside ``use`` in an entry of this kind. A component's
            ``Params`` may not have fields of these names.
        name: how a spec names it: letters, digits, dashes and underscores; lower case, unless the
            literature writes it otherwise.
        params: the instance's parameters, of the class's own ``Params``.
    """

    kind: ClassVar[str]
    engine_keys: ClassVar[frozenset[str]] = frozenset()
    name: ClassVar[str]

    class Params(_Params):
        """No parameters."""

    params: Any

    def __init__(self, params: _Params | None = None) -> None:
        self.params = type(self).Params() if params is None else params
