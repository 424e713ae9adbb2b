"""How good a network is on images that it does not learn from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from kdzoo.data.images import Split
from kdzoo.training.correction import Correction

__all__ = ["Evaluation", "Ints", "confusion_of", "evaluate"]

Ints = npt.NDArray[np.int64]

_BINS = 15


@dataclass(frozen=True)
class Evaluation:
    """What a network answered to each of N images of C classes.

    Attributes:
        num_classes: C.
        targets: (N,), the classes.
        answers: (N,), the class with the highest logit.
        corrected: (N,), the same after the correction; ``None`` where there is none.
        correction: what corrects the logits; ``None`` where there is nothing that it could be
            fitted to.
        confidence: (N,), the probability of the answer.
        among_five: (N,), whether the class is among the five with the highest logits.
    """

    num_classes: int
    targets: Ints
    answers: Ints
    corrected: Ints | None
    correction: Correction | None
    confidence: npt.NDArray[np.float64]
    among_five: npt.NDArray[np.bool_]

    @property
    def accuracy(self) -> float:
        """The share of all images that is classified correctly."""
        return float(np.mean(self.answers == self.targets))

    @property
    def balanced_accuracy(self) -> float:
        """The mean over classes that have images of the share that is classified correctly."""
        known = self.images > 0
        return float((np.diagonal(self.confusion)[known] / self.images[known]).mean())

    @property
    def finite(self) -> bool:
        """Whether each answer has a probability: no logit is NaN or infinite."""
        return bool(np.isfinite(self.confidence).all())

    @property
    def images(self) -> Ints:
        """(C,), how many of them each class has."""
        return np.bincount(self.targets, minlength=self.num_classes)

    @property
    def top5(self) -> float | None:
        """The share of the images whose class is among the five highest; with five classes or
        fewer it says nothing, and is ``None``."""
        return float(self.among_five.mean()) if self.num_classes > 5 else None

    @property
    def confusion(self) -> Ints:
        """(C, C) counts: a row for each class, a column for each answer."""
        return confusion_of(self.targets, self.answers, self.num_classes)

    @property
    def corrected_confusion(self) -> Ints | None:
        """The same after the correction."""
        if self.corrected is None:
            return None
        return confusion_of(self.targets, self.corrected, self.num_classes)

    @property
    def calibration_error(self) -> float:
        """The expected calibration error of the answer's probability: over 15 bins of equal width,
        the mean distance between confidence and accuracy, weighted by the bins' images (Guo et al.,
        2017, equation 3). It is above 0 for a calibrated network too, by some tenths of a point
        with ten thousand images."""
        # Bins are open below and closed above, as there.
        bins = np.ceil(self.confidence * _BINS).astype(np.int64).clip(1, _BINS) - 1
        excess = self.confidence - (self.answers == self.targets)
        return float(np.abs(np.bincount(bins, excess, _BINS)).sum() / len(self.targets))


@torch.no_grad()
def evaluate(
    network: nn.Module, split: Split, num_classes: int, correction: Correction | None = None
) -> Evaluation:
    """Classify every image of a split, in eval mode; the network's mode is restored.

    Args:
        network: images to logits (B, C).
        split: the images; at least one.
        num_classes: C.
        correction: what corrects the logits, for :attr:`Evaluation.corrected`.
    """
    training = network.training
    network.eval()
    rows = []
    for view in split.plain():
        logits = network(view.inputs).float()
        five = logits.topk(min(5, num_classes), 1).indices
        answers = logits.argmax(1)
        columns = [
            view.targets,
            answers,
            answers if correction is None else correction(logits).argmax(1),
            (five == view.targets[:, None]).any(1),
            logits.softmax(1).amax(1),
        ]
        rows.append(torch.stack([column.double() for column in columns]))
    network.train(training)
    targets, answers, corrected, among_five, confidence = torch.cat(rows, 1).cpu().numpy()
    return Evaluation(
        num_classes=num_classes,
        targets=targets.astype(np.int64),
        answers=answers.astype(np.int64),
        corrected=None if correction is None else corrected.astype(np.int64),
        correction=correction,
        confidence=confidence,
        among_five=among_five.astype(np.bool_),
    )


def confusion_of(targets: Ints, answers: Ints, num_classes: int) -> Ints:
    """(C, C) counts out of classes (N,) and answers (N,): a row for each class."""
    counts = np.bincount(targets * num_classes + answers, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)
