"""A model together with the input normalization that belongs to it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from kdzoo.errors import SpecError

__all__ = ["Network", "undisturbed"]


class Network(nn.Module):
    """Takes images as they are, floats in [0, 1], and normalizes them for its model.

    Teacher and student may be normalized differently, and who loads a student need not know how.

    Args:
        model: normalized images (B, channels, height, width) to logits (B, C).
        mean: each channel's mean, in units of [0, 1].
        std: each channel's standard deviation, in units of [0, 1].

    Attributes:
        model: the bare model; published weights have its names, and so have the paths of layers
            (``layer1``, not ``model.layer1``).
        channels_last: whether images enter the model with their channels last in memory.
        classes: the names of the C classes, in the order of the logits; empty where nobody said.
        input_shape: (channels, height, width) that it was made for; ``None`` where nobody said.
        correction: corrects the logits (B, C); ``None`` where they are the model's own.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        self.channels_last = False
        self.classes: tuple[str, ...] = ()
        self.input_shape: tuple[int, int, int] | None = None
        self.correction: nn.Module | None = None
        # Part of the description, not of the learnt state: they stay out of the state dict.
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, channels, height, width) in [0, 1] to logits (B, C).

        Raises:
            SpecError: the images are not of floats, or they are no batch.
        """
        if images.dim() != 4:
            raise SpecError(
                f"images are {tuple(images.shape)}; they must be (B, channels, height, width)"
            )
        if not images.is_floating_point():
            raise SpecError(
                f"images are {images.dtype}; they must be floats in [0, 1], such as `images / 255`"
            )
        images = (images - self.mean) / self.std
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        logits: Tensor = self.model(images.contiguous(memory_format=layout))
        return logits if self.correction is None else self.correction(logits)

    def prefer_channels_last(self, example: Tensor) -> None:
        """Lay the channels last in memory, where convolutions are faster, if the model can.

        A model cannot that takes feature maps apart with ``view``; it stays as it was.

        Args:
            example: (B, channels, height, width), a few images to try it on.
        """
        self.channels_last = True
        self.model.to(memory_format=torch.channels_last)
        try:
            with undisturbed(self, example):
                for training in (True, False):  # some have parts that run in training alone
                    self.train(training)
                    self(example)
        except Exception:  # whatever it is, the probe that follows says it better
            self.channels_last = False
            self.model.to(memory_format=torch.contiguous_format)


@contextlib.contextmanager
def undisturbed(network: nn.Module, example: Tensor) -> Iterator[None]:
    """In here a network may be tried in any mode, without gradients: its modes, its buffers and the
    random state are put back."""
    modes = {module: module.training for module in network.modules()}
    buffers = {buffer: buffer.clone() for buffer in network.buffers()}
    devices = [example.device] if example.is_cuda else []
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode
            for buffer, value in buffers.items():
                buffer.copy_(value)
