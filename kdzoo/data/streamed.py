"""An image set that is read while the network trains."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import multiprocessing
import multiprocessing.util
import os
import signal
import sys
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kdzoo.data.augment import Augmentation
from kdzoo.data.decode import Decoder, Pixels, centre, cores, ignore_warnings
from kdzoo.data.images import ImageSet, Split, View
from kdzoo.errors import DataError, RunError
from kdzoo.extend.contracts import ImageFiles, ImageList
from kdzoo.interrupts import held_back
from kdzoo.seeds import stream

__all__ = ["StreamedSet"]

_PLAIN = 64  # images of a view without augmentation, at most: several views are read ahead
_WORKERS = 8
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG
_WATCHED = (signal.SIGCHLD,) if sys.platform != "win32" else ()


@dataclass(frozen=True)
class StreamedSet(ImageSet):
    """Images that are decoded whenever they are wanted, by processes that end with each pass.

    Attributes:
        files: how they are read.
        decoder: how they are decoded.
        device: where the views are wanted.
        workers: how many processes read; ``None`` for one a core, up to 8.
    """

    files: ImageFiles
    decoder: Decoder
    device: torch.device
    workers: int | None

    def _train(self, rows: Tensor, augmentation: Augmentation) -> Split:
        return _StreamedSplit(self, self.files.train, rows, augmentation)

    def _test(self, augmentation: Augmentation) -> Split:
        rows = torch.arange(len(self.test_targets))
        return _StreamedSplit(self, self.files.test, rows, augmentation)


class _StreamedSplit(Split):
    def __init__(
        self, owner: StreamedSet, images: ImageList, rows: Tensor, augmentation: Augmentation
    ) -> None:
        super().__init__(images.targets[rows].to(owner.device), rows.to(owner.device))
        self._owner = owner
        self._images = images
        self._augmentation = augmentation

    def read(self) -> None:
        for _ in self.plain():
            pass

    def plain(self, chunk: int = 512) -> Generator[View, None, None]:
        step, count = min(chunk, _PLAIN), len(self)
        sizes = [min(step, count - start) for start in range(0, count, step)]
        return self._pass(torch.arange(count), sizes, _plain)

    def augmented(
        self, order: Tensor, sizes: Sequence[int], epoch: int
    ) -> Generator[View, None, None]:
        views = _Random(self._augmentation, epoch, self._owner.decoder)
        return self._pass(order, list(sizes), views)

    def _pass(
        self, order: Tensor, sizes: list[int], transform: _Transform
    ) -> Generator[View, None, None]:
        device = self._owner.device
        workers = self._owner.workers
        if workers is None:
            workers = min(cores(), _WORKERS)
        workers = min(workers, len(sizes))
        there = order.to(device)  # all of it now: each step would wait for its part
        with _unwatched(), warnings.catch_warnings():
            if workers:
                # Theirs too, for their sockets: one that ends while it still sends would fail to
                # remove its own, and one that is killed would leave it.
                multiprocessing.util.get_temp_dir()
            # How many there are was asked for, or is as many as there are cores.
            warnings.filterwarnings("ignore", message="This DataLoader will create")
            loader = DataLoader(
                _Reader(self._owner.decoder, self._images, transform),
                batch_size=None,
                sampler=_lists(self.indices.cpu()[order], sizes),
                num_workers=workers,
                collate_fn=_as_it_is,
                pin_memory=device.type == "cuda",
                worker_init_fn=functools.partial(_begin, os.getpid()),
                multiprocessing_context=_context() if workers else None,
                generator=torch.Generator(),  # it would draw from everybody's
            )
            pixels = iter(loader)
        try:
            for batch in torch.split(there, sizes):
                answer = _next(pixels)
                if isinstance(answer, DataError):
                    raise answer
                images = answer.to(device, non_blocking=True).permute(0, 3, 1, 2)
                yield View.of(images, self.targets[batch], self.indices[batch])
        finally:
            with _unwatched():
                del pixels  # the processes end with it, and a traceback would keep it


def _lists(rows: Tensor, sizes: list[int]) -> list[list[int]]:
    """Rows that are on the CPU, batch by batch."""
    return [batch.tolist() for batch in torch.split(rows, sizes)]


_Transform = Callable[[Decoder, Image.Image, int], Image.Image]


class _Reader(Dataset[Any]):
    """Decodes a batch; lives in the processes that read."""

    def __init__(self, decoder: Decoder, images: ImageList, transform: _Transform) -> None:
        self.decoder = decoder
        self.images = images
        self.transform = transform

    def __getitem__(self, rows: list[int]) -> Tensor | DataError:
        pixels = np.empty((len(rows), *self.decoder.shape), np.uint8)
        try:
            for place, row in enumerate(rows):
                pixels[place] = self._one(row)
        except DataError as error:
            return error  # a value: what is raised here would arrive as a traceback in a text
        return torch.from_numpy(pixels)

    def _one(self, row: int) -> Pixels:
        image = self.decoder.read(self.images, row)
        return self.decoder.pixels(self.transform(self.decoder, image, row))


def _plain(decoder: Decoder, image: Image.Image, row: int) -> Image.Image:
    height, width = decoder.height, decoder.width
    # As images for ImageNet's networks are tested: of 256 pixels the middle 224.
    return centre(image, height * 256 // 224, width * 256 // 224, height, width)


class _Random:
    """The random views of one epoch, as networks for ImageNet are trained with."""

    def __init__(self, augmentation: Augmentation, epoch: int, decoder: Decoder) -> None:
        # Imported and built here, once, rather than by each process in each epoch.
        from torchvision.transforms import v2

        self.seed = augmentation.seed
        self.epoch = epoch
        size = (decoder.height, decoder.width)
        self.crop = v2.RandomResizedCrop(size) if augmentation.crop else None
        self.flip = v2.RandomHorizontalFlip() if augmentation.flip else None

    def __call__(self, decoder: Decoder, image: Image.Image, row: int) -> Image.Image:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(stream(self.seed, "view", self.epoch, row))
            image = self.crop(image) if self.crop else _plain(decoder, image, row)
            if self.flip:
                image = self.flip(image)
        return image


def _unwatched() -> contextlib.AbstractContextManager[None]:
    """Processes begin and end in here. Ctrl-C and SIGTERM wait until they have: Python calls back
    around a fork and for what is deleted.

    torch's watch over the processes is taken off again. It raises wherever the main thread happens
    to be, in somebody's loss, say; the loader finds out by itself when it waits for images.
    """
    return held_back(*_WATCHED)


def _next(pixels: Iterator[Any]) -> Any:
    try:
        return next(pixels)
    except (RuntimeError, OSError, EOFError) as error:
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        raise RunError(
            f"a process that reads images came to an end ({error}); if memory is short, lower "
            "`workers` under `data`; in a container, raise its shared memory (--shm-size)"
        ) from error


def _context() -> Any:
    """Processes as they are cheapest: they read files, and touch neither device nor threads."""
    return multiprocessing.get_context("fork" if sys.platform == "linux" else None)


def _begin(main: int, number: int) -> None:
    """In a process that reads: end with the main process, at whatever moment that dies.

    torch's own watch compares with the parent that it finds, which may be another one already.
    """
    del number
    ignore_warnings()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends us
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != main:
        os._exit(1)


def _as_it_is(answer: Any) -> Any:
    return answer
