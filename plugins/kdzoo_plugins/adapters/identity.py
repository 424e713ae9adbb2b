"""No adapter at all."""

from __future__ import annotations

from torch import Tensor

import kdzoo
from kdzoo_plugins.adapters._shapes import Shape, misfit

__all__ = ["Identity"]


class Identity(kdzoo.Adapter):
    """Takes the feature as it is; both shapes must be equal."""

    name = "identity"

    def setup(self, student_shape: Shape, teacher_shape: Shape) -> None:
        """See :meth:`kdzoo.Adapter.setup`."""
        if student_shape != teacher_shape:
            misfit(student_shape, teacher_shape, "changes nothing; name another adapter")

    def forward(self, feature: Tensor) -> Tensor:
        """See :meth:`kdzoo.Adapter.forward`."""
        return feature


@kdzoo.hookimpl
def kdzoo_adapters() -> list[type[kdzoo.Adapter]]:
    """See :mod:`kdzoo.extend.hookspecs`."""
    return [Identity]
