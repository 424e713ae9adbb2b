"""Average pooling to the teacher's size."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

import kdzoo
from kdzoo_plugins.adapters._shapes import Shape, misfit, need_maps

__all__ = ["Pool"]


class Pool(kdzoo.Adapter):
    """Adaptive average pooling of a larger map; the channels must be equal already."""

    name = "pool"

    def setup(self, student_shape: Shape, teacher_shape: Shape) -> None:
        """See :meth:`kdzoo.Adapter.setup`."""
        student, teacher = need_maps(student_shape, teacher_shape)
        if student[0] != teacher[0]:
            misfit(student, teacher, 'keeps the channels; use "conv1x1" or "regressor"')
        if student[1] < teacher[1] or student[2] < teacher[2]:
            misfit(student, teacher, 'only makes maps smaller; use "regressor"')
        self.size = teacher[1:]

    def forward(self, feature: Tensor) -> Tensor:
        """See :meth:`kdzoo.Adapter.forward`."""
        return functional.adaptive_avg_pool2d(feature, self.size)


@kdzoo.hookimpl
def kdzoo_adapters() -> list[type[kdzoo.Adapter]]:
    """See :mod:`kdzoo.extend.hookspecs`."""
    return [Pool]
