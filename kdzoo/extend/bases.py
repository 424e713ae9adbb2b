"""The six kinds of component that a plugin can add: subclass one, list it in the kind's hook."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import NonNegativeFloat, NonNegativeInt
from torch import Tensor, nn

from kdzoo.extend.calling import calling
from kdzoo.extend.component import Component, Params
from kdzoo.extend.contracts import (
    Batch,
    ClassWeights,
    EpochRecord,
    ImageData,
    ImageFiles,
    LayerPair,
    Layers,
    Normalization,
    Outputs,
    PolicySetting,
    RunInfo,
    Shapes,
    TeachingCurves,
)

__all__ = ["Adapter", "ClassPolicy", "DataSource", "Loss", "ModelSource", "Observer"]


Invariance = Literal["identity", "shift", "duplication", "permutation"]


class Adapter(Component, nn.Module, ABC):
    """Brings a student feature into the shape of a teacher feature. Trained with the student."""

    kind = "adapter"

    def __init__(self, params: Params | None = None) -> None:
        nn.Module.__init__(self)
        Component.__init__(self, params)

    @abstractmethod
    def setup(self, student_shape: tuple[int, ...], teacher_shape: tuple[int, ...]) -> None:
        """Build the layers.

        Args:
            student_shape: the student feature's, without the batch: ``(channels, height, width)``,
                say.
            teacher_shape: the teacher feature's, likewise.

        Raises:
            SpecError: this adapter cannot bring the one shape into the other.
        """

    @abstractmethod
    def forward(self, feature: Tensor) -> Tensor:
        """``(B, *student_shape)`` to ``(B, *teacher_shape)``."""


class Loss(Component, nn.Module, ABC):
    """One term of the total loss.

    Attributes:
        guidance: whether the term follows the ``"teacher"`` or the ``"label"``: which of the class
            policy's two vectors applies to it. A run without a teacher has label terms only.
        default_layers: the features the loss reads unless the spec's ``layers`` says otherwise;
            none for a loss on logits. Their number is fixed by the spec, not by the class.
        default_adapter: the adapter that :meth:`new_adapter` makes unless the spec's ``adapter``
            says otherwise; ``None`` for a loss that makes none.
        default_weight: the term's published weight in the total loss.
        default_label_weight: the published weight of the label term beside it.
        default_warmup_epochs: over how many epochs its weight is published to rise.
        needs_indices: whether the loss reads ``batch.indices``; a training loop that has none is
            then refused.
        needs_targets: whether it reads ``targets`` in :meth:`setup`.
        takes_columns: whether it follows ``batch.columns``; a policy that sets them is refused
            beside a teacher-guided loss that does not.
        invariances: what the tests may hold it to. ``identity``: 0 where the student's outputs are
            the teacher's; ``shift``: blind to a constant that is added to a row of logits;
            ``duplication`` and ``permutation``: a sample's value stays when the batch is doubled,
            or comes in another order.
        layers: the layers of this instance, set by the engine before :meth:`setup`.
        targets: (num_samples,), the class of each row of the training set, -1 for rows that are not
            trained on; set by the engine before :meth:`setup`, ``None`` where it is not known.
    """

    kind = "loss"
    engine_keys = frozenset({"id", "weight", "warmup_epochs", "layers", "adapter"})
    guidance: ClassVar[Literal["teacher", "label"]] = "teacher"
    default_layers: ClassVar[tuple[LayerPair, ...]] = ()
    default_adapter: ClassVar[str | None] = None
    default_weight: ClassVar[NonNegativeFloat] = 1.0
    default_label_weight: ClassVar[NonNegativeFloat] = 1.0
    default_warmup_epochs: ClassVar[NonNegativeInt] = 0
    needs_indices: ClassVar[bool] = False
    needs_targets: ClassVar[bool] = False
    takes_columns: ClassVar[bool] = False
    invariances: ClassVar[frozenset[Invariance]] = frozenset({"duplication", "permutation"})

    def __init__(self, params: Params | None = None) -> None:
        nn.Module.__init__(self)
        Component.__init__(self, params)
        self.layers: tuple[LayerPair, ...] = self.default_layers
        self.targets: Tensor | None = None
        self.adapter_factory: Callable[[], Adapter] | None = None

    def setup(
        self, student_shapes: Shapes, teacher_shapes: Shapes, num_classes: int, num_samples: int
    ) -> None:
        """Build adapters and buffers; called once, before training.

        Args:
            student_shapes: the shapes of the student's outputs.
            teacher_shapes: the teacher's; a run without a teacher repeats the student's.
            num_classes: C.
            num_samples: rows of the training set; ``batch.indices`` are below it.

        Raises:
            SpecError: the loss cannot work with these networks.
        """
        del student_shapes, teacher_shapes, num_classes, num_samples

    def new_adapter(
        self, student_shape: tuple[int, ...], teacher_shape: tuple[int, ...]
    ) -> Adapter:
        """For :meth:`setup`: the adapter that the spec names, built for these shapes.

        Args:
            student_shape: the student feature's, without the batch.
            teacher_shape: the teacher feature's.

        Returns:
            A module to keep, or its parameters would not learn: ``(B, *student_shape)`` to
            ``(B, *teacher_shape)``.

        Raises:
            SpecError: the adapter cannot bring the one shape into the other.
            TypeError: the loss was not made from a spec's entry.
        """
        if self.adapter_factory is None:
            raise TypeError(
                f"{type(self).__name__} was not made from a spec's entry: use kdzoo.terms, or set "
                "its adapter_factory"
            )
        adapter = self.adapter_factory()
        with calling(f'adapter "{adapter.name}"'):
            adapter.setup(student_shape, teacher_shape)
        return adapter

    @abstractmethod
    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """One value per sample, (B,); their plain mean is the published loss.

        The teacher's outputs are detached. In a run without a teacher, reading ``teacher`` is an
        error. The engine multiplies row i by ``batch.weights[i]``, sums, and divides by B.

        The engine gives outputs in float32 at least, whatever the networks compute in, and calls
        losses outside of ``torch.autocast``. Who calls a loss alone may give it float16 or
        bfloat16: compute and return float32 at least. Nothing that is given may be changed in
        place: other losses are given the same. In several processes each has its own part of the
        batch; a loss that remembers samples gathers them (:func:`kdzoo.gathered`), so that its
        buffers stay the same everywhere.
        """


class ClassPolicy(Component, ABC):
    """Decides, class by class, how strongly the teacher is listened to.

    It sees the curves of training samples, and of validation images if it asks for them, never a
    test image; and is a pure function of them and of the state that :meth:`state_dict` returns.
    """

    kind = "policy"

    @property
    def needs_baseline(self) -> bool:
        """Whether it cannot do without ``curves.baseline``: a spec without ``baseline: true`` is
        then refused when it is read.

        This and the next three are asked before :meth:`setup`. They may be attributes of the class,
        or properties that depend on the params.
        """
        return False

    @property
    def needs_validation(self) -> bool:
        """Whether it reads ``curves.validation``; else there may be none, and the teacher is not
        asked about the validation images."""
        return False

    @property
    def needs_similarity(self) -> bool:
        """Whether it reads ``similarity``: on the validation images where it needs those, else on
        the training samples."""
        return False

    @property
    def sets_columns(self) -> bool:
        """Whether its :class:`~kdzoo.ClassWeights` have ``columns``."""
        return False

    def setup(self, setting: PolicySetting) -> None:
        """Called once, before anything is trained.

        Raises:
            SpecError: the policy cannot work here.
        """
        del setting

    def initial(self, num_classes: int) -> ClassWeights:
        """The weights of the first epoch: everything, unless the policy says otherwise."""
        return ClassWeights(teacher=np.ones(num_classes), label=np.ones(num_classes))

    @abstractmethod
    def update(self, curves: TeachingCurves) -> ClassWeights:
        """The weights of the next epoch; called once after each epoch with all curves so far."""

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`update` needs beside the curves: tensors, numbers, strings, lists, dicts."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        del state


class ModelSource(Component, ABC):
    """Builds one architecture.

    :meth:`build` draws its initial weights from torch's global generator, which the engine seeds.

    Attributes:
        weights_follow: whether all weights are about to be loaded over those that :meth:`build`
            brings, so that it need not fetch any; set by the engine.
    """

    kind = "model"
    engine_keys = frozenset(
        {"checkpoint", "normalize", "train", "losses", "seed", "run", "epoch", "check"}
    )
    weights_follow = False

    @abstractmethod
    def build(self, input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        """The network: normalized images ``(B, *input_shape)`` to logits (B, num_classes).

        Args:
            input_shape: (channels, height, width).
            num_classes: C.

        Raises:
            SpecError: the architecture cannot take such images or classes.
        """

    def layers(self) -> Layers:
        """The names of its layers, valid for what :meth:`build` returned."""
        return Layers()

    def normalization(self) -> Normalization | None:
        """How the images must be normalized for the weights that :meth:`build` brings; ``None``
        where that is open, and the data's own mean and standard deviation will do."""
        return None

    def pretrained(self) -> bool:
        """Whether :meth:`build` brings trained weights. Such a teacher needs neither ``train`` nor
        ``checkpoint``; if its classifier had to be replaced, its accuracy tells."""
        return False


class DataSource(Component, ABC):
    """Brings a labelled image set.

    Attributes:
        starters: complete specs for ``kdzoo init NAME``, as YAML, by a name that no other plugin
            has.
    """

    kind = "dataset"
    engine_keys = frozenset({"validation", "split_seed", "crop", "flip", "workers"})
    starters: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def load(self) -> ImageData | ImageFiles:
        """Read the images, or say how they are read.

        Raises:
            DataError: they are missing or damaged; the message names the path.
        """


class Observer(Component, ABC):
    """Watches one run: shows it, or writes it down. It cannot change the spec or the run."""

    kind = "observer"

    def start(self, run: RunInfo, state: Mapping[str, Any] | None) -> None:
        """The run begins, or goes on: then ``state`` is what the last :meth:`state_dict` gave,
        and whatever was written after that belongs to steps that will be done again."""
        del run, state

    def steps(
        self, run: RunInfo, first: int, values: Mapping[str, npt.NDArray[np.float32]]
    ) -> None:
        """Some more steps were done: step ``first`` (counted from 1) and those after it.

        Args:
            run: the run.
            first: the first of these steps.
            values: (S,), float32, one number per step, for each name (``loss/total``,
                ``loss/kd``, ...).
        """
        del run, first, values

    def epoch(self, run: RunInfo, record: EpochRecord) -> None:
        """An epoch was finished."""
        del run, record

    def state_dict(self) -> dict[str, Any]:
        """Called before each checkpoint: make durable what was written, and say how far it goes."""
        return {}

    def end(self, run: RunInfo, error: BaseException | None) -> None:
        """The run is over; ``error`` is what cut it off, or ``None``."""
        del run, error
