"""An image set in memory, split and ready to be iterated over."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from kdzoo.data.augment import Augmentation
from kdzoo.data.hashing import hashed
from kdzoo.errors import DataError
from kdzoo.extend.contracts import ImageData
from kdzoo.seeds import stream

__all__ = ["Images", "Split", "View", "prepare"]


@dataclass(frozen=True)
class View:
    """What one step sees: ``inputs`` (B, channels, height, width) in [0, 1], ``targets`` (B,) and
    ``indices`` (B,)."""

    inputs: Tensor
    targets: Tensor
    indices: Tensor


@dataclass(frozen=True)
class Split:
    """A part of an image set: ``images`` (N, ...) uint8, ``targets`` (N,), ``indices`` (N,) its
    rows in the source's training (or test) set."""

    images: Tensor
    targets: Tensor
    indices: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def plain(self, chunk: int = 512) -> Iterator[View]:
        """All images as they are, in their own order."""
        for start in range(0, len(self), chunk):
            part = slice(start, start + chunk)
            yield View(_floats(self.images[part]), self.targets[part], self.indices[part])


@dataclass(frozen=True)
class Images:
    """An image set on one device.

    Attributes:
        train: what is trained on.
        validation: what decides, held out of the training set; may be empty.
        test: what is read once, at the end.
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
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation
    rows: int
    fingerprint: str

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    def row_targets(self) -> Tensor:
        """(rows,), the class of each row of the source's training set; -1 where it is held out."""
        targets = torch.full((self.rows,), -1)
        targets[self.train.indices.cpu()] = self.train.targets.cpu()
        return targets

    def steps(self, batch_size: int) -> int:
        """How many steps an epoch has."""
        full, rest = divmod(len(self.train), batch_size)
        return full + (rest > 1) if full else 1

    def epoch(self, number: int, batch_size: int, seed: int) -> Iterator[View]:
        """Augmented training batches in the order of one epoch.

        The last batch is short where the sizes do not divide. A single left-over image joins the
        batch before it, since batch norm cannot train on one.

        Args:
            number: the epoch, counted from 0; order and views are functions of it.
            batch_size: images a batch.
            seed: the run's seed.
        """
        generator = torch.Generator().manual_seed(stream(seed, "order", number))
        order = torch.randperm(len(self.train), generator=generator).to(self.train.images.device)
        steps = self.steps(batch_size)
        for step in range(steps):
            end = (step + 1) * batch_size if step + 1 < steps else len(order)
            rows = order[step * batch_size : end]
            indices = self.train.indices[rows]
            views = self.augmentation(self.train.images[rows], indices, number)
            yield View(_floats(views), self.train.targets[rows], indices)


def prepare(
    source: str,
    data: ImageData,
    *,
    validation: float,
    split_seed: int,
    augment_seed: int,
    crop: int | None,
    flip: bool | None,
    device: torch.device,
) -> Images:
    """Check what a data source delivered, split it, and bring it to the device.

    Args:
        source: the source's name, for errors.
        data: what it delivered.
        validation: the share of each class's training images to hold out.
        split_seed: which images those are.
        augment_seed: the seed of the random views.
        crop: how far they may be off centre; ``None`` for what the data says.
        flip: whether they are mirrored; ``None`` for what the data says.
        device: where the images shall live.

    Raises:
        DataError: the images or labels contradict each other.
    """
    _check(source, data)
    augmentation = Augmentation(
        seed=augment_seed,
        crop=data.crop if crop is None else crop,
        flip=data.flip if flip is None else flip,
    )
    if augmentation.crop >= min(data.train_images.shape[2:]):
        raise DataError(
            f'data "{source}": crop is {augmentation.crop} pixels, which can miss an image of '
            f"{tuple(data.train_images.shape[2:])} altogether"
        )
    held_out = _validation_rows(data.train_targets, validation, split_seed)
    rows = torch.arange(len(data.train_targets))

    def split(images: Tensor, targets: Tensor, rows: Tensor) -> Split:
        return Split(images[rows].to(device), targets[rows].to(device), rows.to(device))

    return Images(
        train=split(data.train_images, data.train_targets, rows[~held_out]),
        validation=split(data.train_images, data.train_targets, rows[held_out]),
        test=split(data.test_images, data.test_targets, torch.arange(len(data.test_targets))),
        classes=tuple(data.classes),
        mean=tuple(float(value) for value in data.mean),
        std=tuple(float(value) for value in data.std),
        augmentation=augmentation,
        rows=len(rows),
        fingerprint=_fingerprint(data),
    )


def _floats(images: Tensor) -> Tensor:
    return images.float() / 255


def _validation_rows(targets: Tensor, share: float, seed: int) -> Tensor:
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


def _fingerprint(data: ImageData) -> str:
    digest = hashlib.sha256()
    for tensor in (data.train_images, data.train_targets, data.test_images, data.test_targets):
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.contiguous().numpy().data)
    digest.update(repr((data.classes, data.mean, data.std)).encode())
    return digest.hexdigest()


def _check(source: str, data: ImageData) -> None:
    def fail(message: str) -> None:
        raise DataError(f'data "{source}": {message}')

    if not isinstance(data, ImageData):
        fail(f"load() answered {type(data).__name__}, not kdzoo.ImageData")
    count = len(data.classes)
    if not all(isinstance(name, str) for name in data.classes):
        fail("the class names must be text")
    if count < 2:
        fail(f"has {count} classes; at least 2 are needed")
    if len(set(data.classes)) < count:
        fail("two classes have the same name")
    for name, images, targets in (
        ("train", data.train_images, data.train_targets),
        ("test", data.test_images, data.test_targets),
    ):
        if not (isinstance(images, Tensor) and isinstance(targets, Tensor)):
            fail(f"{name}_images and {name}_targets must be tensors, not {type(images).__name__}")
        if images.dtype != torch.uint8 or images.ndim != 4:
            fail(
                f"{name}_images is {images.dtype} of shape {tuple(images.shape)}; "
                "it must be uint8 (N, channels, height, width)"
            )
        if images.shape[1:] != data.train_images.shape[1:]:
            fail(
                f"{name}_images are {tuple(images.shape[1:])}, "
                f"but train_images are {tuple(data.train_images.shape[1:])}"
            )
        if targets.dtype != torch.int64 or targets.shape != images.shape[:1]:
            fail(
                f"{name}_targets is {targets.dtype} of shape {tuple(targets.shape)}; "
                f"it must be int64 ({len(images)},)"
            )
        if not len(targets):
            fail(f"has no {name} images")
        if int(targets.min()) < 0 or int(targets.max()) >= count:
            fail(f"{name}_targets has a class outside 0 to {count - 1}")
    for label, images_of_class in enumerate(data.train_targets.bincount(minlength=count).tolist()):
        if images_of_class < 2:
            fail(
                f'class "{data.classes[label]}" has {images_of_class} training images; 2 are needed'
            )
    for name, values in (("mean", data.mean), ("std", data.std)):
        channels = data.train_images.shape[1]
        if len(values) != channels:
            fail(f"{name} has {len(values)} numbers for {channels} channels")
        if not all(math.isfinite(value) for value in values):
            fail(f"{name} has a number that is not finite")
    if min(data.std) <= 0:
        fail("std has a number that is not above 0")
