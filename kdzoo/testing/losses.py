"""The checks of losses."""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from kdzoo.distill.distiller import Distiller
from kdzoo.distill.terms import Term, make_loss
from kdzoo.extend.bases import Invariance, Loss
from kdzoo.extend.contracts import Batch, Layer, Outputs, Shapes
from kdzoo.extend.registry import registry
from kdzoo.spec.read import read_losses
from kdzoo.testing.checks import (
    Checks,
    ContractError,
    NotApplicable,
    after,
    require,
    slow,
    sometimes,
)
from kdzoo.testing.modules import (
    close,
    gradients,
    need_compiler,
    on_a_gpu,
    refuse_another_when_compiled,
    refuse_stray_tensors,
    refuse_unregistered,
    same,
    seeded,
    stored,
    with_gradient,
)
from kdzoo.testing.processes import in_two_processes
from kdzoo.testing.scene import (
    CLASSES,
    ROWS,
    SAMPLES,
    Columns,
    Labels,
    Net,
    Same,
    Shape,
    images,
    train,
)

__all__ = ["LossChecks"]

_MAPS: tuple[Shape, Shape] = ((6, 4, 4), (9, 4, 4))
_VECTORS: tuple[Shape, Shape] = ((6,), (9,))

_WIDE = (torch.float32, torch.float64)
"""What a loss may answer."""

_PROGRESS = 1.5  # where what rises from 0 is on its way


@dataclass(frozen=True)
class _Given:
    """What a loss is called with: the leaves of its gradient, and the batch."""

    student: Outputs
    teacher: Outputs
    batch: Batch

    def change(self, change: Callable[[Tensor], Tensor]) -> _Given:
        """Another student and teacher."""
        return replace(
            self, student=_mapped(self.student, change), teacher=_mapped(self.teacher, change)
        )

    def rows(self, order: Tensor) -> _Given:
        """Some samples of it, in this order."""
        batch = replace(
            self.batch,
            inputs=self.batch.inputs[order],
            targets=self.batch.targets[order],
            indices=self.batch.indices[order],
            weights=self.batch.weights[order],
        )
        return replace(self.change(lambda value: value[order]), batch=batch)

    def weighted(self, weights: Tensor) -> _Given:
        """Under these weights of the class policy."""
        return replace(self, batch=replace(self.batch, weights=weights.to(self.batch.weights)))


class LossChecks(Checks[Loss]):
    """What is asked of a loss.

    It is given 6 samples of 5 classes; the training set has 30 rows, 6 of each class.

    Args:
        component: the class that is checked.
        entry: what a spec says of it beside ``use``.
        folder: an empty directory.
        shapes: the student's and the teacher's shape of each layer that the loss reads; by default
            vectors for the penultimate layer, and maps for all others.
    """

    base = Loss

    def __init__(
        self,
        component: type[Loss],
        entry: Mapping[str, Any] | Callable[[Path], Mapping[str, Any]],
        folder: Path,
        *,
        shapes: Mapping[Layer, tuple[Shape, Shape]] | None = None,
    ) -> None:
        super().__init__(component, entry, folder)
        self.given_shapes = dict(shapes or {})

    def one_value_a_sample(self) -> None:
        """It answers (B,) floats, finite, in train and eval mode, and for a single sample too."""
        given = self._given()
        for training, count in ((True, ROWS), (False, ROWS), (False, 1)):
            loss = self._loss().train(training)
            rows = self._call(loss, given.rows(torch.arange(count)))
            require(rows.dtype in _WIDE, f"it answered {rows.dtype} from float32")
            require(bool(rows.isfinite().all()), "it answered NaN or infinity for ordinary outputs")
            alike = count > 1 and bool((rows == rows[0]).all() and rows[0] != 0)
            require(
                not alike,
                "every sample has the same value, and no two are alike; is it averaged over the "
                "batch? The engine does that, after it has weighted each row",
            )

    @after("one_value_a_sample")
    def gradients(self) -> None:
        """A gradient reaches each layer of the student that is read, and none is asked of the
        teacher. It is finite for equal outputs and for features of 0, too."""
        given = self._given()
        teacher = _mapped(given.teacher, Tensor.clone)
        rows = _rows(self._loss(), _mapped(given.student, _copied), teacher, _cloned(given.batch))
        torch.autograd.backward(with_gradient(rows).sum())

        def reached(leaf: Tensor) -> bool:
            return leaf.grad is not None and bool(leaf.grad.abs().sum() > 0)

        require(any(map(reached, _leaves(given.student))), "no gradient reaches the student")
        for layer, feature in given.student.features.items():
            require(
                reached(feature),
                f"no gradient reaches the student's layer {layer!r}, which is one of its layers: "
                "something detaches it, or nothing reads it",
            )
        require(
            not any(value.requires_grad for value in _leaves(teacher)),
            "it asks for a gradient of the teacher's outputs; the teacher learns nothing",
        )
        for loss, special, where in self._where_norms_end():
            rows = self._call(loss, special)
            leaves = [leaf for leaf in _leaves(special.student) if leaf.requires_grad]
            leaves += [parameter for parameter in loss.parameters() if parameter.requires_grad]
            known = torch.autograd.grad(with_gradient(rows).sum(), leaves, allow_unused=True)
            require(
                all(gradient is None or bool(gradient.isfinite().all()) for gradient in known),
                f"its gradient is not finite {where}: add a small constant below a root or a "
                "logarithm, and to what is divided by",
            )

    @after("one_value_a_sample")
    def parameters(self) -> None:
        """All that it learns is registered in ``setup``, and all that is registered is used."""
        loss, given = self._loss(), self._given()
        before = set(dict(loss.named_parameters()))
        teacher = _mapped(given.teacher, Tensor.clone)
        rows = _rows(loss, _mapped(given.student, _copied), teacher, _cloned(given.batch))
        new = set(dict(loss.named_parameters())) - before
        require(
            not new,
            f"its parameters {', '.join(sorted(new))} came in the first step, when the optimizer "
            "was there already: make them in setup",
        )
        refuse_unregistered(loss, rows.sum(), [*_leaves(given.student), *_leaves(teacher)])

    @after("one_value_a_sample")
    def buffers(self) -> None:
        """The tensors that it keeps are buffers."""
        loss = self._loss()
        self._call(loss, self._given())
        refuse_stray_tensors(loss, but=frozenset({"targets"}))

    def leaves_its_inputs_alone(self) -> None:
        """It changes nothing of what it is given: outputs, targets, indices, weights, images."""
        given = self._given().weighted(torch.linspace(0.2, 1.7, ROWS))
        if self.component.takes_columns:
            columns = torch.linspace(0, 1, CLASSES)
            given = replace(given, batch=replace(given.batch, columns=columns))
        student, teacher = _mapped(given.student, _copied), _mapped(given.teacher, Tensor.clone)
        batch = _cloned(given.batch)
        self._loss()(student, teacher, batch)
        for one, other, what in (
            (student, given.student, "the student's outputs"),
            (teacher, given.teacher, "the teacher's outputs"),
        ):
            untouched = all(map(torch.equal, _leaves(one), _leaves(other)))
            require(untouched, f"it changed {what} in place: other losses read them too")
        for name, value in _tensors(given.batch).items():
            untouched = torch.equal(getattr(batch, name), value)
            require(untouched, f"it changed batch.{name} in place: other losses read it too")

    @after("one_value_a_sample")
    def deterministic(self) -> None:
        """All that it draws comes from torch's global generator, which it never seeds."""
        given = self._given()
        answers, states = [], []
        for seed in (1, 1, 2):
            loss = self._loss()

            def step(loss: Loss = loss) -> tuple[list[Tensor], Tensor]:
                rows = self._call(loss, given)
                leaves = [leaf for leaf in _leaves(given.student) if leaf.requires_grad]
                gradients = torch.autograd.grad(
                    with_gradient(rows).sum(), leaves, allow_unused=True
                )
                known = [gradient for gradient in gradients if gradient is not None]
                return [rows.detach(), *known], torch.get_rng_state()

            answer, state = seeded(seed, step)
            answers.append(answer)
            states.append(state)
        require(
            same(answers[0], answers[1]),
            "its answers differ under the same seed: draw from torch's global generator alone",
        )
        require(
            not torch.equal(states[1], states[2]),
            "it seeds torch's global generator, from which the student's dropout draws too",
        )

    @after("deterministic")
    def evaluation(self) -> None:
        """In eval mode it changes nothing of its own, and equal calls have equal answers."""
        loss, given = self._loss(), self._given()
        self._call(loss, given)
        before = copy.deepcopy(loss.eval().state_dict())
        first, again = (self._quietly(loss, given) for _ in range(2))
        advice = "remember samples only where self.training"
        require(same(before, loss.state_dict()), f"its state changed in eval mode: {advice}")
        require(same(first, again), f"in eval mode the second call answers otherwise: {advice}")

    @sometimes
    @after("deterministic")
    def declared_needs(self) -> None:
        """What it does not declare that it needs, it does without."""
        if self.component.needs_indices and self.component.needs_targets:
            raise NotApplicable("it declares that it needs both indices and targets")
        given = self._given()
        batch = given.batch
        if not self.component.needs_indices:
            batch = replace(batch, indices=torch.full_like(batch.indices, -1))
        rows = seeded(1, lambda: self._call(self._loss(), given))
        try:
            loss = self._loss(targets_known=self.component.needs_targets)
            without = seeded(1, lambda: self._call(loss, replace(given, batch=batch)))
        except Exception as error:
            raise ContractError(
                "it fails where there are no indices or no targets; declare needs_indices = True, "
                f"or needs_targets = True ({type(error).__name__}: {error})"
            ) from error
        require(
            torch.equal(rows, without),
            "it reads batch.indices, or the targets of all rows: declare needs_indices = True, or "
            "needs_targets = True",
        )

    @after("leaves_its_inputs_alone", "deterministic")
    def state_dict(self) -> None:
        """Its state is plain data, and gives another instance the same answers."""
        trained, given = self._trained(), self._given()
        state = stored("its state", trained.state_dict())
        fresh = self._loss(seed=7)
        try:
            fresh.load_state_dict(state)
        except RuntimeError as error:
            raise ContractError(f"another instance cannot take its state: {error}") from error
        self._compare(trained, fresh, given, "another instance that has its state")

    @after("leaves_its_inputs_alone", "deterministic")
    def copies(self) -> None:
        """A deep copy answers the same, and goes its own way."""
        trained, given = self._trained(), self._given()
        try:
            copied = copy.deepcopy(trained)
        except Exception as error:
            raise ContractError(f"it cannot be copied: {type(error).__name__}: {error}") from error
        self._compare(trained, copied, given, "its deep copy")
        before = copy.deepcopy(trained.state_dict())
        self._call(copied.train(), given)
        require(same(before, trained.state_dict()), "it shares its state with a deep copy")

    @after("leaves_its_inputs_alone", "deterministic")
    def resume(self) -> None:
        """Training that was cut off ends as if it had not been, bit for bit."""
        whole = self._distiller()
        train(whole, [0, 1])
        cut = self._distiller()
        train(cut, [0])
        state = copy.deepcopy(cut.state_dict())
        again = self._distiller(seed=7)
        again.load_state_dict(state)
        train(again, [1])
        require(
            same(whole.state_dict(), again.state_dict()),
            "training that goes on from its state ends elsewhere: what it remembers between steps "
            "must be in a persistent buffer, or in get_extra_state",
        )

    @after("gradients", "deterministic", "evaluation")
    def class_weights(self) -> None:
        """It leaves its own rows' weights to the engine, and weights the partners of a sample."""
        given, loss = self._precisely()
        ones = torch.ones(ROWS)
        generator = torch.Generator().manual_seed(0)
        first, second = torch.rand(2, ROWS, generator=generator).unbind()
        plain = self._quietly(loss, given.weighted(ones))
        under_first = self._quietly(loss, given.weighted(first))
        if not self._compares_samples(loss, given):
            require(
                close(plain, under_first, 1e-6),
                "its rows depend on batch.weights; the engine applies row i's weight itself, and "
                "there are no partners here that the loss would have to weight",
            )
            return
        require(
            not close(plain, under_first, 1e-6),
            "it compares samples with each other and does not weight each partner j by "
            "batch.weights[j]: a class that is not taught still acts through the others",
        )
        none = self._quietly(loss, given.weighted(0 * ones))
        under_second = self._quietly(loss, given.weighted(second))
        both = self._quietly(loss, given.weighted(first + second))
        require(
            close(both + none, under_first + under_second, 1e-5),
            "it is not linear in the partners' weights: keep the published denominator, and take "
            "normalizers from all rows whatever they weigh",
        )

    @sometimes
    @after("deterministic", "evaluation")
    def columns(self) -> None:
        """As declared (``takes_columns``): it follows ``batch.columns``, in the rows of the other
        classes alone."""
        if not self.component.takes_columns:
            raise NotApplicable("it does not declare that it takes columns")
        given, loss = self._precisely()
        targets = given.batch.targets

        def under(columns: Tensor) -> Tensor:
            batch = replace(given.batch, columns=columns)
            return self._quietly(loss, replace(given, batch=batch))

        plain, ones = self._quietly(loss, given), torch.ones(CLASSES)
        require(
            close(under(ones), plain, _tolerance(plain)),
            "its values change under columns of 1, which take nothing away",
        )
        own = targets == targets[0]
        rows = under(ones.index_fill(0, targets[:1], 0.0))
        require(
            close(rows[own], plain[own], _tolerance(plain)),
            "a column of 0 changes the values of the class's own samples: batch.columns is about "
            "the samples of the other classes",
        )
        require(
            bool((rows[~own] != plain[~own]).all()),
            "a column of 0 changes nothing for samples of other classes, and it declares that it "
            "follows batch.columns (takes_columns)",
        )

    @sometimes
    @after("one_value_a_sample")
    def identity(self) -> None:
        """As declared: 0 where the student's outputs are the teacher's."""
        self._declared("identity")
        given, loss = self._precisely(alike=True)
        rows = self._quietly(loss, _equal(given, loss))
        nothing = _tolerance(rows)
        require(bool(rows.abs().max() < nothing), f"it is {rows.tolist()} for equal outputs, not 0")
        other = self._quietly(loss, given)
        require(bool((other.abs() > 1e-3).all()), "it is 0 for outputs that differ, too")

    @sometimes
    @after("deterministic", "evaluation")
    def shift(self) -> None:
        """As declared: blind to a constant that is added to a row of logits."""
        self._declared("shift")
        given, loss = self._precisely()
        constants = torch.linspace(-30, 30, ROWS)[:, None].to(given.student.logits)
        shifted = replace(
            given,
            student=replace(given.student, logits=given.student.logits + constants),
            teacher=replace(given.teacher, logits=given.teacher.logits - constants),
        )
        self._same_rows(loss, given, shifted, torch.arange(ROWS), "a constant added to its logits")

    @sometimes
    @after("deterministic", "evaluation")
    def duplication(self) -> None:
        """As declared: a sample's value stays when the batch is doubled."""
        self._declared("duplication")
        given, loss = self._precisely()
        twice = torch.arange(2 * ROWS) % ROWS
        self._same_rows(loss, given, given.rows(twice), twice, "the batch being doubled")

    @sometimes
    @after("deterministic", "evaluation")
    def permutation(self) -> None:
        """As declared: a sample's value stays when the batch comes in another order."""
        self._declared("permutation")
        given, loss = self._precisely()
        order = torch.tensor([3, 1, 0, 5, 2, 4])
        self._same_rows(loss, given, given.rows(order), order, "another order of the batch")

    @sometimes
    @after("deterministic", "evaluation")
    def channels_last(self) -> None:
        """Maps that have their channels last in memory are read as well."""
        given = self._given()
        if not any(value.ndim == 4 for value in given.student.features.values()):
            raise NotApplicable("it reads no maps")

        def laid(value: Tensor) -> Tensor:
            if value.ndim != 4:
                return value
            return value.detach().contiguous(memory_format=torch.channels_last)

        loss = self._loss().eval()
        plain = seeded(1, lambda: self._call(loss, given))
        try:
            rows = seeded(1, lambda: self._call(loss, given.change(laid)))
        except RuntimeError as error:
            raise ContractError(
                f"it cannot read maps whose channels are last in memory ({error}); use reshape or "
                "flatten, not view"
            ) from error
        require(close(rows, plain), "its rows change when maps have their channels last in memory")

    @after("one_value_a_sample")
    def single_precision(self) -> None:
        """Finite, with a finite gradient, for very large outputs."""
        self._at_extremes(torch.float32)

    @after("one_value_a_sample")
    def half_precision(self) -> None:
        """The same for float16 under autocast; what it answers is float32 at least."""
        self._at_extremes(torch.float16)

    @after("one_value_a_sample")
    def bfloat16(self) -> None:
        """The same for bfloat16 under autocast; what it answers is float32 at least."""
        self._at_extremes(torch.bfloat16)

    @after("one_value_a_sample")
    def device(self) -> None:
        """It runs on a GPU without waiting for it; the GPU is a simulated one."""
        given, loss = self._given(), self._loss()

        def arguments(device: torch.device) -> tuple[Any, ...]:
            def there(value: Tensor) -> Tensor:
                return torch.empty(value.shape, dtype=value.dtype, device=device)

            moved = given.change(there)
            batch = Batch(
                inputs=there(given.batch.inputs),
                targets=there(given.batch.targets),
                indices=there(given.batch.indices),
                weights=there(given.batch.weights),
                progress=_PROGRESS,
                columns=there(torch.ones(CLASSES)) if self.component.takes_columns else None,
            )
            return moved.student, moved.teacher, batch

        on_a_gpu(loss, arguments, "it does not run")

    @after("one_value_a_sample", "leaves_its_inputs_alone")
    def alone(self) -> None:
        """It trains a student as the only term of a Distiller; a label loss without a teacher."""
        distiller = self._distiller()
        before = copy.deepcopy(distiller.student.state_dict())
        totals = train(distiller, [0, 1])
        require(
            bool(torch.stack(totals).isfinite().all()),
            "its term became NaN or infinite in training",
        )
        require(
            not same(before, distiller.student.state_dict()), "the student learns nothing from it"
        )

    @after("leaves_its_inputs_alone", "deterministic")
    def compiled(self) -> None:
        """A step with it is compiled as one graph, with the same gradients (``aot_eager``)."""
        self._compiled("aot_eager", masked=False)
        if self.component.takes_columns:
            self._compiled("aot_eager", masked=True)

    @slow
    @sometimes
    @after("leaves_its_inputs_alone", "deterministic")
    def compiled_for_real(self) -> None:
        """The same with torch's own compiler."""
        need_compiler()
        self._compiled("inductor", masked=self.component.takes_columns)

    @sometimes
    @after("leaves_its_inputs_alone", "deterministic")
    def two_processes(self) -> None:
        """Two processes that share the batches end with the same parameters and buffers."""
        first, second = in_two_processes(
            _train_in_two, self.component, self.entry, self.given_shapes
        )
        apart = sorted(name for name in first if first[name] != second[name])
        require(
            not apart,
            f"after training in two processes {', '.join(apart)} differ between them: what is "
            "remembered of a batch must be gathered from all processes first",
        )

    # What the checks are made of.

    def _use(self) -> None:
        loss = self._trained()
        with torch.no_grad():
            self._call(loss.eval(), self._given())

    def _make(self) -> Loss:
        with registry().lent(self.component):
            (entry,) = read_losses([{"use": self.component.name, **self.entry}])
            return make_loss(entry)

    def _shapes(self, loss: Loss) -> tuple[dict[Layer, Shape], dict[Layer, Shape]]:
        """The shape of each layer that is read, of the student and of the teacher."""
        found: tuple[dict[Layer, Shape], dict[Layer, Shape]] = ({}, {})
        for pair in loss.layers:
            for role, layer in enumerate((pair.student, pair.teacher)):
                usual = {"penultimate": _VECTORS, "head": ((CLASSES,), (CLASSES,))}
                shapes = self.given_shapes.get(layer) or usual.get(str(layer), _MAPS)
                found[role][layer] = shapes[role]
        return found

    def _loss(self, seed: int = 0, *, targets_known: bool = True, alike: bool = False) -> Loss:
        """A loss after its setup; ``alike`` where the student is shaped as the teacher is."""

        def made() -> Loss:
            loss = self._make()
            loss.targets = torch.arange(SAMPLES) % CLASSES if targets_known else None
            student, teacher = self._shapes(loss)
            if alike:
                loss.adapter_factory = Same if loss.adapter_factory else None
                student = {pair.student: teacher[pair.teacher] for pair in loss.layers}
            with registry().lent(self.component):
                loss.setup(
                    Shapes((CLASSES,), student), Shapes((CLASSES,), teacher), CLASSES, SAMPLES
                )
            return loss

        return seeded(seed, made)

    def _given(self, *, alike: bool = False) -> _Given:
        """Random outputs in which nothing is special."""
        loss = self._make()
        student, teacher = self._shapes(loss)
        if alike:
            student = {pair.student: teacher[pair.teacher] for pair in loss.layers}

        def outputs(shapes: Mapping[Layer, Shape], seed: int) -> Outputs:
            generator = torch.Generator().manual_seed(seed)

            def drawn(shape: Shape) -> Tensor:
                return 3 * torch.randn(ROWS, *shape, generator=generator)

            logits = drawn((CLASSES,))
            features = {layer: drawn(shape) for layer, shape in shapes.items() if layer != "head"}
            if "head" in shapes:
                features["head"] = logits
            return Outputs(logits, features)

        indices = torch.tensor([23, 4, 17, 6, 11, 28])
        inputs, targets = images(indices)
        ones = torch.ones(ROWS)
        batch = Batch(inputs, targets, indices, ones, progress=_PROGRESS)
        asked = _mapped(outputs(student, 1), lambda value: value.requires_grad_())
        return _Given(asked, outputs(teacher, 2), batch)

    def _call(self, loss: Loss, given: _Given) -> Tensor:
        """The loss of copies: what is changed in place is nobody else's."""
        student, teacher = _mapped(given.student, _copied), _mapped(given.teacher, Tensor.clone)
        return _rows(loss, student, teacher, _cloned(given.batch))

    def _quietly(self, loss: Loss, given: _Given) -> Tensor:
        """What it answers under the same draws each time, without a gradient."""
        with torch.no_grad():
            return seeded(1, lambda: self._call(loss, given))

    def _trained(self) -> Loss:
        """A loss after an epoch."""
        distiller = self._distiller()
        train(distiller, [0])
        (loss,) = distiller.losses.children()
        assert isinstance(loss, Loss)
        return loss

    def _distiller(self, seed: int = 0, *terms: Term) -> Distiller:
        """Small networks, with the loss between them."""
        loss = self._make()
        student, teacher = self._shapes(loss)
        teaches = seeded(100, lambda: Net(teacher))  # never what the student begins as

        def made() -> Distiller:
            learns = Net(student)
            with registry().lent(self.component):
                return Distiller(
                    None if loss.guidance == "label" else teaches,
                    learns,
                    [Term(loss.name, loss), *terms],
                    example=images(torch.arange(2))[0],
                    classes=[str(label) for label in range(CLASSES)],
                    num_samples=SAMPLES,
                    targets=torch.arange(SAMPLES) % CLASSES if loss.needs_targets else None,
                    teacher_layers=teaches.layers,
                    student_layers=learns.layers,
                )

        return seeded(seed, made)

    def _compare(self, one: Loss, other: Loss, given: _Given, who: str) -> None:
        rows, others = (self._quietly(loss.eval(), given) for loss in (one, other))
        require(torch.equal(rows, others), f"{who} answers otherwise")

    def _declared(self, invariance: Invariance) -> None:
        if invariance not in self.component.invariances:
            raise NotApplicable(f"it does not declare the invariance {invariance}")

    def _precisely(self, *, alike: bool = False) -> tuple[_Given, Loss]:
        """A loss in eval mode, in double precision if it keeps that: there batch norm, and what is
        remembered, know nothing of the batch."""
        given, loss = self._given(alike=alike), self._loss(alike=alike).eval()
        try:
            wide = given.change(lambda value: value.detach().double())
            double = self._loss(alike=alike).eval().double()
            if self._quietly(double, wide).dtype == torch.float64:
                return wide, double
        except Exception:  # double precision is nothing that a loss must know of
            pass
        return given.change(Tensor.detach), loss

    def _where_norms_end(self) -> Iterator[tuple[Loss, _Given, str]]:
        """Losses, and ordinary situations in which a root or a quotient may have no gradient."""
        loss = self._make()
        student, teacher = self._shapes(loss)
        pairs = [(student[pair.student], teacher[pair.teacher]) for pair in loss.layers]
        # Else no student can be shaped as the teacher is, and the logits alone are equal.
        alike = len({pair.student for pair in loss.layers}) == len(pairs) and all(
            len(one) == len(other) for one, other in pairs
        )
        given, loss = self._given(alike=alike), self._loss(alike=alike)
        equal = _equal(given, loss) if alike else given
        logits = given.teacher.logits
        equal = replace(given, student=replace(equal.student, logits=logits))
        asked = replace(equal, student=_mapped(equal.student, _asked))
        yield loss, asked, "where the student's outputs are the teacher's"
        if loss.layers:
            loss, given = self._loss(), self._given()
            features = {
                layer: value if layer == "head" else torch.zeros_like(value)
                for layer, value in given.student.features.items()
            }
            student_ = _mapped(Outputs(given.student.logits, features), _asked)
            yield loss, replace(given, student=student_), "where the student's features are all 0"

    def _same_rows(
        self, loss: Loss, given: _Given, changed: _Given, order: Tensor, change: str
    ) -> None:
        plain, rows = self._quietly(loss, given), self._quietly(loss, changed)
        require(
            close(rows, plain[order], _tolerance(rows)),
            f"its values change with {change}, and it declares that they do not (invariances)",
        )

    def _compares_samples(self, loss: Loss, given: _Given) -> bool:
        """Whether one sample's value depends on what the student says of another."""
        student = _mapped(given.student, lambda value: value.detach().requires_grad_())
        rows = seeded(1, lambda: self._call(loss, replace(given, student=student)))
        gradients = torch.autograd.grad(with_gradient(rows)[0], _leaves(student), allow_unused=True)
        return any(g is not None and bool(g[1:].abs().max() > 0) for g in gradients)

    def _at_extremes(self, dtype: torch.dtype) -> None:
        given, loss = self._given(), self._loss()
        sign = torch.where(torch.arange(CLASSES) % 2 == 0, 1e4, -1e4).expand(ROWS, -1)
        large = 50.0 if dtype == torch.float16 else 1e4  # products of float16 end at 65504

        def outputs(given: Outputs, logits: Tensor) -> Outputs:
            features = {
                layer: (large * v.detach()).to(dtype) for layer, v in given.features.items()
            }
            return Outputs(logits.to(dtype), features)

        student = outputs(given.student, sign)
        teacher = outputs(given.teacher, -sign)
        leaves = [value.requires_grad_() for value in _leaves(student)]
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            rows = self._call(loss, replace(given, student=student, teacher=teacher))
        require(
            rows.dtype in _WIDE,
            f"it answers {rows.dtype} for outputs in {dtype}: compute it in single precision, "
            "logits.float() and feature.float() first",
        )
        require(bool(rows.isfinite().all()), f"it is not finite for large outputs in {dtype}")
        gradients = torch.autograd.grad(with_gradient(rows).mean(), leaves, allow_unused=True)
        for gradient in gradients:
            require(
                gradient is None or bool(gradient.isfinite().all()),
                f"its gradient is not finite for large outputs in {dtype}",
            )

    def _compiled(self, backend: str, *, masked: bool) -> None:
        def made() -> Distiller:
            distiller = self._distiller().train()
            if masked:
                distiller.begin_stage(distiller.terms, Columns())
            return distiller

        refuse_another_when_compiled(
            made,
            _two_steps,
            backend,
            f"a step with it{' under columns' * masked}",
            "What the backward pass reads of a buffer must not be overwritten in the step, and a "
            "copy is none there: let an operation of your own (torch.library.custom_op) take it",
        )


def _two_steps(module: Callable[..., Any], distiller: Distiller) -> dict[str, Tensor]:
    """The totals and gradients of two steps on the same samples: what the first remembers of them
    the second reads."""
    indices = torch.arange(ROWS)
    inputs, targets = images(indices)
    optimizer = torch.optim.SGD(distiller.parameters(), lr=1e-3)
    found = {}
    for number in (1, 2):
        optimizer.zero_grad()
        answer = seeded(number, lambda: module(inputs, targets, indices, _PROGRESS))
        torch.autograd.backward(with_gradient(answer.total))
        found[f"the total of step {number}"] = answer.total.detach()[None]
        for whose, part in (("the student's", distiller.student), ("its own", distiller.losses)):
            found[f"{whose} gradients of step {number}"] = gradients(part)
        optimizer.step()
    return found


def _train_in_two(
    rank: int,
    component: type[Loss],
    entry: Mapping[str, Any],
    shapes: Mapping[Layer, tuple[Shape, Shape]],
) -> dict[str, str]:
    """In one of two processes: hashes of what a student and its loss are after a few steps."""
    checks = LossChecks(component, entry, Path(), shapes=shapes)
    # The labels reach every parameter of the student, whatever the loss reads of it.
    distiller = checks._distiller(0, Term("labels", Labels())).train()
    with warnings.catch_warnings():
        # A later torch has another word for it, which this one's oldest does not know.
        warnings.simplefilter("ignore", FutureWarning)
        shared = DistributedDataParallel(distiller, broadcast_buffers=False)
    optimizer = torch.optim.SGD(distiller.parameters(), lr=1e-3)
    rows = torch.arange(2 * ROWS)
    for indices in rows.view(2, ROWS):  # the second process has the shorter part
        torch.manual_seed(int(indices[0]))
        own = indices[:4] if rank == 0 else indices[4:]
        inputs, targets = images(own)
        optimizer.zero_grad()
        shared(inputs, targets, own, _PROGRESS).total.backward()
        optimizer.step()
    return {name: _hash(value) for name, value in _lasting(distiller)}


def _lasting(distiller: Distiller) -> list[tuple[str, Tensor]]:
    """Parameters, and the losses' buffers; batch norm's follow each process's own batches."""
    norms = {
        id(buffer)
        for module in distiller.losses.modules()
        if isinstance(module, _BatchNorm)
        for buffer in module.buffers()
    }
    buffers = [
        (f"losses.{name}", buffer)
        for name, buffer in distiller.losses.named_buffers()
        if id(buffer) not in norms
    ]
    return [*distiller.named_parameters(), *buffers]


def _hash(value: Tensor) -> str:
    return hashlib.sha256(value.detach().numpy().tobytes()).hexdigest()


def _rows(loss: Loss, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
    """What it answers, which must be one value a sample."""
    rows, count = loss(student, teacher, batch), len(batch.targets)
    got = f"a tensor {tuple(rows.shape)}" if isinstance(rows, Tensor) else type(rows).__name__
    require(
        isinstance(rows, Tensor) and rows.shape == (count,),
        f"it answered {got} for {count} samples; it must be one value a sample, ({count},), not "
        "yet averaged",
    )
    checked: Tensor = rows
    return checked


def _mapped(outputs: Outputs, change: Callable[[Tensor], Tensor]) -> Outputs:
    changed = {layer: change(value) for layer, value in outputs.features.items()}
    return Outputs(change(outputs.logits), changed)


def _leaves(outputs: Outputs) -> list[Tensor]:
    return [outputs.logits, *outputs.features.values()]


def _tensors(batch: Batch) -> dict[str, Tensor]:
    return {name: value for name, value in vars(batch).items() if isinstance(value, Tensor)}


def _cloned(batch: Batch) -> Batch:
    cloned: dict[str, Any] = {name: value.clone() for name, value in _tensors(batch).items()}
    return replace(batch, **cloned)


def _equal(given: _Given, loss: Loss) -> _Given:
    """The same, and the student's outputs are the teacher's."""
    features = {pair.student: given.teacher.features[pair.teacher] for pair in loss.layers}
    return replace(given, student=Outputs(given.teacher.logits, features))


def _asked(value: Tensor) -> Tensor:
    """The same values, of which a gradient is asked."""
    return value.detach().clone().requires_grad_()


def _copied(value: Tensor) -> Tensor:
    """A copy through which the gradient passes."""
    return value * 1


def _tolerance(rows: Tensor) -> float:
    return 1e-10 if rows.dtype == torch.float64 else 1e-4
