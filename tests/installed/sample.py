"""Components as strangers would write them, for tests of the engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

import kdzoo


class LinearAdapter(kdzoo.Adapter):
    """Flattens, and maps linearly."""

    name = "sample-linear"

    def setup(self, student_shape: tuple[int, ...], teacher_shape: tuple[int, ...]) -> None:
        self.shape = teacher_shape
        self.linear = nn.Linear(int(np.prod(student_shape)), int(np.prod(teacher_shape)))

    def forward(self, feature: Tensor) -> Tensor:
        return self.linear(feature.flatten(1)).unflatten(1, self.shape)


class FeatureLoss(kdzoo.Loss):
    """Squared difference of adapted features; draws random numbers, and has a buffer."""

    name = "sample-feature"
    default_layers = (kdzoo.LayerPair(student=0, teacher=0),)
    default_adapter = "sample-linear"
    needs_indices = True

    class Params(kdzoo.Params):
        noise: float = kdzoo.Field(0.0, ge=0, description="Noise on the teacher's feature.")

    def setup(self, student_shapes, teacher_shapes, num_classes, num_samples):
        (pair,) = self.layers
        self.adapter = self.new_adapter(
            student_shapes.features[pair.student], teacher_shapes.features[pair.teacher]
        )
        self.register_buffer("seen", torch.zeros(num_samples))

    def forward(self, student, teacher, batch):
        (pair,) = self.layers
        adapted = self.adapter(student.features[pair.student])
        wanted = teacher.features[pair.teacher]
        wanted = wanted + self.params.noise * torch.randn_like(wanted)
        if self.training:
            self.seen[batch.indices] += 1
        return (adapted - wanted).square().flatten(1).mean(1)


class Explodes(kdzoo.Loss):
    """Cross entropy that becomes NaN once training has gone on for a while."""

    name = "sample-explodes"
    guidance = "label"

    class Params(kdzoo.Params):
        after: float = kdzoo.Field(description="From this epoch on.")

    def forward(self, student, teacher, batch):
        loss = nn.functional.cross_entropy(student.logits, batch.targets, reduction="none")
        return loss * (float("nan") if batch.progress >= self.params.after else 1.0)


class Careless(kdzoo.Loss):
    """Does one of the things that a loss must not do."""

    name = "sample-careless"
    guidance = "label"

    class Params(kdzoo.Params):
        how: str = kdzoo.Field(description="mean, raise or peek.")

    def forward(self, student, teacher, batch):
        if self.params.how == "raise":
            raise IndexError("index 7 is out of range")
        if self.params.how == "peek":
            return teacher.logits.sum(1)
        return student.logits.mean()


class DropoutNet(kdzoo.ModelSource):
    """Batch norm, dropout and an in-place ReLU behind the tapped layer."""

    name = "sample-dropout"

    def build(self, input_shape, num_classes):
        pixels = int(np.prod(input_shape))
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(pixels, 12),
            nn.BatchNorm1d(12),
            nn.ReLU(inplace=True),
            nn.Dropout(0.2),
            nn.Linear(12, num_classes),
        )

    def layers(self):
        return kdzoo.Layers(stages=("1", "2"), penultimate="4", head="5")


class Knowing(kdzoo.ModelSource):
    """Knows the planted classes by their last pixel, if its images are normalized as it needs."""

    name = "sample-knowing"

    def build(self, input_shape, num_classes):
        model = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(input_shape)), num_classes))
        pixel = 20 / 255 * torch.arange(num_classes)  # of each class; the nearest one wins
        with torch.no_grad():
            model[1].weight.zero_()
            model[1].weight[:, -1] = 1000 * 2 * pixel * 0.5
            model[1].bias.copy_(1000 * (2 * pixel * 0.25 - pixel**2))
        return model

    def normalization(self):
        return kdzoo.Normalization(mean=(0.25,), std=(0.5,))

    def pretrained(self):
        return True


class Alternating(kdzoo.ClassPolicy):
    """Teaches one class less after every epoch; its only memory is its state."""

    name = "sample-alternating"

    def setup(self, setting):
        self.dropped = 0

    def update(self, curves):
        self.dropped += 1
        weights = np.ones(curves.student.shape[1])
        weights[: self.dropped] = 0
        return kdzoo.ClassWeights(teacher=weights, label=np.ones_like(weights))

    def state_dict(self) -> dict[str, Any]:
        return {"dropped": self.dropped}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.dropped = state["dropped"]


class Odd(kdzoo.DataSource):
    """Three classes, images that are not square, and whatever is wrong on request."""

    name = "sample-odd"

    class Params(kdzoo.Params):
        per_class: int = kdzoo.Field(11, description="Training images a class.")
        wrong: str = kdzoo.Field("", description="What is wrong with the images.")

    def load(self):
        count = 3 * self.params.per_class
        generator = torch.Generator().manual_seed(0)
        targets = torch.arange(count) % 3
        images = torch.randint(0, 256, (count, 2, 5, 7), generator=generator).byte()
        if self.params.wrong == "label":
            targets = targets + 1
        if self.params.wrong == "dtype":
            images = images.float()
        if self.params.wrong == "class":
            targets = torch.where(targets == 1, 0, targets)
        if self.params.wrong == "crash":
            raise KeyError("meta")
        return kdzoo.ImageData(
            images,
            targets,
            images[:9],
            targets[:9].clone(),
            ("x", "y", "z"),
            (0.5, 0.5),
            (0.25, 0.25),
            crop=1,
            flip=True,
        )


class Recorder(kdzoo.Observer):
    """Keeps what it is told in a list of the class."""

    name = "sample-recorder"
    calls: ClassVar[list[tuple[Any, ...]]] = []

    def start(self, run, state):
        self.calls.append(("start", run.role, run.step, state))

    def steps(self, run, first, values):
        self.calls.append(("steps", run.role, first, {k: v.copy() for k, v in values.items()}))

    def epoch(self, run, record):
        self.calls.append(("epoch", run.role, record))

    def state_dict(self):
        return {"calls": 1}

    def end(self, run, error):
        self.calls.append(("end", run.role, error))


@kdzoo.hookimpl
def kdzoo_losses():
    return [FeatureLoss, Explodes, Careless]


@kdzoo.hookimpl
def kdzoo_adapters():
    return [LinearAdapter]


@kdzoo.hookimpl
def kdzoo_policies():
    return [Alternating]


@kdzoo.hookimpl
def kdzoo_models():
    return [DropoutNet, Knowing]


@kdzoo.hookimpl
def kdzoo_datasets():
    return [Odd]


@kdzoo.hookimpl
def kdzoo_observers():
    return [Recorder]
