"""The checks of adapters."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdzoo.errors import SpecError
from kdzoo.extend.bases import Adapter
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
)
from kdzoo.testing.scene import Shape

__all__ = ["AdapterChecks"]

_ROWS = 4

# Vectors, tokens and maps of many sizes: whatever a person may name in a spec.
_USUAL: tuple[tuple[Shape, Shape], ...] = (
    ((6, 8, 8), (6, 8, 8)),
    ((6, 8, 8), (9, 8, 8)),
    ((6, 8, 8), (6, 4, 4)),
    ((6, 8, 8), (9, 4, 4)),
    ((6, 8, 8), (9, 3, 3)),
    ((6, 8, 8), (9, 16, 16)),
    ((6, 8, 8), (9, 20, 20)),
    ((6, 9, 5), (4, 2, 5)),
    ((6, 4, 8), (9, 8, 4)),
    ((6,), (6,)),
    ((6,), (9,)),
    ((16, 6), (16, 9)),
    ((17, 6), (65, 9)),
    ((17, 6), (9, 4, 4)),
    ((6, 8, 8), (17, 9)),
    ((6,), (9, 4, 4)),
    ((6, 8, 8), (9,)),
    ((16, 6), (9,)),
)


class AdapterChecks(Checks[Adapter]):
    """What is asked of an adapter.

    Args:
        component: the class that is checked.
        entry: what a spec says of it beside ``use``.
        folder: an empty directory.
        shapes: pairs of the student's and the teacher's shape that it must take; by default those
            of the usual ones that it takes.
    """

    base = Adapter

    def __init__(
        self,
        component: type[Adapter],
        entry: Mapping[str, Any] | Callable[[Path], Mapping[str, Any]],
        folder: Path,
        *,
        shapes: Iterable[tuple[Shape, Shape]] = (),
    ) -> None:
        super().__init__(component, entry, folder)
        self.shapes = tuple(shapes)

    def the_teachers_shape(self) -> None:
        """It answers the teacher's shape in float32, in train and eval mode, and for one sample."""
        for student, teacher in self._pairs():
            for training, count in ((True, _ROWS), (False, _ROWS), (False, 1)):
                adapter = self._adapter(student, teacher).train(training)
                self._require_shape(adapter, student, teacher, count)

    def refusals(self) -> None:
        """Two shapes that it cannot bring together are refused with a SpecError."""
        for student, teacher in _USUAL:
            try:
                adapter = self._adapter(student, teacher)
            except SpecError:
                continue
            except Exception as error:
                raise ContractError(
                    f"setup({student}, {teacher}) raised {type(error).__name__}: {error}; refuse "
                    "with a kdzoo.SpecError"
                ) from error
            try:
                self._require_shape(adapter.eval(), student, teacher, _ROWS)
            except Exception as error:
                raise ContractError(
                    f"it took {student} to {teacher} in setup, and then fails: {error}; refuse "
                    "with a kdzoo.SpecError in setup"
                ) from error

    def parameters(self) -> None:
        """A gradient reaches the feature and all that it learns, which is registered in setup."""
        for student, teacher in self._pairs():
            adapter = self._adapter(student, teacher)
            before = set(dict(adapter.named_parameters()))
            feature = _feature(student).requires_grad_()
            answer = adapter(feature * 1)
            new = set(dict(adapter.named_parameters())) - before
            require(
                not new,
                f"its parameters {', '.join(sorted(new))} came in the first step, when the "
                "optimizer was there already: make them in setup",
            )
            require(answer.requires_grad, "its answer has no gradient: something detaches it")
            refuse_unregistered(adapter, answer.sum(), [feature])
            weights = torch.randn(answer.shape, generator=torch.Generator().manual_seed(0))
            (gradient,) = torch.autograd.grad(
                (answer * weights).sum(), [feature], allow_unused=True
            )
            require(
                gradient is not None and bool(gradient.abs().sum() > 0),
                "no gradient reaches the student's feature",
            )

    def buffers(self) -> None:
        """The tensors that it keeps are buffers."""
        for student, teacher in self._pairs():
            adapter = self._adapter(student, teacher)
            adapter(_feature(student))
            refuse_stray_tensors(adapter)

    def leaves_its_input_alone(self) -> None:
        """It changes nothing of the feature that it is given."""
        for student, teacher in self._pairs():
            feature = _feature(student)
            given = feature.clone()
            self._adapter(student, teacher)(given)
            require(torch.equal(given, feature), "it changed the student's feature in place")

    def evaluation(self) -> None:
        """In eval mode it changes nothing of its own."""
        for student, teacher in self._pairs():
            adapter = self._trained(student, teacher).eval()
            before = copy.deepcopy(adapter.state_dict())
            with torch.no_grad():
                adapter(_feature(student))
            require(same(before, adapter.state_dict()), "its state changed in eval mode")

    def deterministic(self) -> None:
        """The seed of torch's global generator decides its weights and answers."""
        for student, teacher in self._pairs():

            def answer(student: Shape = student, teacher: Shape = teacher) -> list[Tensor]:
                adapter = self._set_up(student, teacher)
                return [*adapter.state_dict().values(), adapter(_feature(student)).detach()]

            one, other = seeded(1, answer), seeded(1, answer)
            require(same(one, other), "it differs under the same seed")

    @after("deterministic")
    def samples_alone(self) -> None:
        """In eval mode each sample is brought over without regard to the others."""
        order = torch.tensor([2, 0, 3])
        for student, teacher in self._pairs():
            adapter, feature = self._adapter(student, teacher).eval(), _feature(student)
            with torch.no_grad():
                whole, part = adapter(feature.clone()), adapter(feature[order])
            require(
                close(whole[order], part), "a sample's answer depends on the others in eval mode"
            )

    @sometimes
    @after("deterministic")
    def channels_last(self) -> None:
        """Maps that have their channels last in memory are taken as well."""
        pairs = [pair for pair in self._pairs() if len(pair[0]) == 3]
        if not pairs:
            raise NotApplicable("it takes no maps")
        for student, teacher in pairs:
            adapter, feature = self._adapter(student, teacher).eval(), _feature(student)
            with torch.no_grad():
                plain = adapter(feature.clone())
                try:
                    laid = adapter(feature.contiguous(memory_format=torch.channels_last))
                except RuntimeError as error:
                    raise ContractError(
                        f"it cannot take maps whose channels are last in memory ({error}); use "
                        "reshape or flatten, not view"
                    ) from error
            require(close(plain, laid), "its answer changes when the channels are last in memory")

    @after("deterministic")
    def state_dict(self) -> None:
        """Its state is plain data, and gives another instance the same answers."""
        for student, teacher in self._pairs():
            trained = self._trained(student, teacher).eval()
            state = stored("its state", trained.state_dict())
            fresh = self._adapter(student, teacher, seed=7).eval()
            try:
                fresh.load_state_dict(state)
            except RuntimeError as error:
                raise ContractError(f"another instance cannot take its state: {error}") from error
            with torch.no_grad():
                one, other = trained(_feature(student)), fresh(_feature(student))
            require(
                torch.equal(one, other), "another instance that has its state answers otherwise"
            )

    @after("deterministic")
    def copies(self) -> None:
        """A deep copy answers the same, and goes its own way."""
        for student, teacher in self._pairs():
            adapter = self._trained(student, teacher)
            try:
                copied = copy.deepcopy(adapter)
            except Exception as error:
                raise ContractError(
                    f"it cannot be copied: {type(error).__name__}: {error}"
                ) from error
            with torch.no_grad():
                one, other = (each.eval()(_feature(student)) for each in (adapter, copied))
            require(torch.equal(one, other), "its deep copy answers otherwise")
            before = copy.deepcopy(adapter.state_dict())
            _learn(copied.train(), student)
            require(same(before, adapter.state_dict()), "it shares its state with a deep copy")

    def half_precision(self) -> None:
        """Finite in float16 under autocast."""
        self._under_autocast(torch.float16)

    def bfloat16(self) -> None:
        """Finite in bfloat16 under autocast."""
        self._under_autocast(torch.bfloat16)

    def device(self) -> None:
        """It runs on a GPU without waiting for it; the GPU is a simulated one."""
        for student, teacher in self._pairs():
            shape = (_ROWS, *student)
            on_a_gpu(
                self._adapter(student, teacher),
                lambda device, shape=shape: (torch.empty(shape, device=device),),  # type: ignore[misc]
                f"from {student} to {teacher} it does not run",
            )

    @after("deterministic")
    def compiled(self) -> None:
        """It is compiled as one graph, with the same gradients (``aot_eager``)."""
        for student, teacher in self._pairs():
            self._compiled("aot_eager", student, teacher)

    @slow
    @sometimes
    @after("deterministic")
    def compiled_for_real(self) -> None:
        """The same with torch's own compiler, for the first pair of shapes."""
        need_compiler()
        self._compiled("inductor", *self._pairs()[0])

    # What the checks are made of.

    def _use(self) -> None:
        for student, teacher in self._pairs():
            adapter = self._trained(student, teacher).eval()
            with torch.no_grad():
                adapter(_feature(student))

    def _set_up(self, student: Shape, teacher: Shape) -> Adapter:
        adapter = self._make()
        adapter.setup(student, teacher)
        return adapter

    def _adapter(self, student: Shape, teacher: Shape, seed: int = 0) -> Adapter:
        return seeded(seed, lambda: self._set_up(student, teacher))

    def _trained(self, student: Shape, teacher: Shape) -> Adapter:
        adapter = self._adapter(student, teacher)
        _learn(adapter, student)
        return adapter

    def _pairs(self) -> list[tuple[Shape, Shape]]:
        """The shapes that it takes."""
        if self.shapes:
            return list(self.shapes)
        pairs = []
        for student, teacher in _USUAL:
            try:
                self._adapter(student, teacher)
            except Exception:  # whether it is the right one, the check of refusals says
                continue
            pairs.append((student, teacher))
        require(bool(pairs), "it takes none of the usual shapes; say which it takes: shapes=[...]")
        return pairs

    def _require_shape(self, adapter: Adapter, student: Shape, teacher: Shape, count: int) -> None:
        answer = adapter(_feature(student)[:count])
        require(
            isinstance(answer, Tensor) and answer.shape == (count, *teacher),
            f"from {student} to {teacher} it answered {tuple(answer.shape)} for {count} samples; "
            f"it must be {(count, *teacher)}",
        )
        require(answer.dtype == torch.float32, f"it answered {answer.dtype} from float32")

    def _under_autocast(self, dtype: torch.dtype) -> None:
        for student, teacher in self._pairs():
            feature = _feature(student).to(dtype).requires_grad_()
            with torch.autocast("cpu", dtype=dtype):
                answer = self._adapter(student, teacher)(feature * 1)
            require(bool(answer.isfinite().all()), f"it is not finite in {dtype}")
            (gradient,) = torch.autograd.grad(answer.float().sum(), [feature], allow_unused=True)
            finite = gradient is None or bool(gradient.isfinite().all())
            require(finite, f"its gradient is not finite in {dtype}")

    def _compiled(self, backend: str, student: Shape, teacher: Shape) -> None:
        refuse_another_when_compiled(
            lambda: self._adapter(student, teacher),
            lambda call, adapter: _measured(call, adapter, student),
            backend,
            f"from {student} to {teacher} it",
        )


def _measured(call: Callable[..., Tensor], adapter: Adapter, student: Shape) -> dict[str, Tensor]:
    """What it answers, and the gradients of that."""
    feature = _feature(student).requires_grad_()
    answer = seeded(1, lambda: call(feature * 1))
    found = {"its answers": answer.detach()}
    if answer.requires_grad:
        weights = torch.randn(answer.shape, generator=torch.Generator().manual_seed(0))
        torch.autograd.backward((answer * weights).sum())
        found["its own gradients"] = gradients(adapter)
    if feature.grad is not None:
        found["the feature's gradients"] = feature.grad
    return found


def _feature(shape: Shape) -> Tensor:
    return torch.randn(_ROWS, *shape, generator=torch.Generator().manual_seed(0))


def _learn(adapter: Adapter, student: Shape) -> None:
    """Whatever training changes, changes."""
    optimizer = torch.optim.SGD([*adapter.parameters(), torch.zeros(())], lr=0.01)
    answer = adapter.train()(_feature(student))
    if answer.requires_grad:
        answer.square().sum().backward()
        optimizer.step()
