"""Logit offsets: what a network's accuracy per class is after its bias to some classes is gone.

Distillation moves decisions from one class to another. A class that lost accuracy only since the
network answers with it less often has not been learnt worse: an offset to its logit brings it back,
without any training. What remains after the correction is what the network cannot tell apart.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import optimize
from torch import Tensor, nn

from kdzoo.data.images import Split
from kdzoo.extend.contracts import Floats

__all__ = ["Correction", "fit_correction"]

_CHUNK = 4096  # rows that are in double precision at one time
_LEAST_SCALE = 1e-3


class Correction(nn.Module):
    """Corrected logits are ``scale * logits + offsets``.

    Args:
        scale: above 0.
        offsets: (C,), on the device.
    """

    offsets: Tensor

    def __init__(self, scale: float, offsets: Tensor) -> None:
        super().__init__()
        self.scale = scale
        self.register_buffer("offsets", offsets, persistent=False)  # no part of what was learnt

    def forward(self, logits: Tensor) -> Tensor:
        """(B, C) to (B, C)."""
        return self.scale * logits + self.offsets


@torch.no_grad()
def fit_correction(network: nn.Module, split: Split) -> Correction | None:
    """The scale and the offsets that make the labels of some images most probable.

    Bias-corrected temperature scaling (Alexandari et al., 2020): the cross entropy is convex in
    scale and offsets together. The scale is fitted too because the offsets of an overconfident
    network would be those of its few worst errors. A standard normal prior on each offset, and one
    on the scale around 1, keep both finite where a class has no images or all are classified
    correctly; it weighs as much as a handful of images.

    Args:
        network: images to logits (B, C); its mode is restored.
        split: images that the network has not learnt from. On those that it has it would find no
            error left to correct, and on test images it would learn what it is tested for.

    Returns:
        ``None`` where the split is empty: without validation images there is no honest correction.
    """
    if not len(split):
        return None
    training = network.training
    network.eval()
    views = [(network(view.inputs).float(), view.targets) for view in split.plain()]
    network.train(training)
    logits, targets = torch.cat([z for z, _ in views]), torch.cat([t for _, t in views])

    def loss(values: Floats) -> tuple[float, Floats]:
        scale, offsets = float(values[0]), torch.from_numpy(values[1:]).to(logits.device)
        total = logits.new_zeros((), dtype=torch.float64)
        slope = logits.new_zeros(1 + len(offsets), dtype=torch.float64)
        for first in range(0, len(targets), _CHUNK):
            rows, t = logits[first : first + _CHUNK].double(), targets[first : first + _CHUNK]
            log_probabilities = (scale * rows + offsets).log_softmax(1)
            total -= log_probabilities.gather(1, t[:, None]).sum()
            excess = log_probabilities.exp()
            excess.scatter_add_(1, t[:, None], -torch.ones_like(t[:, None], dtype=torch.float64))
            slope[0] += (excess * rows).sum()
            slope[1:] += excess.sum(0)
        away = values - start
        penalty = 0.5 * float(away @ away)
        return float(total) + penalty, slope.cpu().numpy() + away

    start = np.zeros(1 + logits.shape[1])
    start[0] = 1.0
    bounds = [(_LEAST_SCALE, None)] + [(None, None)] * logits.shape[1]
    found = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    return Correction(float(found[0]), torch.from_numpy(found[1:]).float().to(logits.device))
