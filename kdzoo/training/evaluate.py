"""How good a network is on images that it does not learn from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from kdzoo.data.images import Split

__all__ = ["Evaluation", "evaluate"]


@dataclass(frozen=True)
class Evaluation:
    """Counts per class: ``correct`` (C,) of ``total`` (C,)."""

    correct: npt.NDArray[np.int64]
    total: npt.NDArray[np.int64]

    @property
    def accuracy(self) -> float:
        """The share of all images that is classified correctly."""
        return float(self.correct.sum() / self.total.sum())


@torch.no_grad()
def evaluate(network: nn.Module, split: Split, num_classes: int) -> Evaluation:
    """Classify every image of a split, in eval mode; the network's mode is restored."""
    training = network.training
    network.eval()
    counts = torch.zeros(2, num_classes, dtype=torch.int64, device=split.targets.device)
    for view in split.plain():
        right = network(view.inputs).argmax(1) == view.targets
        counts[0] += view.targets[right].bincount(minlength=num_classes)
        counts[1] += view.targets.bincount(minlength=num_classes)
    network.train(training)
    correct, total = counts.cpu().numpy()
    return Evaluation(correct, total)
