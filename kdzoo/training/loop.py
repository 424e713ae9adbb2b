"""The training loop: stages, epochs, steps; and after each epoch everything is made durable."""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import logging
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from kdzoo.data.images import Images, View
from kdzoo.distill.compiling import Backend
from kdzoo.distill.distiller import Distiller, Step
from kdzoo.distill.terms import Term
from kdzoo.errors import CheckpointError, KdzooError, NonFiniteError, SpecError, did_you_mean
from kdzoo.extend.bases import ClassPolicy, Observer
from kdzoo.extend.calling import calling
from kdzoo.extend.contracts import ClassState, EpochRecord, RunInfo, TeachingCurves
from kdzoo.interrupts import Insistence, held_back
from kdzoo.seeds import stream
from kdzoo.spec.models import Spec, Stage
from kdzoo.spec.torch_entries import make_optimizer, make_schedule
from kdzoo.training.checkpoint import Best, Checkpoint
from kdzoo.training.clock import LoaderClock
from kdzoo.training.curves_file import CurvesTable
from kdzoo.training.directory import RunDirectory
from kdzoo.training.distributed import Processes
from kdzoo.training.looks import Looks
from kdzoo.training.teacher_store import Taught, TeacherStore, nothing_known

log = logging.getLogger("kdzoo")

_REASONS = (
    "\n    Usual reasons: a learning rate that is too high, a temperature or weight out of range, "
    "a teacher that was not loaded as it was trained."
)
_LOOKED_AT = 1 << 24  # numbers at a time

__all__ = [
    "PreparedStage",
    "Trainer",
    "Watch",
    "autocast",
    "learning_parameters",
    "try_step",
]


@dataclass(frozen=True)
class PreparedStage:
    """A stage of the spec with its terms and its policy."""

    spec: Stage
    terms: Sequence[Term]
    policy: ClassPolicy


class Watch(Protocol):
    """Who looks on from outside. What it raises ends the run, which can be gone on with."""

    def begin(self, role: str) -> None:
        """This run is about to begin or to go on; nobody else is in its directory."""

    def epoch(self, info: RunInfo, validation: Sequence[Sequence[int]]) -> None:
        """An epoch is finished and its checkpoint is kept.

        Args:
            info: the run.
            validation: after each epoch so far, how many validation images of each class were
                classified correctly; empty where there are none.
        """


class Trainer:
    """Trains a distiller through all stages of a run.

    Args:
        spec: the run's spec.
        images: what to train on.
        distiller: what to train.
        stages: the spec's stages, prepared.
        directory: where the checkpoint and the curves go.
        observers: who watches.
        processes: those that train together; each has a trainer, and the first one keeps what it
            does.
        store: where the teacher's outputs are read and kept; ``None``: they are computed.
        watch: who may end it after an epoch.
    """

    def __init__(
        self,
        spec: Spec,
        images: Images,
        distiller: Distiller,
        stages: Sequence[PreparedStage],
        directory: RunDirectory,
        observers: Sequence[Observer],
        processes: Processes,
        store: TeacherStore | None = None,
        watch: Watch | None = None,
    ) -> None:
        self.spec = spec
        self.images = images
        self.distiller = distiller
        self.stages = stages
        self.directory = directory
        self.observers = observers
        self.processes = processes
        self.store = store
        self.watch = watch
        self.clock = LoaderClock()
        self.interrupts = Insistence()
        self.epoch = 0  # how many are done, over all stages
        self.step = 0  # how many are done
        self.saved = 0  # the epoch of the checkpoint in the directory; 0 for none
        self.validation: list[list[int]] = []  # after each epoch, of each class: how many right
        self.best: Best | None = None
        self.table = CurvesTable(distiller.classes)
        # A buffer may be infinite by design, as a mask is; what is finite now must stay so.
        self.finite = [name for name, buffer in self._buffers() if bool(_all_finite(buffer))]

    def fit(self, info: RunInfo, start: Checkpoint | None) -> TeachingCurves:
        """Train from the start, or on from a checkpoint, to the end.

        Returns:
            The teaching curves of all epochs.

        Raises:
            NonFiniteError: a loss, a weight or a buffer became NaN or infinite.
            RunError: a file cannot be written.
        """
        first = 0
        with self._observed(info, start), self.interrupts.watching():
            for stage, epochs in zip(self.stages, self.spec.stage_epochs, strict=True):
                last = first + epochs
                if first < last and (start is None or start.epoch <= last):
                    self._stage(info, stage, first, last, start)
                    start = None
                first = last
        return self.distiller.curves.curves()

    def _stage(
        self, info: RunInfo, stage: PreparedStage, first: int, last: int, start: Checkpoint | None
    ) -> None:
        """One stage: epochs ``first`` to ``last`` of the run, or those that are left of them."""
        backend: Backend | None = "inductor" if stage.spec.train.compile else None
        self.distiller.begin_stage(stage.terms, stage.policy, backend=backend)
        if stage.spec.train.compile:
            log.info("its first step is compiled, which takes a minute or more")
        parameters = learning_parameters(self.distiller, stage.spec)
        optimizer = make_optimizer(stage.spec.train.optimizer, parameters)
        schedule = make_schedule(stage.spec.train.schedule, optimizer, stage.spec.train.epochs)
        if start is not None:
            self._restore(start, optimizer, schedule)
        for epoch in range(max(first, self.epoch), last):
            with self._taught() as taught:
                self._epoch(info, stage.spec, epoch - first, parameters, optimizer, taught)
            rate = float(optimizer.param_groups[0]["lr"])
            schedule.step()
            self._validate()
            self.processes.add_up(self.distiller.curves.sums)
            self.epoch, curves = epoch + 1, self.distiller.end_epoch(rate)
            self._close_epoch(info, curves, rate, optimizer, schedule)

    def _epoch(
        self,
        info: RunInfo,
        stage: Stage,
        epoch: int,
        parameters: Sequence[nn.Parameter],
        optimizer: Optimizer,
        taught: Taught,
    ) -> None:
        """All steps of one epoch; ``epoch`` counts from the stage's beginning."""
        seed, batch_size, group = self.spec.seed, stage.train.batch_size, self.processes
        sizes = self.images.sizes(batch_size)  # of the whole batches; a view has our rows of one
        window: list[Tensor] = []
        self.distiller.train()
        # However the epoch ends, readers of images end with it, and what was looked at is shown.
        with (
            contextlib.closing(Looks(functools.partial(self._log, info))) as looks,
            contextlib.closing(self._views(batch_size)) as views,
        ):
            for number, (size, view) in enumerate(zip(sizes, views, strict=True)):
                self.interrupts.check()
                # Seeded step by step: what a loss draws cannot shift the student's dropout, and a
                # run that is continued draws what it would have drawn.
                _reseed(stream(seed, "step", self.step), view.inputs.device)
                progress, share = epoch + number / len(sizes), group.share(size)
                with group.whole_batch(size), autocast(stage, view.inputs.device):
                    step = self.distiller(
                        view.inputs, view.targets, view.indices, progress, taught(view)
                    )
                optimizer.zero_grad()
                (share * step.total).backward()
                group.add_up([p.grad for p in parameters if p.grad is not None])
                optimizer.step()
                self.step += 1
                window.append(share * _row(step))
                if self.step % self.spec.log_every == 0 or number == len(sizes) - 1:
                    rows = torch.stack(window)
                    group.add_up([rows])
                    looks.add(list(step.terms), self.step - len(window) + 1, rows)
                    window = []

    def _views(self, batch_size: int) -> Generator[View, None, None]:
        """Our part of each batch of this epoch."""
        seed, group = self.spec.seed, self.processes
        views = self.images.epoch(self.epoch, batch_size, seed, group.rank, group.count)
        return self.clock.watched(views)

    def _taught(self) -> contextlib.AbstractContextManager[Taught]:
        """What is known of the teacher's outputs in this epoch."""
        if self.store is None:
            return contextlib.nullcontext(nothing_known)
        return self.store.epoch(self.epoch)

    def _validate(self) -> None:
        """Our part of the validation images: every so many batches of them."""
        group = self.processes
        for view in itertools.islice(self.images.validation.plain(), group.rank, None, group.count):
            self.distiller.validate(view.inputs, view.targets, view.indices)

    def _log(
        self, info: RunInfo, terms: list[str], first: int, values: npt.NDArray[np.float32]
    ) -> None:
        """Check the numbers of some steps (steps, 1 + terms), and show them."""
        names = ["loss/total", *(f"loss/{term}" for term in terms)]
        finite = np.isfinite(values)
        if not finite.all():
            row = int(np.argmin(finite.all(1)))
            column = int(np.flatnonzero(~finite[row])[-1])  # a term rather than the total
            raise NonFiniteError(
                f"{names[column]} became {values[row, column]} in step {first + row} "
                f"(epoch {self.epoch + 1}); {self._kept()}{_REASONS}"
            )
        series = {name: values[:, i] for i, name in enumerate(names)}
        for observer in self.observers:
            with _calling(observer):
                observer.steps(info, first, series)

    def _close_epoch(
        self,
        info: RunInfo,
        curves: TeachingCurves,
        rate: float,
        optimizer: Optimizer,
        schedule: LRScheduler,
    ) -> None:
        """Refuse broken weights; then the first process keeps the epoch for all."""
        self._refuse_non_finite()
        if self.processes.first:
            self._keep_epoch(info, curves, rate, optimizer, schedule)
        self.saved = self.epoch

    def _keep_epoch(
        self,
        info: RunInfo,
        curves: TeachingCurves,
        rate: float,
        optimizer: Optimizer,
        schedule: LRScheduler,
    ) -> None:
        """Evaluate, tell the observers, write the checkpoint."""
        scalars = {"lr": rate, "accuracy/train": _mean(curves.student, curves.samples)}
        if np.isfinite(curves.teacher[-1]).any():
            scalars["accuracy/teacher"] = _mean(curves.teacher, curves.samples)
            scalars["agreement"] = _mean(curves.agreement, curves.samples)
        student = self.distiller.student
        if curves.validation is not None:
            measured = _mean(curves.validation.student, curves.validation.samples)
            scalars["accuracy/validation"] = measured
            right = np.nan_to_num(curves.validation.student[-1]) * curves.validation.samples[-1]
            self.validation.append(np.rint(right).astype(np.int64).tolist())
            if self.best is None or measured > self.best.accuracy:
                self.best = Best(self.epoch, measured, copy.deepcopy(student.state_dict()))
        self._say_what_changed(curves)
        record = EpochRecord(self.epoch, self.step, scalars, curves, self.clock.share)
        states: dict[str, dict[str, Any]] = {}
        for observer in self.observers:
            with _calling(observer):
                observer.epoch(info, record)
                states[observer.name] = observer.state_dict()
        Checkpoint(
            epoch=self.epoch,
            step=self.step,
            distiller=self.distiller.state_dict(),
            optimizer=optimizer.state_dict(),
            schedule=schedule.state_dict(),
            observers=states,
            validation=self.validation,
            best=self.best,
        ).save(self.directory)
        self.directory.write(self.directory.classes, self.table.content(curves))
        if self.watch is not None:
            self.watch.epoch(info, self.validation)

    def _restore(self, start: Checkpoint, optimizer: Optimizer, schedule: LRScheduler) -> None:
        self.epoch, self.step, self.saved = start.epoch, start.step, start.epoch
        self.validation, self.best = start.validation, start.best
        try:
            self.distiller.load_state_dict(start.distiller)
            optimizer.load_state_dict(start.optimizer)
            schedule.load_state_dict(start.schedule)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{self.directory.checkpoint}: is not of this run; remove {self.directory.path} to "
                f"train from the first epoch again: {error}"
            ) from error

    def _say_what_changed(self, curves: TeachingCurves) -> None:
        """The classes that the policy has just come to suspect, to stop, or to steer."""
        assert curves.state is not None
        if self.epoch == self.spec.epochs:
            return  # nothing follows that it could change
        for state, words in (
            (ClassState.SUSPECT, "the policy suspects"),
            (ClassState.UNTAUGHT, "no longer taught"),
        ):
            before = [self.distiller.classes[c] for c in np.flatnonzero(curves.state[-1] == state)]
            now = self.distiller.classes_in(state)
            if new := [name for name in now if name not in before]:
                log.info("after epoch %d: %s: %s", self.epoch, words, ", ".join(new))
            again = [name for name in before if name not in now]
            if again and state == ClassState.UNTAUGHT:
                log.info("after epoch %d: taught again: %s", self.epoch, ", ".join(again))
        steered = (self.distiller.label_weights.cpu().numpy() != 1) & (curves.label_weight[-1] == 1)
        untaught = self.distiller.classes_in(ClassState.UNTAUGHT)
        names = [self.distiller.classes[c] for c in np.flatnonzero(steered)]
        if new := [name for name in names if name not in untaught]:
            log.info("after epoch %d: label weight changed: %s", self.epoch, ", ".join(new))

    def _buffers(self) -> Iterator[tuple[str, Tensor]]:
        """The buffers of the student and of the losses, batch norm's statistics among them."""
        for name, buffer in self.distiller.named_buffers():
            if name.startswith(("student.", "losses.")):
                yield name, buffer

    def _refuse_non_finite(self) -> None:
        tensors: dict[str, Tensor] = dict(self.distiller.named_parameters())
        buffers = dict(self._buffers())
        tensors |= {name: buffers[name] for name in self.finite if name in buffers}
        finite = torch.stack([_all_finite(tensor) for tensor in tensors.values()]).cpu()
        if not bool(finite.all()):
            name = list(tensors)[int(finite.int().argmin())]
            raise NonFiniteError(
                f"{name} became NaN or infinite in epoch {self.epoch}; {self._kept()}{_REASONS}"
            )

    def _kept(self) -> str:
        if self.saved:
            return f"the checkpoint of epoch {self.saved} is kept"
        return "there is no checkpoint yet"

    @contextlib.contextmanager
    def _observed(self, info: RunInfo, start: Checkpoint | None) -> Iterator[None]:
        """Start the observers, and tell each of them how it ended."""
        states = start.observers if start else {}
        with contextlib.ExitStack() as stack:
            for observer in self.observers:
                with _calling(observer):
                    observer.start(info, states.get(observer.name))
                    stack.push(functools.partial(_end, observer, info))
            yield


def learning_parameters(distiller: Distiller, stage: Stage) -> list[nn.Parameter]:
    """The parameters that learn in a stage; all others are frozen (not buffers: the running
    statistics of batch norm follow whatever passes). What a component froze itself stays frozen.

    Raises:
        SpecError: the stage's ``learn`` names parameters that do not exist.
    """
    parameters = dict(distiller.learnable())
    for prefix in stage.learn:
        if prefix != "losses" and not any(_within(name, prefix) for name in parameters):
            parts = {name.rpartition(".")[0] for name in parameters}
            raise SpecError(f'learn: no parameters under "{prefix}"{did_you_mean(prefix, parts)}')
    for name, parameter in parameters.items():
        parameter.requires_grad_(any(_within(name, prefix) for prefix in stage.learn))
    learning = [parameter for parameter in parameters.values() if parameter.requires_grad]
    if not learning:
        raise SpecError(f"learn: {', '.join(stage.learn)} has no parameters")
    return learning


def autocast(stage: Stage, device: torch.device) -> torch.autocast:
    """In here the networks compute in the precision that the stage says."""
    return torch.autocast(device.type, torch.bfloat16, enabled=stage.train.precision == "bf16")


def try_step(distiller: Distiller, stages: Sequence[PreparedStage], example: View) -> None:
    """One forward and backward pass of each stage on a copy, so that nobody's mistake waits for the
    teacher to be trained.

    Raises:
        SpecError: nothing that learns has a gradient.
        PluginError: a component breaks its contract, or its gradient cannot be computed.
        RunError: the step is to be compiled, and cannot be.
    """
    with torch.random.fork_rng(devices=[]):
        try:
            copied, copies = copy.deepcopy((distiller, stages))
        except Exception:  # not every model can be copied; it will be tried when it is trained
            return
        for stage in copies:
            learning_parameters(copied, stage.spec)
            # Whether it can be compiled is found out too, and not with what takes a minute.
            backends: tuple[Backend | None, ...] = (None, "eager")
            for backend in backends[: 1 + stage.spec.train.compile]:
                copied.begin_stage(stage.terms, stage.policy, backend=backend)
                with autocast(stage.spec, example.inputs.device):
                    step = copied.train()(
                        example.inputs, example.targets, example.indices, progress=0.0
                    )
                if not step.total.requires_grad:
                    raise SpecError(f"learn: no loss depends on {', '.join(stage.spec.learn)}")
                with calling("the backward pass"):
                    step.total.backward()


@contextlib.contextmanager
def _calling(observer: Observer) -> Iterator[None]:
    """Ctrl-C waits: many an observer gives what it is told to a thread of its own, and the locks
    between the two do not bear what is raised in them. One that hangs does not outlast a second."""
    with held_back(second=False), calling(f'observer "{observer.name}"'):
        yield


def _end(
    observer: Observer, info: RunInfo, kind: object, error: BaseException | None, _: object
) -> None:
    try:
        with _calling(observer):
            observer.end(info, error)
    except KdzooError as failure:
        if error is None:
            raise
        log.warning("%s", failure)  # it must not hide what ended the run


def _reseed(seed: int, device: torch.device) -> None:
    """As ``torch.manual_seed`` does, but only where something is drawn: it costs 1 us, not 90."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)


def _row(step: Step) -> Tensor:
    """(1 + terms,), the numbers of a step that are looked at later."""
    return torch.stack([step.total.detach(), *(v.detach() for v in step.terms.values())]).float()


def _all_finite(tensor: Tensor) -> Tensor:
    """(), whether no number is NaN or infinite: part by part, since a loss's bank may be large, and
    to look at it takes one and a half times its memory."""
    parts = torch.split(tensor.flatten(), _LOOKED_AT)
    return torch.stack([part.isfinite().all() for part in parts]).all()


def _mean(curve: np.ndarray, samples: np.ndarray) -> float:  # type: ignore[type-arg]
    """The last epoch's mean over all samples."""
    return float(np.nansum(curve[-1] * samples[-1]) / samples[-1].sum())


def _within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")
