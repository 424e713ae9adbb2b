"""Random crops and flips of whole batches, as a pure function of (seed, epoch, index)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from kdzoo.data.hashing import hashed_below

__all__ = ["Augmentation"]

_DOWN, _RIGHT, _MIRROR = range(3)  # the draws of one view


@dataclass(frozen=True)
class Augmentation:
    """Random crops after zero padding, and random mirroring.

    Attributes:
        seed: the data seed.
        crop: a crop lies up to this many pixels off centre, each way; 0 for none.
        flip: whether half of the views are mirrored left to right.
    """

    seed: int
    crop: int
    flip: bool

    def __call__(self, images: Tensor, indices: Tensor, epoch: int) -> Tensor:
        """One view of each image.

        Args:
            images: (B, channels, height, width).
            indices: (B,), the images' rows in the training set.
            epoch: each epoch has its own views.

        Returns:
            (B, channels, height, width), of the images' type, with the channels last in memory.
        """
        return self.cut(images, self.draw(indices, epoch))

    def draw(self, indices: Tensor, epoch: int) -> Tensor:
        """(B, 3), int64: how far down and right each view lies, and whether it is mirrored."""
        span = 2 * self.crop + 1
        draws = ((span, _DOWN), (span, _RIGHT), (2 if self.flip else 1, _MIRROR))
        return torch.stack([hashed_below(n, self.seed, indices, epoch, k) for n, k in draws], 1)

    def cut(self, images: Tensor, draws: Tensor) -> Tensor:
        """The views that were drawn; see :meth:`__call__`."""
        if not (self.crop or self.flip):
            return images.contiguous(memory_format=torch.channels_last)
        batch, channels, height, width = images.shape
        down, right, mirrored = draws[:, :, None].unbind(1)
        rows = torch.arange(height, device=images.device) + down
        columns = torch.arange(width, device=images.device)
        columns = torch.where(mirrored.bool(), columns.flip(0), columns) + right
        padded = functional.pad(images, [self.crop] * 4).permute(0, 2, 3, 1)
        first = torch.arange(batch, device=images.device)[:, None, None] * padded.shape[1]
        pixels = (first + rows[:, :, None]) * padded.shape[2] + columns[:, None, :]
        # One flat index: several at once take three times as long.
        views = padded.reshape(-1, channels).index_select(0, pixels.flatten())
        return views.view(batch, height, width, channels).permute(0, 3, 1, 2)
