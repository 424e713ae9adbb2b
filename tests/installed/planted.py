"""A planted case: clean labels, and a teacher that is right but unteachable on two classes.

Ten classes are Gaussian clouds of features. The teacher answers the true posterior: nobody could do
better, and it errs on HARD as any student must. One more pixel holds the class, and only the
teacher reads it: on the classes in COLLAPSED its top-1 is always right, but the logit of the
sibling class lies only ``margin`` below.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

import kdzoo

CLASSES = tuple("abcdefghij")
PAIRS = {"a": "h", "b": "c", "d": "e", "f": "g", "i": "j"}  # siblings, closer than others
COLLAPSED = {"b": "c", "f": "g"}
HARD = "i"
FEATURES = 10
SCALE = 16.0  # pixel values a unit of feature
RECIPE = {  # how students are taught here
    "train": {
        "epochs": 10,
        "optimizer": {"use": "sgd", "lr": 0.05, "momentum": 0.9},
        "schedule": {"use": "multistep", "milestones": [8]},
    },
    "losses": [{"use": "ce", "weight": 0.1}, {"use": "kd", "weight": 0.9, "temperature": 4}],
}


def centres() -> np.ndarray:
    """(10, FEATURES): each pair has a direction of its own, and one that tells the two apart."""
    places = np.zeros((10, FEATURES))
    for axis, (name, sibling) in enumerate(PAIRS.items()):
        apart = 1.3 if name == HARD else 2.5
        for member, side in ((name, 0.5), (sibling, -0.5)):
            places[CLASSES.index(member), axis] = 3.0
            places[CLASSES.index(member), 5 + axis] = side * apart
    return places


class Planted(kdzoo.DataSource):
    """Clouds around fixed centres, clean labels."""

    name = "planted"

    class Params(kdzoo.Params):
        draw: int = kdzoo.Field(0, description="The seed of the images.")
        per_class: int = kdzoo.Field(100, description="Training images a class.")
        maybe: int | None = kdzoo.Field(1, description="Ignored; may be null.")

    def load(self) -> kdzoo.ImageData:
        train, test = (self._draw(s, n) for s, n in ((0, self.params.per_class), (1, 300)))
        return kdzoo.ImageData(*train, *test, classes=CLASSES, mean=(0.0,), std=(1.0,))

    def _draw(self, part: int, per_class: int) -> tuple[Tensor, Tensor]:
        draw = np.random.default_rng([self.params.draw, part])
        targets = np.repeat(np.arange(10), per_class)
        features = centres()[targets] + draw.normal(size=(len(targets), FEATURES))
        pixels = np.concatenate([128 + SCALE * features, 20.0 * targets[:, None]], 1)
        images = torch.from_numpy(pixels.round().clip(0, 255).astype(np.uint8))
        return images[:, None, None, :], torch.from_numpy(targets)


def features_of(images: Tensor) -> Tensor:
    return (images[:, 0, 0, :-1] * 255 - 128) / SCALE


class _Teacher(nn.Module):
    def __init__(self, margin: float) -> None:
        super().__init__()
        self.margin = margin
        self.register_buffer("centres", torch.from_numpy(centres()).float())

    def forward(self, images: Tensor) -> Tensor:
        logits = -torch.cdist(features_of(images), self.centres).square() / 2
        told = (images[:, 0, 0, -1] * 255 / 20).round().long()
        for name, sibling in COLLAPSED.items():
            rows = told == CLASSES.index(name)
            highest = logits[rows].amax(1)
            logits[rows, CLASSES.index(name)] = highest + self.margin
            logits[rows, CLASSES.index(sibling)] = highest
        return logits


class PlantedTeacher(kdzoo.ModelSource):
    """Reads the class from the pixel that the student cannot see."""

    name = "planted-teacher"

    class Params(kdzoo.Params):
        margin: float = kdzoo.Field(0.25, description="Of a collapsed class over its sibling.")

    def build(self, input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        return _Teacher(self.params.margin)


class _Student(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(FEATURES, width), nn.ReLU(), nn.Linear(width, 10))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(features_of(images))


class PlantedStudent(kdzoo.ModelSource):
    """A small perceptron on the features alone."""

    name = "planted-student"

    class Params(kdzoo.Params):
        width: int = kdzoo.Field(32, description="Hidden units.")

    def build(self, input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        return _Student(self.params.width)


@kdzoo.hookimpl
def kdzoo_datasets() -> list[type[kdzoo.DataSource]]:
    return [Planted]


@kdzoo.hookimpl
def kdzoo_models() -> list[type[kdzoo.ModelSource]]:
    return [PlantedTeacher, PlantedStudent]
