"""For each check of a data source a broken one that it catches, and where possible no other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from proving import caught, quick

import kdzoo
from kdzoo.testing import run_checks
from kdzoo.testing.datasets import DatasetChecks

EVERY = quick(DatasetChecks, but=set())
SPEC = "{name: a, data: {use: sound-files, root: x}, student: mlp, train: {epochs: 1}}"


class SoundImages(kdzoo.DataSource):
    """Random images of three classes."""

    name = "sound-images"

    def load(self) -> kdzoo.ImageData:
        return self.answer(np.random.default_rng(0))

    def answer(self, draw: Any, **more: Any) -> kdzoo.ImageData:
        images = torch.from_numpy(draw.integers(0, 256, (30, 1, 6, 6), np.uint8))
        targets = torch.arange(30) % 3
        classes = ("x", "y", "z")
        tensors = images, targets, images[:6].clone(), targets[:6].clone()
        return kdzoo.ImageData(*tensors, classes, (0.5,), (0.3,), **more)


class Undescribed(SoundImages):
    """A parameter has no description."""

    class Params(kdzoo.Params):
        size: int = 4


class MoreThreads(SoundImages):
    """Gives torch another thread."""

    def load(self) -> kdzoo.ImageData:
        torch.set_num_threads(torch.get_num_threads() + 1)
        return super().load()


class NoTest(SoundImages):
    """Brings no images to test on."""

    def load(self) -> kdzoo.ImageData:
        answer = super().load()
        return dataclasses.replace(
            answer, test_images=answer.test_images[:0], test_targets=answer.test_targets[:0]
        )


class Missing(SoundImages):
    """Cannot find its files, and says so in the words of the system."""

    def load(self) -> kdzoo.ImageData:
        raise FileNotFoundError("x.csv")


class DrawsItsImages(SoundImages):
    """Draws its images from a generator of its own."""

    def load(self) -> kdzoo.ImageData:
        return self.answer(np.random.default_rng())


class CropsTooMuch(SoundImages):
    """Its random crops may miss the image."""

    def load(self) -> kdzoo.ImageData:
        return self.answer(np.random.default_rng(0), crop=6)


class OtherEachTime(SoundImages):
    """Draws its images from the global generator."""

    def load(self) -> kdzoo.ImageData:
        answer = super().load()
        order = torch.randperm(30)
        return dataclasses.replace(
            answer,
            train_images=answer.train_images[order],
            train_targets=answer.train_targets[order],
        )


class KeepsItsAnswer(SoundImages):
    """Answers the same tensors each time."""

    kept: ClassVar[list[kdzoo.ImageData]] = []

    def load(self) -> kdzoo.ImageData:
        if not self.kept:
            self.kept.append(super().load())
        return self.kept[0]


class SoundFiles(kdzoo.DataSource):
    """Images in files named after their class."""

    name = "sound-files"
    starters: ClassVar = {"a": SPEC}

    class Params(kdzoo.Params):
        root: str = kdzoo.Field(description="Where the files are.")

    def load(self) -> kdzoo.ImageFiles:
        root = Path(self.params.root)
        lists = [self.listed(root, part) for part in ("train", "test")]
        return kdzoo.ImageFiles(lists[0], lists[1], ("a", "b"), channels=1)

    def listed(self, root: Path, part: str) -> kdzoo.ImageList:
        names = sorted(path.name for path in (root / part).iterdir())
        targets = torch.tensor(["ab".index(name[0]) for name in names])
        return kdzoo.ImageList.of_files(root, [f"{part}/{name}" for name in names], targets)


class Unpicklable(SoundFiles):
    """Reads with a function that no other process knows."""

    def listed(self, *given: Any) -> kdzoo.ImageList:
        found = super().listed(*given)
        return dataclasses.replace(found, read=lambda row: found.read(row))


@dataclasses.dataclass
class _Once:
    """Gives each image twice: enough for one reading of the engine and one epoch."""

    read: Callable[[int], Image.Image]
    left: dict[int, int] = dataclasses.field(default_factory=dict)

    def __call__(self, row: int) -> Image.Image:
        self.left[row] = self.left.get(row, 2) - 1
        if self.left[row] < 0:
            raise OSError("end of file")
        return self.read(row)

    def __getstate__(self) -> dict[str, Any]:
        return {"read": self.read, "left": {}}


class ReadsTwice(SoundFiles):
    """Its images are gone once they were read twice."""

    def listed(self, *given: Any) -> kdzoo.ImageList:
        found = super().listed(*given)
        return dataclasses.replace(found, read=_Once(found.read))


class KnowsItsPlace(SoundFiles):
    """Its fingerprint is of absolute paths."""

    def listed(self, root: Path, part: str) -> kdzoo.ImageList:
        return dataclasses.replace(super().listed(root, part), fingerprint=f"{root}/{part}")


class BadStarter(SoundFiles):
    """Offers a spec that is not valid."""

    starters: ClassVar = {"a": SPEC.replace("epochs: 1", "epochs: 0")}


def files(folder: Path) -> dict[str, Any]:
    """Twelve small images."""
    for part in ("train", "test"):
        (folder / "set" / part).mkdir(parents=True)
        for number in range(12):
            pixels = np.random.default_rng(number).integers(0, 256, (6, 6), np.uint8)
            name = f"{'ab'[number % 2]}{number:02}.png"
            Image.fromarray(pixels).save(folder / "set" / part / name)
    return {"root": str(folder / "set")}


IMAGES: list[tuple[type[kdzoo.DataSource], str]] = [
    (Undescribed, "contract"),
    (MoreThreads, "leaves_torch_alone"),
    (NoTest, "delivers"),
    (Missing, "delivers"),
    (CropsTooMuch, "views"),
    (OtherEachTime, "deterministic"),
    (DrawsItsImages, "deterministic"),
    (KeepsItsAnswer, "answers_apart"),
]
FILES: list[tuple[type[kdzoo.DataSource], str]] = [
    (Unpicklable, "readers"),
    (ReadsTwice, "streamed"),
    (KnowsItsPlace, "moved"),
    (BadStarter, "starters"),
]


def test_what_is_sound_passes_every_check() -> None:
    assert caught(SoundImages) == set()
    assert caught(SoundFiles, entry=files) == set()


@pytest.mark.parametrize(("mutant", "check"), IMAGES)
def test_one_check_alone_catches_images(mutant: type[kdzoo.DataSource], check: str) -> None:
    assert caught(mutant) == {check}


@pytest.mark.parametrize(("mutant", "check"), FILES)
def test_one_check_alone_catches_files(mutant: type[kdzoo.DataSource], check: str) -> None:
    assert caught(mutant, entry=files) == {check}


def test_files_that_are_missing_are_a_data_error() -> None:
    delivers, streamed = run_checks(Missing, checks=["delivers", "streamed"])
    assert "raised FileNotFoundError: x.csv; refuse with a kdzoo.DataError" in delivers.reason
    assert streamed.reason == "it delivers nothing to look at, as delivers tells"


def test_every_check_is_proved() -> None:
    assert {check for _, check in IMAGES + FILES} == set(EVERY)
