"""The Distiller: what one training step computes, in anybody's training loop."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdzoo.distill.compiling import Backend, as_one_graph
from kdzoo.distill.curves import CurveRecorder
from kdzoo.distill.folding import fold_batch_norm
from kdzoo.distill.network import Network
from kdzoo.distill.rows import in_chunks
from kdzoo.distill.taps import Tapped
from kdzoo.distill.terms import Term, set_up_policy
from kdzoo.errors import PluginError, SpecError
from kdzoo.extend.bases import ClassPolicy
from kdzoo.extend.calling import calling
from kdzoo.extend.contracts import (
    Batch,
    ClassState,
    ClassWeights,
    Floats,
    Layer,
    Layers,
    Outputs,
    TeachingCurves,
)
from kdzoo.extend.declared import Declared
from kdzoo.extend.gathering import sizes

__all__ = ["Distiller", "Step"]


@dataclass(frozen=True)
class Step:
    """What one step returns.

    Attributes:
        terms: each term's value under the policy's class weights, without the term's own weight.
        total: the weighted sum of the terms: what to call ``backward()`` on.
        student: the student's outputs.
    """

    terms: dict[str, Tensor]
    total: Tensor
    student: Outputs


class Distiller(nn.Module):
    """Teacher + student + losses + class policy.

    Called with a batch it returns named terms and their total. It is a module whose parameters are
    the student's and the losses' own: give ``distiller.parameters()`` to an optimizer, call
    ``distiller.train()`` before and ``distiller.end_epoch()`` after each epoch. The teacher is no
    part of it: it stays in eval mode, learns nothing, and is absent from the state dict, which
    otherwise holds all that is needed to go on exactly.

    Args:
        teacher: images to logits (B, C); ``None`` trains with label terms alone.
        student: images to logits (B, C).
        terms: the losses; see :func:`kdzoo.terms`.
        example: (B, channels, height, width), a few images to probe the networks with.
        classes: the C class names, each another.
        num_samples: rows of the training set.
        targets: (num_samples,), the class of each of these rows, -1 for those that will not be
            trained on; for losses that look at other samples than the batch's.
        policy: an instance of a class policy, which decides which classes are taught; ``None``
            teaches all.
        baseline: (E, C), the accuracy of the student trained without the teacher, for each epoch
            to come, for policies that compare with it.
        validation_baseline: (E, C), the same on the validation images.
        validation_targets: (M,), the classes of the images that :meth:`validate` will be shown,
            for policies that look at them; ``None`` for no such images.
        similarity: whether a policy of a later stage needs the similarity of features; that of
            ``policy`` is known.
        teacher_layers: the layer names that the teacher's model declares.
        student_layers: the layer names that the student's model declares.

    Attributes:
        student: the student, as it was given.
        teacher_weights: (C,), how much of the teacher's terms each class gets from now on.
        label_weights: (C,), how much of the label terms.
        class_columns: (C,), see :attr:`kdzoo.ClassWeights.columns`.
        class_states: (C,), each class's :class:`~kdzoo.ClassState`.

    Raises:
        SpecError: the networks, the losses' layers, the classes and the policy do not fit together.
    """

    teacher_weights: Tensor
    label_weights: Tensor
    class_columns: Tensor
    class_states: Tensor

    def __init__(
        self,
        teacher: nn.Module | None,
        student: nn.Module,
        terms: Sequence[Term],
        *,
        example: Tensor,
        classes: Sequence[str],
        num_samples: int,
        targets: Tensor | None = None,
        policy: ClassPolicy | None = None,
        baseline: Floats | None = None,
        validation_baseline: Floats | None = None,
        validation_targets: Tensor | None = None,
        similarity: bool = False,
        teacher_layers: Layers = Layers(),
        student_layers: Layers = Layers(),
    ) -> None:
        super().__init__()
        if not isinstance(policy, ClassPolicy | None):
            raise SpecError(
                f"policy is {policy!r}; it must be an instance of a class policy, such as "
                'TLLM(TLLM.Params(signal="agreement")), or None'
            )
        for term in terms:
            if not isinstance(term, Term):
                raise SpecError(
                    f"a term is {term!r}; it must be a kdzoo.Term, and "
                    'kdzoo.terms(["ce", "kd"]) makes a list of them'
                )
        self.classes = tuple(classes)
        self.student = student
        self._floats = example.is_floating_point()
        if len(example) == 1:  # batch norm cannot be tried in train mode on one image
            example = example.expand(2, *example.shape[1:])
        pairs = [
            (pair, f'loss "{term.id}"') for term in reversed(terms) for pair in term.loss.layers
        ]
        readers = {pair.student: reader for pair, reader in pairs}  # the first, where there are two
        similarity = similarity or Declared.by(policy).needs_similarity
        compared: dict[Layer, str] = (
            {"penultimate": "class policy, similarity of features"} if similarity else {}
        )
        self._student = Tapped("student", student, student_layers, compared | readers, example)
        self._teacher: Tapped | None = None
        self._chunk: int | None = None
        if teacher is not None:
            shared = {id(p) for p in teacher.parameters()} & {id(p) for p in student.parameters()}
            if shared:
                raise SpecError("teacher and student share parameters; give the student its own")
            teacher.eval()
            teacher.requires_grad_(False)
            readers = {pair.teacher: reader for pair, reader in pairs}
            self._teacher = Tapped("teacher", teacher, teacher_layers, compared | readers, example)
        self._check_class_counts()
        self.losses = nn.ModuleDict()
        if targets is not None:
            self._check_targets(targets, num_samples)
        for term in terms:
            self._add(term, num_samples, targets, example)
        # What a component froze itself is nothing that a stage may set free.
        self._learnable = [name for name, parameter in self._named() if parameter.requires_grad]
        widths = None
        if similarity and self._teacher is not None:
            features = [t.shapes.features["penultimate"] for t in (self._student, self._teacher)]
            widths = math.prod(features[0]), math.prod(features[1])
        self.curves = CurveRecorder(len(self.classes), baseline, widths).to(example.device)
        self.curves.validation_baseline = validation_baseline
        for name in ("teacher_weights", "label_weights", "class_columns", "class_states"):
            self.register_buffer(name, torch.ones(len(self.classes), device=example.device))
        if policy is not None:
            set_up_policy(
                policy,
                terms,
                classes=self.classes,
                has_baseline=baseline is not None,
                samples=self._count(targets),
                validation=self._count(validation_targets),
            )
        self.begin_stage(terms, policy)

    @property
    def teacher(self) -> nn.Module | None:
        """The teacher, as it was given."""
        return self._teacher.network if self._teacher else None

    @property
    def chunk(self) -> int | None:
        """How many images the teacher sees at a time; ``None``: all of a batch."""
        return self._chunk

    def fold_teacher(self, example: Tensor) -> int:
        """Make the teacher faster, once its weights are final: its batch norms are folded into the
        layers before them, in the module that was given. Its answers stay within rounding, and
        the layers that a loss reads are left alone.

        Args:
            example: (B, channels, height, width), a few images to compare its answers on.

        Returns:
            How many batch norms were folded.
        """
        return 0 if self._teacher is None else fold_batch_norm(self._teacher, example)

    def chunk_teacher(self, images: Tensor) -> bool:
        """Let what the teacher says of an image be the same, bit for bit, whatever batch it is in.

        From now on it sees its images in chunks of one size, the last one filled up. Its weights
        are final by then, and it is folded if it will be. Where its answers then still depend on
        the other images of the chunk, it is left as it was.

        Args:
            images: (B, channels, height, width), a chunk: as many as it will see at a time.

        Returns:
            Whether it is so.
        """
        self._chunk = None
        whole = self.teach(images)
        self._chunk = len(images)
        others = self.teach(images.flip(0)[: max(len(images) // 2, 1)])  # in other company
        if not _same_rows(whole, others, len(images)):
            self._chunk = None
        return self._chunk is not None

    def teach(self, inputs: Tensor) -> Outputs:
        """What the teacher says about images, as :meth:`forward` asks it.

        Args:
            inputs: (B, channels, height, width).

        Raises:
            SpecError: there is no teacher.
        """
        if self._teacher is None:
            raise SpecError("there is no teacher to ask; give the Distiller one")
        network = self._teacher.network
        if network.training:  # somebody else's code called .train() on the teacher itself
            network.eval()
        # no_grad, not inference_mode: the student's backward pass must be able to save these.
        with torch.no_grad():
            if self._chunk is None:
                return self._teacher(inputs)
            return in_chunks(self._teacher, inputs, self._chunk)

    def begin_stage(
        self,
        terms: Sequence[Term],
        policy: ClassPolicy | None,
        *,
        backend: Backend | None = None,
    ) -> None:
        """From now on these terms and this policy apply.

        Args:
            terms: their losses must have been among those given at construction, so that a loss's
                own parameters persist over the stages that use it.
            policy: a policy after its ``setup``.
            backend: what torch compiles the steps with, as one graph: equal but for rounding.
                ``inductor`` makes them fast; ``eager`` only finds out whether they can be one.
                Batches of another size than the first are computed as they are without.
                What a step then says of the student's outputs passes no gradient. ``None``: they
                are not compiled.
        """
        self.terms = tuple(terms)
        self.policy = policy
        device = self.teacher_weights.device
        self._compiled = as_one_graph(self._measure, device, backend) if backend else None
        # How many images each process has of the first batch: a graph for an epoch's last one would
        # take as long to compile. All of them must compute it in one way, since they exchange.
        self._whole: tuple[int, ...] = ()
        self._first_epoch = len(self.curves.history)
        self._declared = Declared.by(policy)
        compares, on_validation = self._declared.needs_similarity, self._declared.needs_validation
        self.curves.compare_features(
            training=compares and not on_validation, validation=compares and on_validation
        )
        if policy is None:
            for values in (self.teacher_weights, self.label_weights, self.class_columns):
                values.fill_(1)
            self.class_states.fill_(ClassState.TAUGHT)
        else:
            with calling(f'policy "{policy.name}"'):
                self._set_class_weights(policy, policy.initial(len(self.classes)))

    def forward(
        self,
        inputs: Tensor,
        targets: Tensor,
        indices: Tensor | None = None,
        progress: float | None = None,
        taught: Outputs | None = None,
    ) -> Step:
        """One step's terms and total.

        Args:
            inputs: (B, channels, height, width).
            targets: (B,), int64 classes.
            indices: (B,), int64 rows of the training set; needed by losses that remember samples.
            progress: epochs since the stage began, fractional; warm-ups follow it. By default
                how often :meth:`end_epoch` was called since then.
            taught: what :meth:`teach` says about these inputs, where that is known already.

        Raises:
            SpecError: inputs, targets or ``taught`` do not fit together, there are no images, or a
                loss needs ``indices``.
            PluginError: a loss fails, or does not return one value per sample.
            RunError: the step cannot be compiled.
        """
        self._check_batch(inputs, targets)
        if taught is not None:
            self._check_taught(inputs, taught)
        if progress is None:
            progress = float(len(self.curves.history) - self._first_epoch)
        shared = sizes(len(inputs))
        self._whole = self._whole or shared
        if self._compiled is None or shared != self._whole:
            values, student = self._measure(inputs, targets, indices, progress, taught)
        else:
            values, student = self._compiled(inputs, targets, indices, progress, taught)
            if inputs.is_cuda:  # the next step writes over what is the graph's own
                values = {name: value.clone() for name, value in values.items()}
        # Not in the graph, which would be another one for each factor.
        total = student.logits.new_zeros(())
        for term in self.terms:
            total = total + term.factor(progress) * values[term.id]
        return Step(values, total, student)

    def _measure(
        self,
        inputs: Tensor,
        targets: Tensor,
        indices: Tensor | None,
        progress: float,
        taught: Outputs | None,
    ) -> tuple[dict[str, Tensor], Outputs]:
        """Each term's value, and the student's outputs; the curves take the batch in."""
        student = self._student(inputs)
        teacher = taught or (self.teach(inputs) if self._teacher else _NO_TEACHER)
        if self.training:
            self.curves.record(
                targets,
                indices,
                student,
                teacher if self._teacher else None,
                validation=False,
            )
        batch = Batch(
            inputs=inputs,
            targets=targets,
            indices=torch.full_like(targets, -1) if indices is None else indices,
            weights=self.teacher_weights[targets],
            progress=progress,
            columns=self.class_columns if self._declared.sets_columns else None,
        )
        labels = replace(batch, weights=self.label_weights[targets], columns=None)
        batches = {"teacher": batch, "label": labels}
        compared = _single(student), _single(teacher) if self._teacher else teacher
        values: dict[str, Tensor] = {}
        # Autocast is for the networks: it would take a loss's products in half precision.
        with torch.autocast(inputs.device.type, enabled=False):
            for term in self.terms:
                if term.loss.needs_indices and indices is None:
                    raise SpecError(f'loss "{term.id}" remembers samples: pass their indices')
                batch = batches[term.loss.guidance]
                rows = _checked_rows(term, *compared, batch)
                values[term.id] = (batch.weights * rows).sum() / len(targets)
        if torch.compiler.is_compiling():
            # What no term depends on would get a gradient of zeros, and its weights would decay.
            features = {layer: value.detach() for layer, value in student.features.items()}
            student = Outputs(student.logits.detach(), features)
        return values, student

    @torch.no_grad()
    def validate(self, inputs: Tensor, targets: Tensor, indices: Tensor | None = None) -> None:
        """Add one batch of validation images to the curves of the epoch that ends next.

        Both networks see it in eval mode, the teacher only if the policy asks for that.

        Args:
            inputs: (B, channels, height, width), not augmented.
            targets: (B,), int64 classes.
            indices: (B,), int64 rows of the training set that they were taken from.

        Raises:
            SpecError: inputs and targets do not fit together.
        """
        self._check_batch(inputs, targets)
        training = self.training
        self.eval()
        asked = self._declared.needs_validation and self._teacher is not None
        self.curves.record(
            targets,
            indices,
            self._student(inputs),
            self.teach(inputs) if asked else None,
            validation=True,
        )
        self.train(training)

    def end_epoch(self, learning_rate: float = math.nan) -> TeachingCurves:
        """Close the epoch: the curves get a point, and the policy gives new weights.

        Args:
            learning_rate: the epoch's, for policies that begin anew where it falls.

        Returns:
            The curves up to and including this epoch.

        Raises:
            SpecError: the policy looks at validation images, and there were none.
            PluginError: the policy fails, or its weights are not (C,), finite and at least 0.
        """
        applied = torch.stack([self.teacher_weights, self.label_weights, self.class_states], 1)
        self.curves.close_epoch(applied, learning_rate, self._first_epoch)
        curves = self.curves.curves()
        if self.policy is not None:
            with calling(f'policy "{self.policy.name}"'):
                if self._declared.needs_validation and curves.validation is None:
                    raise SpecError(
                        "looks at validation images: show them to `validate` before `end_epoch`"
                    )
                self._set_class_weights(self.policy, self.policy.update(curves))
        return curves

    def classes_in(self, state: ClassState) -> list[str]:
        """The names of the classes that are in a state from now on."""
        states = self.class_states.tolist()
        return [name for name, now in zip(self.classes, states, strict=True) if now == state]

    def learnable(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters under the names that a spec's ``learn`` uses (``student.stem.weight``):
        all but those that were frozen when the Distiller was made."""
        named = dict(self._named())
        for name in self._learnable:
            yield name, named[name]

    def _named(self) -> Iterator[tuple[str, nn.Parameter]]:
        bare = self.student.model if isinstance(self.student, Network) else self.student
        for name, parameter in bare.named_parameters():
            yield f"student.{name}", parameter
        for name, parameter in self.losses.named_parameters():
            yield f"losses.{name}", parameter

    def get_extra_state(self) -> dict[str, Any]:
        """The policy's state, and where the stage began, for the state dict."""
        state: dict[str, Any] = {}
        if self.policy is not None:
            with calling(f'policy "{self.policy.name}"'):
                state = self.policy.state_dict()
        return {"policy": state, "first_epoch": self._first_epoch}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`get_extra_state` gave; :meth:`begin_stage` comes before."""
        self._first_epoch = state["first_epoch"]
        if self.policy is not None:
            with calling(f'policy "{self.policy.name}", going on from its state,'):
                self.policy.load_state_dict(state["policy"])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Distiller:
        # The teacher is no submodule, but it goes where the student goes.
        if self._teacher is not None:
            self._teacher.network._apply(fn)  # type: ignore[no-untyped-call]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _add(self, term: Term, num_samples: int, targets: Tensor | None, example: Tensor) -> None:
        if term.id in self.losses:
            raise SpecError(f'two terms have the id "{term.id}"; give one of them another')
        if term.loss.guidance == "teacher" and self._teacher is None:
            raise SpecError(
                f'loss "{term.id}" follows a teacher, and there is none; pass a teacher, or remove '
                "the loss"
            )
        if hasattr(self.losses, term.id):
            raise SpecError(f'"{term.id}" cannot be the id of a term; choose another')
        if term.loss.needs_targets and targets is None:
            raise SpecError(
                f'loss "{term.id}" looks at other samples than the batch\'s: pass the targets of '
                "the training set"
            )
        term.loss.targets = None if targets is None else targets.cpu()
        shapes = self._student.shapes
        teachers = self._teacher.shapes if self._teacher else shapes
        with calling(f'loss "{term.id}"'):
            term.loss.setup(shapes, teachers, len(self.classes), num_samples)
        self.losses[term.id] = term.loss.to(example.device)

    def _check_targets(self, targets: Tensor, num_samples: int) -> None:
        if not isinstance(targets, Tensor) or targets.dtype != torch.int64:
            kind = targets.dtype if isinstance(targets, Tensor) else type(targets).__name__
            raise SpecError(f"targets are {kind}; they must be an int64 tensor")
        if targets.shape != (num_samples,):
            raise SpecError(
                f"targets are {tuple(targets.shape)}; they must be ({num_samples},), one per row "
                "of the training set"
            )
        low, high = int(targets.min()), int(targets.max())
        if low < -1 or high >= len(self.classes):
            raise SpecError(
                f"targets are {low} to {high}; they must be below {len(self.classes)}, or -1 for "
                "rows that will not be trained on"
            )

    def _check_batch(self, inputs: Tensor, targets: Tensor) -> None:
        if not len(inputs):
            raise SpecError("the batch has no images; leave it out")
        if self._floats and not inputs.is_floating_point():
            raise SpecError(
                f"images are {inputs.dtype}, and the example is of floats; give images in the same "
                "units, such as `images / 255`"
            )
        if targets.dtype != torch.int64 or targets.shape != inputs.shape[:1]:
            raise SpecError(
                f"targets are {targets.dtype} of shape {tuple(targets.shape)}; they must be int64 "
                f"({len(inputs)},), one per image"
            )
        if targets.device.type == "cpu" and not torch.compiler.is_compiling():
            low, high = int(targets.min()), int(targets.max())
            if low < 0 or high >= len(self.classes):
                raise SpecError(
                    f"targets are {low} to {high}; they must be 0 to {len(self.classes) - 1}"
                )

    def _check_taught(self, inputs: Tensor, taught: Outputs) -> None:
        if self._teacher is None:
            raise SpecError("outputs of a teacher are passed, and there is none")
        shapes = self._teacher.shapes
        wanted = {"logits": (taught.logits, shapes.logits)}
        for layer, shape in shapes.features.items():
            if layer not in taught.features:
                raise SpecError(f'the teacher\'s outputs: layer "{layer}" is missing')
            wanted[f'layer "{layer}"'] = taught.features[layer], shape
        for name, (tensor, shape) in wanted.items():
            if tensor.shape != (len(inputs), *shape):
                raise SpecError(
                    f"the teacher's outputs: {name} must be {(len(inputs), *shape)}, "
                    f"not {tuple(tensor.shape)}"
                )

    def _check_class_counts(self) -> None:
        if len(self.classes) < 2:
            count = "one name" if self.classes else "no names"
            raise SpecError(f"`classes` has {count}; at least 2 are needed")
        twice = [name for name, count in Counter(self.classes).items() if count > 1]
        if twice:
            raise SpecError(f'two classes have the same name, "{twice[0]}"; give each its own')
        for tapped in filter(None, (self._teacher, self._student)):
            (answered,) = tapped.shapes.logits
            if answered != len(self.classes):
                raise SpecError(
                    f"the {tapped.role} answers {answered} classes, "
                    f"but the data has {len(self.classes)}; give its last layer as many outputs as "
                    "`classes` has names"
                )

    def _count(self, targets: Tensor | None) -> tuple[int, ...] | None:
        """How many there are of each class."""
        if targets is None or not len(targets):
            return None
        known = targets[targets >= 0]
        return tuple(torch.bincount(known, minlength=len(self.classes)).tolist())

    def _set_class_weights(self, policy: ClassPolicy, weights: ClassWeights) -> None:
        if not isinstance(weights, ClassWeights):
            raise PluginError(
                f'policy "{policy.name}" answered {type(weights).__name__}; it must be '
                "kdzoo.ClassWeights(teacher=..., label=...)"
            )
        count = len(self.classes)
        states = weights.states
        if states is None:
            untaught = np.asarray(weights.teacher) == 0
            states = np.where(untaught, ClassState.UNTAUGHT, ClassState.TAUGHT)
        if weights.columns is not None and not self._declared.sets_columns:
            raise PluginError(
                f'policy "{policy.name}" answered columns, and its sets_columns is False: no loss '
                "has been asked whether it follows them; set it to True"
            )
        columns = np.ones(count) if weights.columns is None else weights.columns
        for name, what, vector in (
            ("teacher_weights", "teacher weights", weights.teacher),
            ("label_weights", "label weights", weights.label),
            ("class_columns", "columns", columns),
            ("class_states", "states", states),
        ):
            values = np.asarray(vector, dtype=np.float64)
            if values.shape != (count,):
                raise PluginError(
                    f'policy "{policy.name}" answered {what} of shape {values.shape}; they must '
                    f"be ({count},), one per class"
                )
            if not (np.isfinite(values).all() and (values >= 0).all()):
                raise PluginError(
                    f'policy "{policy.name}" answered {what} that are negative, NaN or infinite; '
                    "they must be finite and at least 0"
                )
            if name == "class_columns" and (values > 1).any():
                raise PluginError(
                    f'policy "{policy.name}" answered columns above 1; they say how much is left, '
                    "0 to 1"
                )
            if name == "class_states" and not np.isin(values, list(ClassState)).all():
                raise PluginError(
                    f'policy "{policy.name}" answered states that are none of kdzoo.ClassState: '
                    f"{sorted({*values.tolist()} - {*ClassState})}"
                )
            getattr(self, name).copy_(torch.from_numpy(values))


class _NoTeacher(Outputs):
    """Stands where the teacher's outputs would: reading from it is an error."""

    def __init__(self) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        raise PluginError(
            f'a loss with guidance = "label" reads teacher.{name}; there is no teacher'
        )


_NO_TEACHER = _NoTeacher()  # made before torch compiles: not each version can make one in a graph


def _same_rows(whole: Outputs, others: Outputs, count: int) -> bool:
    """Whether all outputs have a row for each of ``count`` images, and ``others`` are, bit for bit,
    the last of them in reverse order."""
    pairs = [(whole.logits, others.logits)]
    pairs += [(tensor, others.features[layer]) for layer, tensor in whole.features.items()]
    return all(
        len(one) == count and torch.equal(one.flip(0)[: len(other)], other) for one, other in pairs
    )


def _single(outputs: Outputs) -> Outputs:
    """Outputs in single precision at least; as they are, if they are in that."""
    tensors = [outputs.logits, *outputs.features.values()]
    if all(_widened(tensor) is tensor for tensor in tensors):
        return outputs
    features = {layer: _widened(tensor) for layer, tensor in outputs.features.items()}
    return Outputs(_widened(outputs.logits), features)


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _checked_rows(term: Term, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
    given = {} if torch.compiler.is_compiling() else _tensors(student, teacher, batch)
    before = {name: _version(tensor) for name, tensor in given.items()}
    with calling(f'loss "{term.id}"'):
        rows = term.loss(student, teacher, batch)
    for name, tensor in given.items():
        if _version(tensor) != before[name]:
            raise PluginError(
                f'loss "{term.id}" changes {name} in place; others are given the same: work on a '
                "copy"
            )
    shape = tuple(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
    if shape != tuple(batch.targets.shape):
        raise PluginError(
            f'loss "{term.id}" answered {shape}; it must be one value per sample, '
            f"({len(batch.targets)},)"
        )
    if not rows.is_floating_point():
        raise PluginError(f'loss "{term.id}" answered {rows.dtype}; it must be a floating type')
    return rows  # type: ignore[no-any-return]


def _tensors(student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
    """All that a loss is given, by the names it has for the loss's author."""
    found = {
        f"batch.{name}": tensor
        for name, tensor in vars(batch).items()
        if isinstance(tensor, Tensor)
    }
    for role, outputs in (("student", student), ("teacher", teacher)):
        if not isinstance(outputs, _NoTeacher):
            found[f"{role}.logits"] = outputs.logits
            for layer, tensor in outputs.features.items():
                found[f"{role}.features[{layer!r}]"] = tensor
    return found


def _version(tensor: Tensor) -> int:
    """How often it was changed in place; torch does not count that in inference mode."""
    return 0 if tensor.is_inference() else tensor._version
