"""A model together with the input normalization that belongs to it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["Network"]


class Network(nn.Module):
    """Takes images as they are, floats in [0, 1], and normalizes them for its model.

    Teacher and student may be normalized differently, and who loads a student need not know how.

    Args:
        model: normalized images (B, channels, height, width) to logits (B, C).
        mean: each channel's mean.
        std: each channel's standard deviation.

    Attributes:
        model: the bare model; published weights have its names.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        # Part of the description, not of the learnt state: they stay out of the state dict.
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, channels, height, width) in [0, 1] to logits (B, C)."""
        logits: Tensor = self.model((images - self.mean) / self.std)
        return logits
