"""Between the tokens of a transformer and the maps of a convolutional network."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

import kdzoo
from kdzoo_plugins.adapters._shapes import Shape, misfit

__all__ = ["Tokens"]


class Tokens(kdzoo.Adapter):
    """Tokens (N, D) to a map (channels, height, width), a map to tokens, or tokens to other tokens.

    Patch tokens are laid out as the square map that they came from; leading class tokens, which
    have no place there, are left out. Where the teacher has class tokens, they are compared with
    the mean over the map (or with the student's own class tokens, if it has as many). Each side of
    the map is averaged where it shrinks, and then interpolated (bilinear) where it grows; a linear
    layer brings the map to the teacher's width.
    """

    name = "tokens"

    def setup(self, student_shape: Shape, teacher_shape: Shape) -> None:
        """See :meth:`kdzoo.Adapter.setup`."""
        shapes = (student_shape, teacher_shape)
        if not all(len(shape) in (2, 3) for shape in shapes):
            misfit(*shapes, 'is for tokens (N, D) and maps; use "linear" for vectors')
        if all(len(shape) == 3 for shape in shapes):
            misfit(*shapes, 'is for tokens on one side at least; use "conv1x1" or "regressor"')
        self.from_tokens, self.to_tokens = (len(shape) == 2 for shape in shapes)
        self.prefix, self.grid = _layout(student_shape)
        self.teacher_prefix, self.teacher_grid = _layout(teacher_shape)
        widths = [shape[1] if len(shape) == 2 else shape[0] for shape in shapes]
        self.linear = nn.Linear(widths[0], widths[1])

    def forward(self, feature: Tensor) -> Tensor:
        """See :meth:`kdzoo.Adapter.forward`."""
        if self.from_tokens:
            classes, patches = feature[:, : self.prefix], feature[:, self.prefix :]
            maps = patches.transpose(1, 2).reshape(len(patches), -1, *self.grid)
        else:
            classes, maps = feature.new_zeros(len(feature), 0, feature.shape[1]), feature
        least = min(self.grid[0], self.teacher_grid[0]), min(self.grid[1], self.teacher_grid[1])
        if least != self.grid:
            maps = functional.adaptive_avg_pool2d(maps, least)
        if least != self.teacher_grid:
            maps = functional.interpolate(maps, self.teacher_grid, mode="bilinear")
        if not self.to_tokens:
            mapped: Tensor = self.linear(maps.movedim(1, -1))
            return mapped.movedim(-1, 1)
        patches = maps.flatten(2).transpose(1, 2)
        if classes.shape[1] != self.teacher_prefix:
            classes = patches.mean(1, keepdim=True).expand(-1, self.teacher_prefix, -1)
        tokens: Tensor = self.linear(torch.cat([classes, patches], 1))
        return tokens


def _layout(shape: Shape) -> tuple[int, tuple[int, int]]:
    """How many class tokens come first, and the height and width of the map behind them."""
    if len(shape) == 3:
        return 0, (shape[1], shape[2])
    side = math.isqrt(shape[0])
    return shape[0] - side * side, (side, side)


@kdzoo.hookimpl
def kdzoo_adapters() -> list[type[kdzoo.Adapter]]:
    """See :mod:`kdzoo.extend.hookspecs`."""
    return [Tokens]
