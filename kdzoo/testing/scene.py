"""What components are tried in: small networks, a few images, and a training loop."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from kdzoo.distill.distiller import Distiller
from kdzoo.extend.bases import Adapter, ClassPolicy, DataSource, Loss, ModelSource
from kdzoo.extend.contracts import (
    Batch,
    ClassWeights,
    ImageData,
    Layer,
    Layers,
    Outputs,
    TeachingCurves,
)
from kdzoo.seeds import stream
from kdzoo.testing.modules import with_gradient

__all__ = [
    "CLASSES",
    "IMAGE",
    "ROWS",
    "SAMPLES",
    "Columns",
    "Labels",
    "Net",
    "Nets",
    "Pictures",
    "Same",
    "Shape",
    "images",
    "train",
]

Shape = tuple[int, ...]

CLASSES, ROWS, SAMPLES = 5, 6, 30
"""The classes, the samples of a batch, and the rows of the training set, as many of each class."""

IMAGE = (3, 4, 4)


class Net(nn.Module):
    """A network whose layers have the shapes that are asked for.

    Args:
        shapes: the shape of each layer's feature, without the batch.
    """

    def __init__(self, shapes: Mapping[Layer, Shape]) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(IMAGE), 8), nn.ReLU())
        inner = {layer: shape for layer, shape in shapes.items() if layer not in _OUTER}
        self.features = [self._path(layer) for layer in inner]
        for path, shape in zip(self.features, inner.values(), strict=True):
            _put(self, path, nn.Sequential(nn.Linear(8, math.prod(shape)), nn.Unflatten(1, shape)))
        width = 8 + sum(map(math.prod, inner.values()))
        entering = shapes.get("penultimate", (6,))
        self.penultimate = nn.Sequential(
            nn.Linear(width, math.prod(entering)), nn.Unflatten(1, entering)
        )
        self.head = nn.Linear(math.prod(entering), CLASSES)
        stages = [layer for layer in shapes if isinstance(layer, int)]
        # A stage that nobody asked for has no feature of its own.
        self.layers = Layers(
            stages=tuple(
                self._path(number) if number in stages else "trunk"
                for number in range(max(stages, default=-1) + 1)
            ),
            penultimate="penultimate",
            head="head",
        )

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, *IMAGE) to logits (B, CLASSES)."""
        hidden: Tensor = self.trunk(images)
        features = [self.get_submodule(path)(hidden).flatten(1) for path in self.features]
        entering: Tensor = self.penultimate(torch.cat([hidden, *features], 1))
        logits: Tensor = self.head(entering.flatten(1))
        return logits

    @staticmethod
    def _path(layer: Layer) -> str:
        return f"stage.{layer}" if isinstance(layer, int) else layer


_OUTER = ("penultimate", "head")


def _put(root: nn.Module, path: str, module: nn.Module) -> None:
    *parents, name = path.split(".")
    for parent in parents:
        if not hasattr(root, parent):
            root.add_module(parent, nn.Module())
        root = root.get_submodule(parent)
    root.add_module(name, module)


class Labels(Loss):
    """Cross entropy with the labels."""

    name = "kdzoo-testing-labels"
    guidance = "label"

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """See :meth:`kdzoo.Loss.forward`."""
        return functional.cross_entropy(student.logits, batch.targets, reduction="none")


class Same(Adapter):
    """Leaves a feature as it is."""

    name = "kdzoo-testing-same"

    def setup(self, student_shape: Shape, teacher_shape: Shape) -> None:
        """See :meth:`kdzoo.Adapter.setup`."""

    def forward(self, feature: Tensor) -> Tensor:
        """See :meth:`kdzoo.Adapter.forward`."""
        return feature


class Columns(ClassPolicy):
    """Leaves the more of a class in the soft targets of the others, the later it comes."""

    name = "kdzoo-testing-columns"
    sets_columns = True

    def initial(self, num_classes: int) -> ClassWeights:
        """See :meth:`kdzoo.ClassPolicy.initial`."""
        ones = np.ones(num_classes)
        return ClassWeights(ones, ones, columns=np.arange(num_classes) / (num_classes - 1.0))

    def update(self, curves: TeachingCurves) -> ClassWeights:
        """See :meth:`kdzoo.ClassPolicy.update`."""
        return self.initial(curves.student.shape[1])


class Nets(ModelSource):
    """A small network."""

    name = "kdzoo-testing-net"

    def build(self, input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        """See :meth:`kdzoo.ModelSource.build`."""
        return Net({})


class Pictures(DataSource):
    """The images that losses are tried on."""

    name = "kdzoo-testing-images"

    def load(self) -> ImageData:
        """See :meth:`kdzoo.DataSource.load`."""
        pixels, targets = images(torch.arange(SAMPLES))
        pixels = (pixels * 255).byte()
        names = tuple("abcde"[:CLASSES])
        mean, std = (0.5,) * IMAGE[0], (0.3,) * IMAGE[0]
        return ImageData(pixels, targets, pixels.clone(), targets.clone(), names, mean, std)


def images(indices: Tensor) -> tuple[Tensor, Tensor]:
    """The training images of these rows, (B, *IMAGE), and their classes (B,)."""
    generator = torch.Generator().manual_seed(0)
    every = torch.rand(SAMPLES, *IMAGE, generator=generator)
    return every[indices], indices % CLASSES


def train(distiller: Distiller, epochs: Iterable[int]) -> list[Tensor]:
    """Train on all rows, in a few steps an epoch, each seeded as the engine seeds it.

    Returns:
        The total of each step.
    """
    optimizer = torch.optim.SGD(distiller.parameters(), lr=1e-3)
    totals = []
    for epoch in epochs:
        distiller.train()
        order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(epoch))
        for number, indices in enumerate(torch.split(order, SAMPLES // 3)):
            torch.manual_seed(stream(0, "step", epoch, number))
            step = distiller(*images(indices), indices, float(epoch))
            optimizer.zero_grad()
            torch.autograd.backward(with_gradient(step.total))
            optimizer.step()
            totals.append(step.total.detach())
        distiller.end_epoch()
    return totals
