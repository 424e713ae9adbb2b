"""What the engine hands to a component, and what it hands back: plain, immutable records.

B is the number of samples in a batch, C the number of classes, E the number of epochs so far.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import IntEnum
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from kdzoo.errors import DataError, SpecError

__all__ = [
    "Batch",
    "ClassState",
    "ClassWeights",
    "EpochRecord",
    "ImageData",
    "ImageFiles",
    "ImageList",
    "Layer",
    "LayerPair",
    "Layers",
    "Normalization",
    "Outputs",
    "PolicySetting",
    "RunInfo",
    "Shapes",
    "TeachingCurves",
]

Layer = int | str
"""The number of a network stage that the model declares, or the path of a module (``blocks.7``)."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Outputs:
    """What a network said about a batch.

    Attributes:
        logits: (B, C).
        features: the layers that the losses asked for, (B, ...) each, under the name that the
            loss's ``layers`` uses. Nothing else is kept. Maps have their channels last in memory:
            take them apart with ``flatten`` or ``reshape``, not with ``view``.
    """

    logits: Tensor
    features: Mapping[Layer, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """What was shown to the networks.

    Attributes:
        inputs: (B, channels, height, width), as the training loop passes them: in kdzoo's own
            floats in [0, 1], which each network normalizes itself.
        targets: (B,), int64 classes.
        indices: (B,), int64 rows of the training set as the data source gave it; -1 where the
            training loop gave none.
        weights: (B,), the class policy's weight of each sample for the loss that is being called.
            The engine applies it to each row; a loss needs it only to weight the *partners* of a
            sample it compares with others.
        progress: epochs since the stage began, fractional.
        columns: (C,), how much of each class is left in the soft targets of samples of *other*
            classes, 0 to 1; the rest is renormalized, for teacher and student alike. ``None``
            where the policy does not ask for it; only a loss with ``takes_columns`` gets it.
    """

    inputs: Tensor
    targets: Tensor
    indices: Tensor
    weights: Tensor
    progress: float
    columns: Tensor | None = None


@dataclass(frozen=True)
class LayerPair:
    """A student layer and the teacher layer that it is compared with."""

    student: Layer
    teacher: Layer


@dataclass(frozen=True)
class Layers:
    """The module paths by which a model's layers can be named.

    They are those of the model itself: ``layer1`` also where it is given inside a
    :class:`Network`, and not ``model.layer1``. Whether a path exists is checked when a loss or a
    policy reads the layer.

    Attributes:
        stages: network stage 0, 1, 2, ...: the module whose output is that stage's feature.
        penultimate: the module whose output enters the classifier.
        head: the classifier.
    """

    stages: tuple[str, ...] = ()
    penultimate: str | None = None
    head: str | None = None


@dataclass(frozen=True)
class Normalization:
    """Each channel's mean and standard deviation, in units of [0, 1]: what a network subtracts from
    its images, and divides them by."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Shapes:
    """The shapes of a network's outputs, without the batch: ``logits`` (C,), and each feature."""

    logits: tuple[int, ...]
    features: Mapping[Layer, tuple[int, ...]]


class ClassState(IntEnum):
    """What a class policy has decided about a class; the number is for pictures.

    Attributes:
        WARM_UP: it is taught, and not looked at yet.
        TAUGHT: it is taught like the others.
        SUSPECT: it is still taught, and may not be for long.
        UNTAUGHT: it gets less of the teacher's terms than the others.
    """

    WARM_UP = 0
    TAUGHT = 1
    SUSPECT = 2
    UNTAUGHT = 3

    @property
    def words(self) -> str:
        """As it is written: ``warm-up``, ``taught``, ``suspect``, ``untaught``."""
        return self.name.lower().replace("_", "-")


@dataclass(frozen=True)
class TeachingCurves:
    """Each class's history over the epochs, on the training samples as they passed.

    All arrays are (E, C) where nothing else is said. A class without samples in an epoch has NaN
    there.

    Attributes:
        samples: how many samples of the class passed.
        student: the student's top-1 accuracy.
        teacher: the teacher's.
        agreement: how often both have the same top-1.
        divergence: the mean KL(teacher || student) at temperature 1.
        predicted: how many samples, of whatever class, the student answered with the class.
        teacher_weight: how much of the teacher's terms the class got in the epoch.
        label_weight: how much of the label terms.
        baseline: the accuracy of the same student trained without the teacher, at the same epoch;
            ``None`` where there is no such run.
        both_right: how often student and baseline were both right, on the same sample in the same
            epoch; ``None`` where the baseline's answers are not known one by one.
        similarity: linear CKA of the features that enter the two classifiers, within the class;
            ``None`` unless the policy asks for it. See :mod:`kdzoo.distill.similarity`.
        state: the :class:`ClassState` that applied in the epoch.
        learning_rate: (E,), the first parameter group's; NaN where the training loop did not say.
        stage: (E,), the stage that the epoch belongs to: how many epochs of the run came before it.
        validation: the same on the validation images, after each epoch; ``None`` without these.
            What depends on the teacher is measured there only if the policy asks for it.
    """

    samples: Floats
    student: Floats
    teacher: Floats
    agreement: Floats
    divergence: Floats
    predicted: Floats
    teacher_weight: Floats
    label_weight: Floats
    baseline: Floats | None = None
    both_right: Floats | None = None
    similarity: Floats | None = None
    state: Floats | None = None
    learning_rate: Floats | None = None
    stage: Floats | None = None
    validation: TeachingCurves | None = None

    @property
    def untaught(self) -> list[int]:
        """The classes that were *untaught* in the last epoch."""
        return [int(c) for c in np.flatnonzero(self.stopped[-1])]

    @property
    def stopped(self) -> npt.NDArray[np.bool_]:
        """(E, C), whether the class was *untaught*, by its ``state``; where that is not known,
        whether it got nothing of the teacher's terms."""
        stopped: npt.NDArray[np.bool_] = self.teacher_weight == 0
        if self.state is not None:
            known = np.isfinite(self.state)
            stopped = np.where(known, self.state == ClassState.UNTAUGHT, stopped)
        return stopped

    def first(self, epochs: int) -> TeachingCurves:
        """Copies of the first epochs of all curves."""
        parts: dict[str, Any] = {}
        for part in fields(self):
            value = getattr(self, part.name)
            if isinstance(value, TeachingCurves):
                parts[part.name] = value.first(epochs)
            elif value is not None:
                parts[part.name] = value[:epochs].copy()
        return TeachingCurves(**parts)


@dataclass(frozen=True)
class PolicySetting:
    """What a class policy is told of the training that it decides about.

    Attributes:
        classes: the C class names.
        has_baseline: whether the curves will have ``baseline``.
        teacher_weight: the weights of all terms that follow the teacher, added up; 0 without one.
        label_weight: the weights of all terms that follow the labels, added up.
        samples: how many training samples each class has; ``None`` where that is not known.
        validation: how many validation images each class has; ``None`` where there are none.
        seed: the run's seed, for a policy that draws, or looks at runs of other seeds.
        epochs: after which epoch of the run the policy's stage ends; ``None`` where that is not
            known, as in a training loop of one's own.
        images: a hash of the images and their labels, for a policy that looks at other runs, whose
            reports have it too (:attr:`kdzoo.Report.data`); ``None`` where that is not known.
    """

    classes: tuple[str, ...]
    has_baseline: bool
    teacher_weight: float
    label_weight: float
    samples: tuple[int, ...] | None = None
    validation: tuple[int, ...] | None = None
    seed: int = 0
    epochs: int | None = None
    images: str | None = None

    def label_factor(self, teacher_factor: float) -> float:
        """The factor on a class's label terms that makes up for what it loses of the teacher's.

        Where nothing is left of these, the label terms weigh 1 under it, as in the baseline; where
        all is left, it is 1; in between it goes along a straight line.

        The teacher's weight is no measure of it: a hint's 100 and a soft target's 0.9 are on
        different scales.

        Args:
            teacher_factor: what is left to it of the teacher's terms; 0 for nothing.

        Raises:
            SpecError: there is no teacher to leave, or nothing else to learn from.
        """
        if not self.teacher_weight:
            raise SpecError(
                "decides about a teacher's terms, and there are none; add a loss that follows the "
                "teacher, or use `policy: all`"
            )
        if not self.label_weight:
            raise SpecError(
                "needs a label term beside the teacher's: a class that is not taught would "
                "learn from nothing"
            )
        missing = max(1 - self.label_weight, 0.0)
        return 1 + missing * (1 - teacher_factor) / self.label_weight


@dataclass(frozen=True)
class ClassWeights:
    """What a class policy returns, (C,) each.

    Attributes:
        teacher: how much of the teacher's terms each class gets, >= 0.
        label: how much of the label terms.
        columns: how much of each class is left in the soft targets of the other classes' samples,
            0 to 1: :attr:`Batch.columns`. Only of a policy with ``sets_columns``.
        states: the :class:`ClassState` of each class, to be shown; ``None`` for *untaught* where
            ``teacher`` is 0, and *taught* elsewhere.
    """

    teacher: Floats
    label: Floats
    columns: Floats | None = None
    states: npt.NDArray[np.int64] | None = None


@dataclass(frozen=True)
class ImageData:
    """A labelled image set that fits into memory.

    Attributes:
        train_images: (N, channels, height, width), uint8.
        train_targets: (N,), int64 in [0, C).
        test_images: (M, channels, height, width), uint8.
        test_targets: (M,), int64 in [0, C).
        classes: the C class names.
        mean: each channel's mean, in units of [0, 1].
        std: each channel's standard deviation, in units of [0, 1].
        crop: how many pixels a random crop of a training image may be off centre; 0 for no crops.
        flip: whether training images are mirrored at random.
    """

    train_images: Tensor
    train_targets: Tensor
    test_images: Tensor
    test_targets: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: int = 0
    flip: bool = False


@dataclass(frozen=True)
class ImageList:
    """Labelled images that the engine reads, one by one. For plain files: :meth:`of_files`.

    Attributes:
        read: from an image's row to the image, in any mode and size. It is called from several
            threads at once, or from other processes: it must be possible to pickle it. What it
            raises becomes a :class:`~kdzoo.DataError` that names the image.
        name: from an image's row to what a message calls it: its path.
        targets: (N,), int64 in [0, C).
        fingerprint: a hash of what tells these images from others, wherever they lie: of their
            relative paths and byte sizes, say. It stands for images that are never read as a whole.
        version: a hash that changes when any image changes: of times of modification too, say.
            ``None``: nothing that was decoded is kept for the next run.
    """

    read: Callable[[int], Image.Image]
    name: Callable[[int], str]
    targets: Tensor
    fingerprint: str
    version: str | None = None

    @classmethod
    def of_files(cls, root: Path, paths: Sequence[str], targets: Tensor) -> ImageList:
        """Images that are files of their own.

        Args:
            root: the directory that the set lies in.
            paths: N files, relative to it.
            targets: (N,), int64 in [0, C).

        Raises:
            DataError: a file is not there, or may not be looked at.
        """
        fingerprint, version = hashlib.sha256(), hashlib.sha256()
        for path, target in zip(paths, targets.tolist(), strict=True):
            try:
                found = os.stat(root / path)
            except OSError as error:
                raise DataError(f"{root / path}: {error.strerror}") from error
            record = f"{path!r} {found.st_size} {target}\n".encode()
            fingerprint.update(record)
            version.update(record + str(found.st_mtime_ns).encode())
        files = _Files(root, np.array([os.fsencode(path) for path in paths]))
        return cls(files.open, files.name, targets, fingerprint.hexdigest(), version.hexdigest())


@dataclass(frozen=True)
class _Files:
    root: Path
    paths: npt.NDArray[np.bytes_]  # one block, not a million objects: it goes to other processes

    def name(self, row: int) -> str:
        return str(self.root / os.fsdecode(self.paths[row]))

    def open(self, row: int) -> Image.Image:
        return Image.open(self.name(row))


@dataclass(frozen=True)
class ImageFiles:
    """A labelled image set that the engine reads.

    What fits into ``memory_gb`` is decoded once and held in memory: each image is scaled to cover
    ``size``, and cut at its centre. What does not fit is decoded anew in each epoch, while the
    network trains.

    Attributes:
        train: the training images.
        test: the test images.
        classes: the C class names.
        size: (height, width) that the networks see; ``None`` where all images have one size.
        channels: 3 for colour, 1 for grey.
        memory_gb: how many gigabytes (10^9 bytes) the decoded set, a byte per value, may have to
            be held in memory.
        mean: each channel's mean, in units of [0, 1]; ``None`` for that of the training images, or
            ImageNet's where they are not held in memory.
        std: each channel's standard deviation; ``None`` likewise.
        crop: how many pixels a random crop of a training image may be off centre; 0 for no crops,
            ``None`` for an eighth of the shorter side. Where the images are not held in memory any
            number but 0 stands for crops of random size, shape and place.
        flip: whether training images are mirrored at random.
    """

    train: ImageList
    test: ImageList
    classes: tuple[str, ...]
    size: tuple[int, int] | None = None
    channels: Literal[1, 3] = 3
    memory_gb: float = 4.0
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    crop: int | None = None
    flip: bool = True


@dataclass(frozen=True)
class RunInfo:
    """What an observer is told of the run that it watches.

    Attributes:
        name: the run's name.
        role: what the run is within the command that started it.
        directory: the run directory; an observer writes nowhere else.
        classes: the C class names.
        epochs: how many epochs the whole run has.
        steps: how many steps.
        epoch: how many epochs were done before; more than 0 where a run is continued.
        step: how many steps were.
        spec: the resolved spec, as YAML.
    """

    name: str
    role: Literal["teacher", "baseline", "student"]
    directory: Path
    classes: tuple[str, ...]
    epochs: int
    steps: int
    epoch: int
    step: int
    spec: str


@dataclass(frozen=True)
class EpochRecord:
    """One finished epoch.

    Attributes:
        epoch: its number, counted from 1.
        step: how many steps have been done.
        scalars: named numbers: ``lr``; ``accuracy/train``; with a teacher ``accuracy/teacher`` and
            ``agreement``; with validation images ``accuracy/validation``.
        curves: the teaching curves up to and including this epoch.
        loader_share: the share of the epoch's time in which the steps waited for their images. It
            comes from a clock: what must be reproducible leaves it out.
    """

    epoch: int
    step: int
    scalars: Mapping[str, float]
    curves: TeachingCurves
    loader_share: float
