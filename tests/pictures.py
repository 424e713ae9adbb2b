"""Small image files for tests: three classes, each with a colour of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CLASSES = ("blue", "green", "red")


def picture(draw: np.random.Generator, label: int, height: int, width: int) -> Image.Image:
    pixels = draw.integers(0, 90, (height, width, 3))
    pixels[..., 2 - label] += 110
    return Image.fromarray(pixels.astype(np.uint8))


def write_pictures(
    root: Path, train: int = 8, test: int = 4, size: tuple[int, int] | None = None
) -> Path:
    """``root/train/<class>/<n>.png`` and the same below ``test``, of many sizes or of one."""
    draw = np.random.default_rng(0)
    for part, count in (("train", train), ("test", test)):
        for label, name in enumerate(CLASSES):
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                height, width = size or draw.integers(14, 30, 2)
                picture(draw, label, height, width).save(folder / f"{number}.png")
    return root


def idx(values: np.ndarray, kind: int) -> bytes:
    """The format of MNIST's files."""
    head = bytes([0, 0, kind, values.ndim]) + np.array(values.shape, ">i4").tobytes()
    return head + values.astype(values.dtype.newbyteorder(">")).tobytes()


def write_mnist(root: Path, seed: int = 0) -> np.ndarray:
    """torchvision's MNIST below ``root``; its training images (N, 28, 28)."""
    draw = np.random.default_rng(seed)
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part, count in (("train", 40), ("t10k", 20)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        drawn = draw.integers(0, 256, (count, 28, 28), np.uint8)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(drawn, 8))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels, 8))
        if part == "train":
            train = drawn
    return train


def spec(root: Path, **data: Any) -> dict[str, Any]:
    """Two epochs on these images, without a teacher."""
    return {
        "name": "pictures",
        "data": {"use": "image-folder", "root": str(root), "size": 12, **data},
        "student": {"use": "small-cnn", "width": 4, "depth": 2},
        "train": {"epochs": 2, "batch_size": 8},
        "observers": ["jsonl"],
    }
