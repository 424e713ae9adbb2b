"""An image set that is held in memory, once for all splits."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdzoo.data.augment import Augmentation
from kdzoo.data.images import ImageSet, Split, View

__all__ = ["MemorySet"]


@dataclass(frozen=True)
class MemorySet(ImageSet):
    """Images on the device.

    Attributes:
        train_pixels: (N, height, width, channels), uint8, on the device.
        test_pixels: (M, height, width, channels), uint8, on the device.
    """

    train_pixels: Tensor
    test_pixels: Tensor

    def _train(self, rows: Tensor, augmentation: Augmentation) -> Split:
        return _MemorySplit(self.train_pixels, self.train_targets, rows, augmentation)

    def _test(self, augmentation: Augmentation) -> Split:
        rows = torch.arange(len(self.test_targets))
        return _MemorySplit(self.test_pixels, self.test_targets, rows, augmentation)


class _MemorySplit(Split):
    """Rows of images that other splits share: nothing is copied but the batches."""

    def __init__(
        self, pixels: Tensor, targets: Tensor, rows: Tensor, augmentation: Augmentation
    ) -> None:
        super().__init__(targets[rows].to(pixels.device), rows.to(pixels.device))
        self._pixels = pixels
        self._augmentation = augmentation

    def plain(self, chunk: int = 512) -> Generator[View, None, None]:
        for start in range(0, len(self), chunk):
            part = slice(start, start + chunk)
            indices = self.indices[part]
            yield View.of(self._images(indices), self.targets[part], indices)

    def augmented(
        self, order: Tensor, sizes: Sequence[int], epoch: int
    ) -> Generator[View, None, None]:
        if self.indices.is_cuda:  # from other memory the copy would be waited for
            order = torch.empty_like(order, pin_memory=True).copy_(order)
        order = order.to(self.indices.device, non_blocking=True)
        indices = self.indices[order]
        # Drawn for all batches at once: the hash is many small operations.
        parts = (self.targets[order], indices, self._augmentation.draw(indices, epoch))
        for targets, rows, draws in zip(
            *(torch.split(part, list(sizes)) for part in parts), strict=True
        ):
            yield View.of(self._augmentation.cut(self._images(rows), draws), targets, rows)

    def _images(self, rows: Tensor) -> Tensor:
        return self._pixels[rows].permute(0, 3, 1, 2)
