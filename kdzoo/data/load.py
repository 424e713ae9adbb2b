"""From what a data source answers to an image set on the device."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdzoo.data.cache import Kept, keep, kept
from kdzoo.data.decode import Decoder, decode_all
from kdzoo.data.images import ImageSet
from kdzoo.data.memory import MemorySet
from kdzoo.data.streamed import StreamedSet
from kdzoo.errors import DataError
from kdzoo.extend.contracts import ImageData, ImageFiles, ImageList
from kdzoo.words import few

__all__ = ["load_images"]

log = logging.getLogger("kdzoo")

_DECODING = 1  # a part of each version: another number makes stale what was kept before
_IMAGENET = {  # mean and standard deviation by the number of channels
    1: ((0.449,), (0.226,)),
    3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def load_images(
    source: str,
    answer: ImageData | ImageFiles,
    device: torch.device,
    *,
    cache: Path,
    workers: int | None = None,
) -> ImageSet:
    """Check what a data source delivered, read what it left to read, and bring it to the device.

    Args:
        source: the source's name, for errors.
        answer: what it delivered.
        device: where the views are wanted.
        cache: the file in which decoded images are kept.
        workers: how many processes read images that are not held in memory; ``None`` for one a
            core, up to 8.

    Raises:
        DataError: the images or labels contradict each other, or an image cannot be read.
    """
    images = _loaded(source, answer, device, cache, workers)
    tested = images.test_targets.bincount(minlength=len(images.classes))
    if absent := [images.classes[label] for label in (tested == 0).nonzero().flatten().tolist()]:
        log.warning(
            'data "%s": there are no test images of %s; nothing can be said about them',
            source,
            few(absent),
        )
    return images


def _loaded(
    source: str,
    answer: ImageData | ImageFiles,
    device: torch.device,
    cache: Path,
    workers: int | None,
) -> ImageSet:
    if isinstance(answer, ImageData):
        _check_data(source, answer)
        return _in_memory(source, answer, _delivered(answer), device)
    if not isinstance(answer, ImageFiles):
        kinds = "kdzoo.ImageData or kdzoo.ImageFiles"
        raise DataError(f'data "{source}": load() answered {type(answer).__name__}, not {kinds}')
    _check_files(source, answer)
    decoder = Decoder.of(answer)
    count = len(answer.train.targets) + len(answer.test.targets)
    size = count * math.prod(decoder.shape)
    if size <= answer.memory_gb * 1e9:
        held = _kept_or_decoded(source, answer, decoder, cache)
        return _in_memory(source, answer, held, device)
    log.info(
        'data "%s": %.2g GB decoded are more than memory_gb (%g): read while training',
        source,
        size / 1e9,
        answer.memory_gb,
    )
    return _streamed(source, answer, decoder, device, workers)


@dataclass(frozen=True)
class _Held:
    """Decoded images (N, height, width, channels), uint8, with their labels."""

    train: Tensor
    train_targets: Tensor
    test: Tensor
    test_targets: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        parts = ((self.train, self.train_targets), (self.test, self.test_targets))
        for pixels, targets in parts:
            count, height, width, channels = pixels.shape
            digest.update(str((count, channels, height, width)).encode())
            digest.update(pixels.numpy().data)
            digest.update(str(tuple(targets.shape)).encode())
            digest.update(targets.contiguous().numpy().data)
        digest.update(repr((self.classes, self.mean, self.std)).encode())
        return digest.hexdigest()


def _in_memory(
    source: str, answer: ImageData | ImageFiles, held: _Held, device: torch.device
) -> ImageSet:
    _, height, width, channels = held.train.shape
    _check_statistics(source, channels, held.mean, held.std)
    return MemorySet(
        source=source,
        input_shape=(channels, height, width),
        train_targets=held.train_targets,
        test_targets=held.test_targets,
        classes=held.classes,
        mean=held.mean,
        std=held.std,
        crop=_crop(answer.crop, height, width),
        flip=answer.flip,
        fingerprint=held.fingerprint(),
        train_pixels=held.train.to(device),
        test_pixels=held.test.to(device),
    )


def _streamed(
    source: str,
    files: ImageFiles,
    decoder: Decoder,
    device: torch.device,
    workers: int | None,
) -> ImageSet:
    height, width, channels = decoder.shape
    usual_mean, usual_std = _IMAGENET[channels]
    mean = _numbers(usual_mean if files.mean is None else files.mean)
    std = _numbers(usual_std if files.std is None else files.std)
    _check_statistics(source, channels, mean, std)
    digest = hashlib.sha256()
    for images in (files.train, files.test):
        digest.update(images.fingerprint.encode())
        digest.update(images.targets.contiguous().numpy().data)
    known = ("streamed", files.size, decoder.shape, tuple(files.classes), mean, std)
    digest.update(repr(known).encode())
    return StreamedSet(
        source=source,
        input_shape=(channels, height, width),
        train_targets=files.train.targets,
        test_targets=files.test.targets,
        classes=tuple(files.classes),
        mean=mean,
        std=std,
        crop=_crop(files.crop, height, width),
        flip=files.flip,
        fingerprint=digest.hexdigest(),
        files=files,
        decoder=decoder,
        device=device,
        workers=workers,
    )


def _delivered(data: ImageData) -> _Held:
    train, test = (
        images.cpu().permute(0, 2, 3, 1).contiguous()
        for images in (data.train_images, data.test_images)
    )
    return _Held(
        train,
        data.train_targets.cpu(),
        test,
        data.test_targets.cpu(),
        tuple(data.classes),
        _numbers(data.mean),
        _numbers(data.std),
    )


def _kept_or_decoded(source: str, files: ImageFiles, decoder: Decoder, cache: Path) -> _Held:
    version = None
    if files.train.version is not None and files.test.version is not None:
        known = (_DECODING, decoder.shape, files.size is None)
        text = json.dumps([files.train.version, files.test.version, *known])
        version = hashlib.sha256(text.encode()).hexdigest()
        if (held := _kept(files, cache, version)) is not None:
            return held
    count = len(files.train.targets) + len(files.test.targets)
    log.info('data "%s": decoding %d images', source, count)
    train = decode_all(decoder, files.train, "train")
    test = decode_all(decoder, files.test, "test")
    held = _held(files, train, test, *_statistics(train))
    if version is not None:
        keep(cache, Kept(version, held.mean, held.std, held.fingerprint()), train, test)
    return held


def _kept(files: ImageFiles, cache: Path, version: str) -> _Held | None:
    """What was decoded before, if it is of these images and undamaged."""
    try:
        if (found := kept(cache)) is None or found[0].version != version:
            return None
        record, train, test = found
        held = _held(files, train, test, record.mean, record.std)
        if held.fingerprint() != record.fingerprint:
            raise ValueError("its content is not what was written")
        return held
    except ValueError as error:
        log.warning("%s: is damaged; the images are decoded again (%s)", cache, error)
        return None


def _held(
    files: ImageFiles, train: Tensor, test: Tensor, mean: Sequence[float], std: Sequence[float]
) -> _Held:
    """The decoded images of a set; ``mean`` and ``std`` are those of its training images, which
    count unless it says others."""
    return _Held(
        train,
        files.train.targets,
        test,
        files.test.targets,
        tuple(files.classes),
        _numbers(mean if files.mean is None else files.mean),
        _numbers(std if files.std is None else files.std),
    )


def _statistics(pixels: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Each channel's mean and standard deviation, exact but for the rounding to four digits; 1 for
    the deviation of a channel that is the same everywhere, by which it can be divided."""
    channels = pixels.shape[3]
    counts = np.zeros((channels, 256), np.int64)
    for part in torch.split(pixels, 1024):
        for channel in range(channels):
            values = part[..., channel].numpy().reshape(-1)
            counts[channel] += np.bincount(values, minlength=256)
    units = np.arange(256) / 255
    total = counts.sum(1)
    mean = counts @ units / total
    std = np.sqrt((counts * (units - mean[:, None]) ** 2).sum(1) / total)
    return tuple(round(float(m), 4) for m in mean), tuple(round(float(s), 4) or 1.0 for s in std)


def _crop(crop: int | None, height: int, width: int) -> int:
    return min(height, width) // 8 if crop is None else crop


def _numbers(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _check_data(source: str, data: ImageData) -> None:
    for name, images, targets in (
        ("train", data.train_images, data.train_targets),
        ("test", data.test_images, data.test_targets),
    ):
        if not (isinstance(images, Tensor) and isinstance(targets, Tensor)):
            kind = type(images).__name__
            _fail(source, f"{name}_images and {name}_targets must be tensors, not {kind}")
        if images.dtype != torch.uint8 or images.ndim != 4:
            _fail(
                source,
                f"{name}_images is {images.dtype} of shape {tuple(images.shape)}; "
                "it must be uint8 (N, channels, height, width)",
            )
        if images.shape[1:] != data.train_images.shape[1:]:
            _fail(
                source,
                f"{name}_images are {tuple(images.shape[1:])}, "
                f"but train_images are {tuple(data.train_images.shape[1:])}",
            )
        if targets.shape != images.shape[:1]:
            _fail(
                source,
                f"{name}_targets is {targets.dtype} of shape {tuple(targets.shape)}; "
                f"it must be int64 ({len(images)},)",
            )
    _check_numbers(source, data)
    _check_labels(source, data.classes, data.train_targets, data.test_targets)


def _check_files(source: str, files: ImageFiles) -> None:
    for name, images in (("train", files.train), ("test", files.test)):
        if not isinstance(images, ImageList):
            _fail(source, f"{name} is {type(images).__name__}, not kdzoo.ImageList")
        if not isinstance(images.targets, Tensor) or images.targets.ndim != 1:
            _fail(source, f"the {name} targets must be a tensor (N,)")
    if files.channels not in (1, 3):
        _fail(source, f"channels is {files.channels}; it must be 3 (colour) or 1 (grey)")
    if files.size is not None and (len(files.size) != 2 or min(files.size) < 1):
        _fail(source, f"size is {files.size}; it must be (height, width), each above 0")
    _check_numbers(source, files)
    _check_labels(source, files.classes, files.train.targets, files.test.targets)


def _check_numbers(source: str, data: ImageData | ImageFiles) -> None:
    given: dict[str, Any] = {"mean": data.mean, "std": data.std}  # whatever a plugin gave
    for name, values in given.items():
        if values is None and isinstance(data, ImageFiles):  # the usual ones, or their own
            continue
        try:
            _numbers(values)
        except (TypeError, ValueError):
            _fail(source, f"{name} is {values!r}; it must be a number for each channel, as a tuple")


def _check_labels(source: str, classes: Sequence[str], train: Tensor, test: Tensor) -> None:
    count = len(classes)
    if not all(isinstance(name, str) for name in classes):
        _fail(source, "the class names must be text")
    for name in classes:
        try:
            name.encode()
        except UnicodeEncodeError:  # a file name in another encoding
            _fail(source, f"the class name {name!r} is no Unicode text; rename it")
    if count < 2:
        _fail(source, f"has {'one class' if count else 'no classes'}; at least 2 are needed")
    if len(set(classes)) < count:
        _fail(source, "two classes have the same name")
    for name, targets in (("train", train), ("test", test)):
        if targets.dtype != torch.int64:
            _fail(source, f"{name}_targets is {targets.dtype}; it must be int64")
        if not len(targets):
            _fail(source, f"has no {name} images")
        if int(targets.min()) < 0 or int(targets.max()) >= count:
            _fail(source, f"{name}_targets has a class outside 0 to {count - 1}")
    for label, images_of_class in enumerate(train.bincount(minlength=count).tolist()):
        if images_of_class < 2:
            there = "one training image" if images_of_class else "no training images"
            _fail(source, f'class "{classes[label]}" has {there}; 2 are needed')


def _check_statistics(
    source: str, channels: int, mean: Sequence[float], std: Sequence[float]
) -> None:
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != channels:
            _fail(source, f"{name} has {len(values)} numbers for {channels} channels")
        if not all(0 <= value <= 1 for value in values):  # NaN is not, either
            _fail(
                source, f"{name} is {tuple(values)}; it must be in units of [0, 1], not of [0, 255]"
            )
    if min(std) <= 0:
        _fail(source, "std has a number that is not above 0")


def _fail(source: str, message: str) -> None:
    raise DataError(f'data "{source}": {message}')
