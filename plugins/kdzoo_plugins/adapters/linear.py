"""A linear map of vectors."""

from __future__ import annotations

from torch import Tensor, nn

import kdzoo
from kdzoo_plugins.adapters._shapes import Shape, misfit

__all__ = ["Linear"]


class Linear(kdzoo.Adapter):
    """A linear map of the last dimension: of vectors (D,), or of as many tokens (N, D)."""

    name = "linear"

    class Params(kdzoo.Params):
        """What can be set."""

        bias: bool = kdzoo.Field(True, description="Whether a constant is added.")

    def setup(self, student_shape: Shape, teacher_shape: Shape) -> None:
        """See :meth:`kdzoo.Adapter.setup`."""
        if len(student_shape) > 2 or student_shape[:-1] != teacher_shape[:-1]:
            misfit(
                student_shape,
                teacher_shape,
                'maps vectors (D,), or tokens (N, D) of equal number; use "conv1x1" or "regressor" '
                'for maps, "tokens" between tokens and maps',
            )
        self.linear = nn.Linear(student_shape[-1], teacher_shape[-1], bias=self.params.bias)

    def forward(self, feature: Tensor) -> Tensor:
        """See :meth:`kdzoo.Adapter.forward`."""
        mapped: Tensor = self.linear(feature)
        return mapped


@kdzoo.hookimpl
def kdzoo_adapters() -> list[type[kdzoo.Adapter]]:
    """See :mod:`kdzoo.extend.hookspecs`."""
    return [Linear]
