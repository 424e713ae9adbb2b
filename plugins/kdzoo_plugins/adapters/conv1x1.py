"""A 1x1 convolution with batch norm."""

from __future__ import annotations

from torch import Tensor, nn

import kdzoo
from kdzoo_plugins.adapters._shapes import Shape, misfit, need_maps

__all__ = ["Conv1x1"]


class Conv1x1(kdzoo.Adapter):
    """A 1x1 convolution and batch norm; a larger map is average-pooled to the teacher's size."""

    name = "conv1x1"

    def setup(self, student_shape: Shape, teacher_shape: Shape) -> None:
        """See :meth:`kdzoo.Adapter.setup`."""
        student, teacher = need_maps(student_shape, teacher_shape)
        if student[1] < teacher[1] or student[2] < teacher[2]:
            misfit(student, teacher, 'only makes maps smaller; use "regressor"')
        # Pooled first: it is the same, and the convolution then has less to do.
        pool = [nn.AdaptiveAvgPool2d(teacher[1:])] if student[1:] != teacher[1:] else []
        self.layers = nn.Sequential(
            *pool,
            nn.Conv2d(student[0], teacher[0], 1, bias=False),
            nn.BatchNorm2d(teacher[0]),
        )

    def forward(self, feature: Tensor) -> Tensor:
        """See :meth:`kdzoo.Adapter.forward`."""
        mapped: Tensor = self.layers(feature)
        return mapped


@kdzoo.hookimpl
def kdzoo_adapters() -> list[type[kdzoo.Adapter]]:
    """See :mod:`kdzoo.extend.hookspecs`."""
    return [Conv1x1]
