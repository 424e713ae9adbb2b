"""A network's outputs as rows of memory, one an image, the same in any company."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdzoo.extend.contracts import Layer, Outputs

__all__ = ["RowLayout", "in_chunks"]


@dataclass(frozen=True)
class RowLayout:
    """How one image's part of a tensor lies in memory.

    The order of its dimensions there counts too: what a loss sums up in another order differs in
    the last bits.

    Attributes:
        dtype: of its elements.
        shape: its shape, without the batch.
        strides: how many elements lie between neighbours, without the batch.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> RowLayout:
        """The layout of a tensor that :func:`in_chunks` answered."""
        return cls(tensor.dtype, tuple(tensor.shape[1:]), tensor.stride()[1:])

    @property
    def size(self) -> int:
        """How many elements an image has."""
        return torch.Size(self.shape).numel()

    def flat(self, tensor: Tensor) -> Tensor:
        """(B, size), the memory of a tensor (B, *shape) with this layout."""
        return tensor.as_strided((len(tensor), self.size), (self.size, 1))

    def restored(self, flat: Tensor) -> Tensor:
        """(B, *shape) out of (B, size): what :meth:`flat` was given."""
        return flat.as_strided((len(flat), *self.shape), (self.size, *self.strides))


def in_chunks(network: Callable[[Tensor], Outputs], inputs: Tensor, chunk: int) -> Outputs:
    """What a frozen network answers to a batch, computed in chunks of one size.

    The last digits of an answer depend on how many images are computed together: so it is always as
    many, and the last chunk is filled up.

    Args:
        network: images to outputs, in eval mode.
        inputs: (B, channels, height, width).
        chunk: images at a time.

    Returns:
        Outputs whose tensors fill their memory without gaps, image by image.
    """
    count = len(inputs)
    if missing := -count % chunk:
        inputs = torch.cat([inputs, inputs[:1].expand(missing, *inputs.shape[1:])])
    parts = [network(part) for part in torch.split(inputs, chunk)]
    first: dict[Layer, Tensor] = dict(parts[0].features)
    features = {layer: _joined([part.features[layer] for part in parts], count) for layer in first}
    return Outputs(_joined([part.logits for part in parts], count), features)


def _joined(parts: Sequence[Tensor], count: int) -> Tensor:
    """The first ``count`` rows of some tensors."""
    parts = [part if _dense(part) else part.contiguous() for part in parts]
    if len(parts) == 1:
        return parts[0][:count]
    layout = RowLayout.of(parts[0])
    return layout.restored(torch.cat([layout.flat(part) for part in parts])[:count])


def _dense(tensor: Tensor) -> bool:
    """Whether each image's elements lie together, and the images one after the other."""
    layout = RowLayout.of(tensor)
    expected = 1
    for stride, length in sorted(zip(layout.strides, layout.shape, strict=True)):
        if length != 1:
            if stride != expected:
                return False
            expected *= length
    return tensor.stride(0) == layout.size
