"""From what a data source answers to an image set on the device."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from kdzoo.data.images import ImageSet
from kdzoo.data.memory import MemorySet
from kdzoo.errors import DataError
from kdzoo.extend.contracts import ImageData

__all__ = ["load_images"]


def load_images(source: str, answer: ImageData, device: torch.device) -> ImageSet:
    """Check what a data source delivered, and bring it to the device.

    Args:
        source: the source's name, for errors.
        answer: what it delivered.
        device: where the views are wanted.

    Raises:
        DataError: the images or labels contradict each other.
    """
    _check(source, answer)
    channels, height, width = answer.train_images.shape[1:]
    return MemorySet(
        source=source,
        input_shape=(channels, height, width),
        train_targets=answer.train_targets,
        test_targets=answer.test_targets,
        classes=tuple(answer.classes),
        mean=tuple(float(value) for value in answer.mean),
        std=tuple(float(value) for value in answer.std),
        crop=answer.crop,
        flip=answer.flip,
        fingerprint=_fingerprint(answer),
        device=device,
        train_pixels=_channels_last(answer.train_images, device),
        test_pixels=_channels_last(answer.test_images, device),
    )


def _channels_last(images: Tensor, device: torch.device) -> Tensor:
    return images.to(device).permute(0, 2, 3, 1).contiguous()


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
