"""An image set as the training step sees it: split, and iterated over in batches."""

from __future__ import annotations

import contextlib
import copy
import functools
from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdzoo.data.augment import Augmentation
from kdzoo.data.hashing import hashed
from kdzoo.errors import DataError
from kdzoo.seeds import stream

__all__ = ["ImageSet", "Images", "Split", "View", "own_rows"]


@dataclass(frozen=True)
class View:
    """What one step sees: ``inputs`` (B, channels, height, width) in [0, 1], with the channels last
    in memory, ``targets`` (B,) and ``indices`` (B,)."""

    inputs: Tensor
    targets: Tensor
    indices: Tensor

    @classmethod
    def of(cls, pixels: Tensor, targets: Tensor, indices: Tensor) -> View:
        """A view of ``pixels`` (B, channels, height, width), uint8."""
        return cls(pixels.float() / 255, targets, indices)


class Split(ABC):
    """A part of an image set.

    Args:
        targets: (N,), on the device.
        indices: (N,), its rows in the source's training (or test) set, on the device.
    """

    def __init__(self, targets: Tensor, indices: Tensor) -> None:
        self.targets = targets
        self.indices = indices

    def __len__(self) -> int:
        return len(self.targets)

    def counts(self, num_classes: int) -> tuple[int, ...] | None:
        """How many images each class has; ``None`` where there are none at all."""
        if not len(self):
            return None
        return tuple(torch.bincount(self.targets, minlength=num_classes).tolist())

    def sample(self, count: int) -> Split:
        """At most so many of its images, drawn at random but always the same; in their order."""
        drawn = torch.randperm(len(self), generator=torch.Generator().manual_seed(0))[:count]
        positions = drawn.sort().values.to(self.indices.device)
        sample = copy.copy(self)
        sample.targets, sample.indices = self.targets[positions], self.indices[positions]
        return sample

    def read(self) -> None:  # noqa: B027  (most have been read when a split is made)
        """Read each image once, where that has not been done: whoever needs them in hours should
        hear of a broken one now.

        Raises:
            DataError: one cannot be read.
        """

    @abstractmethod
    def plain(self, chunk: int = 512) -> Generator[View, None, None]:
        """All images without augmentation, in their own order, up to ``chunk`` of them a view."""

    @abstractmethod
    def augmented(
        self, order: Tensor, sizes: Sequence[int], epoch: int
    ) -> Generator[View, None, None]:
        """Random views, a pure function of the data seed, the epoch and each image's index.

        Args:
            order: positions in this split, (sum(sizes),), on the CPU.
            sizes: how many of them each view holds.
            epoch: each epoch has its own views.
        """


@dataclass(frozen=True)
class Images:
    """An image set on one device.

    Attributes:
        train: what is trained on.
        validation: what decides, held out of the training set; may be empty.
        test: what is read once, at the end.
        input_shape: (channels, height, width) of the views.
        classes: the class names.
        mean: each channel's mean, for the networks' input normalization.
        std: each channel's standard deviation.
        augmentation: the random views of training images.
        rows: the size of the source's training set; all training indices are below it.
        fingerprint: a hash of everything that the source delivered.
    """

    train: Split
    validation: Split
    test: Split
    input_shape: tuple[int, int, int]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation
    rows: int
    fingerprint: str

    def row_targets(self) -> Tensor:
        """(rows,), the class of each row of the source's training set; -1 where it is held out."""
        targets = torch.full((self.rows,), -1)
        targets[self.train.indices.cpu()] = self.train.targets.cpu()
        return targets

    @functools.cached_property
    def example(self) -> View:
        """Two training images, not augmented."""
        with contextlib.closing(self.train.plain(2)) as views:
            return next(views)

    def sizes(self, batch_size: int) -> list[int]:
        """How many images each step of an epoch has.

        The last batch is short where the sizes do not divide. A single left-over image joins the
        batch before it, since batch norm cannot train on one.
        """
        full, rest = divmod(len(self.train), batch_size)
        steps = full + (rest > 1) if full else 1
        return [batch_size] * (steps - 1) + [len(self.train) - batch_size * (steps - 1)]

    def epoch(
        self, number: int, batch_size: int, seed: int, rank: int = 0, processes: int = 1
    ) -> Generator[View, None, None]:
        """Augmented training batches in the order of one epoch.

        Args:
            number: the epoch, counted from 0; order and views are functions of it.
            batch_size: images a batch.
            seed: the run's seed.
            rank: of several processes, the one that these views are for.
            processes: how many there are; each gets its own rows of every batch.
        """
        generator = torch.Generator().manual_seed(stream(seed, "order", number))
        order = torch.randperm(len(self.train), generator=generator)
        batches = torch.split(order, self.sizes(batch_size))
        own = [batch[own_rows(len(batch), rank, processes)] for batch in batches]
        return self.train.augmented(torch.cat(own), [len(rows) for rows in own], number)


@dataclass(frozen=True)
class ImageSet(ABC):
    """All that a data source delivered, on one device and not yet split: one for all the splits and
    seeds of a command.

    Attributes:
        source: the source's name, for errors.
        input_shape: (channels, height, width) of the views.
        train_targets: (N,), on the CPU.
        test_targets: (M,), on the CPU.
        classes: the class names.
        mean: each channel's mean.
        std: each channel's standard deviation.
        crop: how far random crops are off centre unless the spec says otherwise.
        flip: whether random views are mirrored unless the spec says otherwise.
        fingerprint: a hash of everything that the source delivered.
    """

    source: str
    input_shape: tuple[int, int, int]
    train_targets: Tensor
    test_targets: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: int
    flip: bool
    fingerprint: str

    def prepare(
        self,
        *,
        validation: float,
        split_seed: int,
        augment_seed: int,
        crop: int | None = None,
        flip: bool | None = None,
    ) -> Images:
        """Split the set.

        Args:
            validation: the share of each class's training images to hold out.
            split_seed: which images those are.
            augment_seed: the seed of the random views.
            crop: how far they may be off centre; ``None`` for what the data says.
            flip: whether they are mirrored; ``None`` for what the data says.

        Raises:
            DataError: the crop is wider than the images.
        """
        augmentation = Augmentation(
            seed=augment_seed,
            crop=self.crop if crop is None else crop,
            flip=self.flip if flip is None else flip,
        )
        if augmentation.crop >= min(self.input_shape[1:]):
            raise DataError(
                f'data "{self.source}": crop is {augmentation.crop} pixels, which can miss an '
                f"image of {self.input_shape[1:]} altogether"
            )
        held_out = _held_out(self.train_targets, validation, split_seed)
        return Images(
            train=self._train(torch.nonzero(~held_out).flatten(), augmentation),
            validation=self._train(torch.nonzero(held_out).flatten(), augmentation),
            test=self._test(augmentation),
            input_shape=self.input_shape,
            classes=self.classes,
            mean=self.mean,
            std=self.std,
            augmentation=augmentation,
            rows=len(self.train_targets),
            fingerprint=self.fingerprint,
        )

    @abstractmethod
    def _train(self, rows: Tensor, augmentation: Augmentation) -> Split:
        """These rows of the training set."""

    @abstractmethod
    def _test(self, augmentation: Augmentation) -> Split:
        """The test set."""


def own_rows(size: int, rank: int, processes: int) -> slice:
    """The rows of a batch that one of several processes has: as many as each other, or one more."""
    return slice(size * rank // processes, size * (rank + 1) // processes)


def _held_out(targets: Tensor, share: float, seed: int) -> Tensor:
    """(N,) bool: the same share of each class, at least one image where the share is not 0."""
    held_out = torch.zeros(len(targets), dtype=torch.bool)
    if share == 0:
        return held_out
    draws = hashed(stream(seed, "validation"), torch.arange(len(targets)))
    for label in range(int(targets.max()) + 1):
        rows = torch.nonzero(targets == label).flatten()
        count = min(max(round(share * len(rows)), 1), len(rows) - 1)
        held_out[rows[draws[rows].argsort(stable=True)[:count]]] = True
    return held_out
