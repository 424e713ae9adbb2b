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


def spec(root: Path, **data: Any) -> dict[str, Any]:
    """Two epochs on these images, without a teacher."""
    return {
        "name": "pictures",
        "data": {"use": "image-folder", "root": str(root), "size": 12, **data},
        "student": {"use": "small-cnn", "width": 4, "depth": 2},
        "train": {"epochs": 2, "batch_size": 8},
        "observers": ["jsonl"],
    }
