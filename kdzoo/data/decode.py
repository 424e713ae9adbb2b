"""From whatever is in an image file to pixels of one size and kind."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from kdzoo.errors import DataError
from kdzoo.extend.contracts import ImageFiles, ImageList

__all__ = ["Decoder", "Pixels", "centre", "cores", "decode_all", "ignore_warnings"]

Pixels = npt.NDArray[np.uint8]
"""(height, width, channels)."""

_PART = 32  # images that a thread decodes at a time


@dataclass(frozen=True)
class Decoder:
    """Reads the images of a set.

    Attributes:
        channels: 3 for colour, 1 for grey.
        height: of what the networks see.
        width: of what the networks see.
        model: what an image that all others must be as large as is called; ``None`` where the
            images may have any size.
    """

    channels: int
    height: int
    width: int
    model: str | None

    @classmethod
    def of(cls, files: ImageFiles) -> Decoder:
        """The decoder of a set; it reads the first image where the set has no size of its own.

        Raises:
            DataError: that image cannot be read.
        """
        if files.size is not None:
            return cls(files.channels, *files.size, model=None)
        width, height = _read(files.train, 0, files.channels).size
        return cls(files.channels, height, width, model=files.train.name(0))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        return self.height, self.width, self.channels

    def read(self, images: ImageList, row: int) -> Image.Image:
        """One image, in grey or colour, in its own size.

        Raises:
            DataError: it cannot be read, or has another size than it must; the message names it.
        """
        image = _read(images, row, self.channels)
        if self.model is not None and image.size != (self.width, self.height):
            raise DataError(
                f"{images.name(row)}: is {image.width}x{image.height} pixels, and {self.model} is "
                f"{self.width}x{self.height}; set `size`, to which all images will be scaled"
            )
        return image

    def pixels(self, image: Image.Image) -> Pixels:
        """The pixels of an image that has the networks' size."""
        return np.asarray(image).reshape(self.shape)

    def held(self, images: ImageList, row: int) -> Pixels:
        """One image as it is held in memory: scaled to cover the networks' size, the rest cut off.

        Raises:
            DataError: as :meth:`read`.
        """
        image = self.read(images, row)
        return self.pixels(centre(image, self.height, self.width, self.height, self.width))


def centre(
    image: Image.Image, cover_height: int, cover_width: int, height: int, width: int
) -> Image.Image:
    """Scale an image until it covers one size, and cut another out of its centre.

    Rounds as torchvision's Resize and CenterCrop do.
    """
    if image.size != (cover_width, cover_height):
        if image.height * cover_width <= image.width * cover_height:  # it is too wide, if anything
            scaled = (cover_height * image.width // image.height, cover_height)
        else:
            scaled = (cover_width, cover_width * image.height // image.width)
        image = image.resize(scaled, Image.Resampling.BILINEAR)  # antialiased
    if image.size == (width, height):
        return image
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def decode_all(decoder: Decoder, images: ImageList, title: str) -> Tensor:
    """All images of a list, decoded by several threads, behind a progress bar on a terminal.

    Returns:
        (N, height, width, channels), uint8.

    Raises:
        DataError: an image cannot be read.
    """
    count = len(images.targets)
    pixels = np.empty((count, *decoder.shape), np.uint8)

    def part(start: int) -> int:
        rows = range(start, min(start + _PART, count))
        for row in rows:
            pixels[row] = decoder.held(images, row)
        return len(rows)

    _in_threads(part, range(0, count, _PART), count, title)
    return torch.from_numpy(pixels)


def cores() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def ignore_warnings() -> None:
    """Pillow warns of oddities in what it can read, and does not say in which file."""
    warnings.filterwarnings("ignore", module=r"PIL\.")


def _in_threads(work: Callable[[int], int], parts: range, count: int, title: str) -> None:
    console = Console(stderr=True)
    columns = (
        TextColumn(title), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn()
    )  # fmt: skip
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    # Threads will do: Pillow lets others run while it decodes and scales.
    with ThreadPoolExecutor(cores()) as pool, bar, warnings.catch_warnings():
        ignore_warnings()
        task = bar.add_task("", total=count)
        for done in pool.map(work, parts):
            bar.advance(task, done)


def _read(images: ImageList, row: int, channels: int) -> Image.Image:
    try:
        with images.read(row) as image:
            image.load()
            return _converted(_upright(image), "RGB" if channels == 3 else "L")
    except DataError:
        raise
    except Exception as error:  # Pillow's plugins raise whatever they stumble over
        raise DataError(
            f"{images.name(row)}: cannot be read as an image: {_reason(error)}"
        ) from error


def _upright(image: Image.Image) -> Image.Image:
    """An image turned as its EXIF block says; as it is where that block is damaged."""
    with contextlib.suppress(Exception):
        return ImageOps.exif_transpose(image)
    return image


def _converted(image: Image.Image, mode: str) -> Image.Image:
    """An image in another mode: 16 bits become 8, and what is transparent becomes white."""
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of no known range")
    if image.mode.startswith("I"):
        # Pillow would clip at 255. A 16-bit image may come in 32 bits.
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image if image.mode == mode else image.convert(mode)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
