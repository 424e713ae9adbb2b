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
            (B, channels, height, width), of the images' type.
        """
        batch, _, height, width = images.shape
        rows = torch.arange(height, device=images.device).expand(batch, -1)
        columns = torch.arange(width, device=images.device).expand(batch, -1)
        if self.crop:
            span = 2 * self.crop + 1
            images = functional.pad(images, [self.crop] * 4)
            rows = rows + hashed_below(span, self.seed, indices, epoch, _DOWN)[:, None]
            columns = columns + hashed_below(span, self.seed, indices, epoch, _RIGHT)[:, None]
        if self.flip:
            mirrored = hashed_below(2, self.seed, indices, epoch, _MIRROR).bool()[:, None]
            columns = torch.where(mirrored, columns.flip(1), columns)
        if not (self.crop or self.flip):
            return images
        every = torch.arange(batch, device=images.device)[:, None, None]
        # Indexing puts the channels last: (B, height, width, channels).
        views = images.permute(0, 2, 3, 1)[every, rows[:, :, None], columns[:, None, :]]
        return views.permute(0, 3, 1, 2).contiguous()
