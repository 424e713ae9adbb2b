"""One run: its parts put together, the training, the report."""

from __future__ import annotations

import contextlib
import copy
import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kdzoo.distill.distiller import Distiller
from kdzoo.distill.network import Network
from kdzoo.distill.terms import Term, set_up_policy
from kdzoo.errors import CheckpointError
from kdzoo.extend.bases import ClassPolicy, Loss, Observer
from kdzoo.extend.contracts import Floats, Layers, RunInfo, TeachingCurves
from kdzoo.extend.declared import Declared
from kdzoo.extend.registry import registry
from kdzoo.pipeline.parts import losses_of, recipe_of, refuse_other_classes
from kdzoo.pipeline.session import Session, file_hash
from kdzoo.pipeline.student import load_student, tested
from kdzoo.report.page import write_run_page
from kdzoo.report.summary import BestValidation, Comparison, Report, Score, teacher_note
from kdzoo.seeds import stream
from kdzoo.spec.derive import baseline_spec, baseline_stages, teacher_spec
from kdzoo.spec.models import ModelEntry, Spec, Stage, TeacherEntry
from kdzoo.spec.read import dump_spec
from kdzoo.training.answers_file import (
    read_answers,
    read_right_rows,
    write_answers,
    write_right_rows,
)
from kdzoo.training.checkpoint import Checkpoint
from kdzoo.training.curves_file import read_curves
from kdzoo.training.directory import RunDirectory
from kdzoo.training.distributed import processes, refuse_too_many_processes
from kdzoo.training.environment import keep_environment, need_compiler
from kdzoo.training.evaluate import Ints, evaluate
from kdzoo.training.loop import PreparedStage, Trainer, Watch, autocast, try_step
from kdzoo.training.teacher_check import measure_teacher, refuse_worse_teacher
from kdzoo.training.teacher_store import TeacherStore, chunk_size, store_key
from kdzoo.training.weights import NetworkRecipe, load_weights

_MEASURED = 10_000  # training images that a loaded teacher is measured on

__all__ = ["Job", "Plan", "Role", "Run"]

log = logging.getLogger("kdzoo")

Role = Literal["teacher", "baseline", "student"]
N = TypeVar("N", bound=np.generic)


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        directory: the run directory.
        report: what came out.
    """

    directory: Path
    report: Report


@dataclass(frozen=True)
class Job:
    """A run that several processes train."""

    spec: Spec
    role: Role
    fingerprint: str


@dataclass(frozen=True)
class _Baseline:
    """What a baseline did in each of our E epochs, of C classes.

    Attributes:
        curve: (E, C), its accuracy on the training samples; NaN in stages that it has not.
        validation: (E, C), on the validation images; ``None`` without these.
        right_rows: (E, rows / 8), which rows of the training set it was right on, a bit a row.
    """

    curve: Floats
    validation: Floats | None
    right_rows: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class _Beginning:
    """Where the training begins, as the first process has found it in the directories of runs."""

    info: RunInfo
    start: Checkpoint | None
    baseline: _Baseline | None


class Plan:
    """All parts of one run, put together but not yet trained."""

    def __init__(self, session: Session, spec: Spec, role: Role) -> None:
        self.session = session
        self.spec = spec
        self.role: Role = role
        self.images = session.images(spec)
        self.others: dict[Role, Spec] = {}  # the runs that this one builds on
        if (trained := teacher_spec(spec)) is not None:
            self.others["teacher"] = trained
        if spec.baseline:
            self.others["baseline"] = baseline_spec(spec)
        refuse_too_many_processes(spec, self.images)
        need_compiler(spec, session.device)
        self.recipe = recipe_of(spec.student, self.images, "student")
        self.student, student_layers = self._network(self.recipe, spec.student, "student")
        # The weights of a teacher that comes out of a run are filled in when that run is done.
        self.teacher: Network | None = None
        self.teacher_parameters: int | None = None  # as it is before it is folded
        self.teacher_accuracy: float | None = None  # where it was checked
        teacher_layers = Layers()
        if spec.teacher is not None:
            recipe = self._teacher_recipe()
            self.teacher, teacher_layers = self._network(recipe, spec.teacher, "teacher")
            self.teacher_parameters = _size(self.teacher)
            self.teacher_accuracy = self._measure_teacher(self.teacher, spec.teacher, recipe)
        losses = losses_of(spec)
        ends = itertools.accumulate(stage.train.epochs for stage in spec.stages)
        self.stages = [
            self._stage(stage, end, losses) for stage, end in zip(spec.stages, ends, strict=True)
        ]
        self.observers: list[Observer] = [
            registry().make(Observer.kind, entry.use, entry.params) for entry in spec.observers
        ]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream(spec.seed, "losses"))
            self.distiller = Distiller(
                self.teacher,
                self.student,
                [Term(name, loss) for name, loss in losses.items()],
                example=self.images.example.inputs,
                classes=self.images.classes,
                num_samples=self.images.rows,
                targets=self.images.row_targets(),
                similarity=any(Declared.by(stage.policy).needs_similarity for stage in self.stages),
                teacher_layers=teacher_layers,
                student_layers=student_layers,
            )
        if spec.teacher is None:  # it may be somebody's baseline
            self.distiller.curves.keep_right_rows(self.images.rows)
        try_step(self.distiller, self.stages, self.images.example)
        session.read_held_out(self.images)
        for name, other in self.others.items():
            there = session.directory(other)
            if not (there.trained or there.finished):
                Plan(session, other, name)

    def do(self, directory: RunDirectory, runs: Mapping[Role, Run]) -> Run:
        """Train the student, test it, and write down what came out."""
        others = {role: RunDirectory(done.directory) for role, done in runs.items()}
        trainer, curves = self.train(directory, others)
        report = self._report(directory, trainer, curves, runs)
        if (note := teacher_note(report)) is not None:
            log.warning("%s", note)
        directory.write(directory.report, report.as_json())
        write_run_page(directory)
        return Run(directory.path, report)

    def train(
        self,
        directory: RunDirectory,
        others: Mapping[Role, RunDirectory],
        watch: Watch | None = None,
    ) -> tuple[Trainer, TeachingCurves]:
        """Train the student, and keep it.

        Args:
            directory: where.
            others: the trained runs that this one builds on.
            watch: who looks on.
        """
        if self.teacher is not None and "teacher" in others:
            load_weights(self.teacher.model, others["teacher"].student, "the teacher")
        baseline = None
        if "baseline" in others:
            baseline = self._baseline_curves(others["baseline"])
            self._compare_teacher(others["baseline"])
        start = Checkpoint.load(directory)
        if start is not None:
            log.info("%s: continued after epoch %d of %d", self.role, start.epoch, self.spec.epochs)
        elif directory.classes.exists():  # it is written after the first checkpoint
            log.warning("%s: %s is gone; it starts over", self.role, directory.checkpoint)
        keep_environment(directory, self.session.environment(self.spec))
        views = self.images.augmentation  # the spec may leave them to the data
        data = self.spec.data.model_copy(update={"crop": views.crop, "flip": views.flip})
        text = dump_spec(self.spec.model_copy(update={"data": data}))
        directory.write(directory.spec, text.encode())
        info = RunInfo(
            name=self.spec.name,
            role=self.role,
            directory=directory.path,
            classes=self.images.classes,
            epochs=self.spec.epochs,
            steps=sum(
                len(self.images.sizes(stage.train.batch_size)) * epochs
                for stage, epochs in zip(self.spec.stages, self.spec.stage_epochs, strict=True)
            ),
            epoch=start.epoch if start else 0,
            step=start.step if start else 0,
            spec=text,
        )
        processes().give_out(Job(self.spec, self.role, self.images.fingerprint))
        trainer, curves = self.fit(_Beginning(info, start, baseline), watch)
        # Again: the run may have been killed between its last checkpoint and these curves.
        directory.write(directory.classes, trainer.table.content(curves))
        if self.spec.teacher is None:
            write_right_rows(directory, self.distiller.curves.right_rows())
        self.recipe.save(self.student, directory)
        return trainer, curves

    def fit(
        self, found: _Beginning | None, watch: Watch | None = None
    ) -> tuple[Trainer, TeachingCurves]:
        """Train, in all processes together; all but the first are told where it begins."""
        with processes().together(self.session.device):
            beginning = processes().shared(found)
            assert beginning is not None
            if self.teacher is not None:
                processes().same(self.teacher)
            if beginning.baseline is not None:
                recorder = self.distiller.curves
                recorder.baseline = beginning.baseline.curve
                recorder.validation_baseline = beginning.baseline.validation
                recorder.compare_right_rows(self.images.rows, beginning.baseline.right_rows)
            self.distiller.fold_teacher(self.images.example.inputs)
            store = self._store()
            trainer = Trainer(
                self.spec,
                self.images,
                self.distiller,
                self.stages,
                RunDirectory(beginning.info.directory),
                self.observers if processes().first else (),
                processes(),
                store,
                watch,
            )
            curves = trainer.fit(beginning.info, beginning.start)
        if store is not None:
            self._say_of_store(f"outputs of the teacher: {store.describe()}")
        return trainer, curves

    def _say_of_store(self, said: str) -> None:
        self.session.stored = said
        log.info("%s", said)

    def _store(self) -> TeacherStore | None:
        """Where the teacher's outputs are kept, if they are.

        It sees its images in chunks whether that is asked for or not: a run must not depend on it.
        """
        if self.teacher is None:
            return None
        reason = self._chunk_teacher()
        if not self.spec.store_gb:
            return None
        if reason is not None:
            self._say_of_store(f"the teacher's outputs are not stored: {reason}")
            return None
        teacher = self._teacher_recipe()
        about = {
            "environment": self.session.environment(self.spec),
            "precision": self.spec.stages[0].train.precision,
            "code": registry().local_code({teacher.use, self.spec.data.use}),
        }
        return TeacherStore(
            self.session.runs / ".cache" / "teacher",
            store_key(self.teacher, self.images, self.distiller.chunk, about),
            self.distiller.teach,
            rows=self.images.rows,
            count=len(self.images.train),
            limit=1e9 * self.spec.store_gb,
            since=self.session.begun,
        )

    def _chunk_teacher(self) -> str | None:
        """Let the teacher's outputs be the same in every batch; answers why that cannot be."""
        trains = [stage.train for stage in self.spec.stages]
        if processes().count > 1:
            return "several processes train together"
        if self.session.device.type != "cpu":
            return "it computes on a GPU, which chunks would leave idle"
        if any(train.compile for train in trains):
            return "its steps are compiled"
        if len({train.precision for train in trains}) > 1:
            return "its stages compute in different precisions"
        chunk = chunk_size(min(train.batch_size for train in trains))
        with contextlib.closing(self.images.train.plain(chunk)) as views:
            images = next(views).inputs
        with autocast(self.spec.stages[0], self.session.device):
            steady = self.distiller.chunk_teacher(images)
        return None if steady else "they depend on the other images of a batch"

    def _report(
        self,
        directory: RunDirectory,
        trainer: Trainer,
        curves: TeachingCurves,
        runs: Mapping[Role, Run],
    ) -> Report:
        """The test images are read here and nowhere else, after everything is decided."""
        names = self.images.classes
        evaluation = tested(self.student, self.images)
        student = Score.of(evaluation, names)
        write_answers(directory, evaluation)
        teacher, teachers = self._tested_teacher(runs)
        agreement = None if teachers is None else float(np.mean(evaluation.answers == teachers))
        baseline, comparison = None, None
        if "baseline" in runs:
            baseline = runs["baseline"].report.student
            others = self._answers_of(runs["baseline"])
            comparison = Comparison.of(
                (student, evaluation.answers), (baseline, others), evaluation.targets, names
            )
        best = None
        if trainer.best is not None:
            # Of the last epoch, the images are known already.
            last = trainer.best.epoch == trainer.epoch
            best = BestValidation(
                epoch=trainer.best.epoch,
                validation=trainer.best.accuracy,
                test=evaluation.accuracy if last else self._accuracy_with(trainer.best.student),
            )
        return Report(
            name=self.spec.name,
            epochs=trainer.epoch,
            parameters=_size(self.student),
            teacher_parameters=self.teacher_parameters,
            data=self.images.fingerprint,
            images={name: int(n) for name, n in zip(names, evaluation.images, strict=True) if n},
            student=student,
            best_validation=best,
            teacher=teacher,
            baseline=baseline,
            comparison=comparison,
            agreement=agreement,
            untaught=tuple(names[c] for c in curves.untaught),
            teacher_weights=_other_than_1(curves.teacher_weight[-1], names),
            label_weights=_other_than_1(curves.label_weight[-1], names),
            directories={role: str(done.directory) for role, done in runs.items()},
        )

    def _accuracy_with(self, weights: Mapping[str, Tensor]) -> float:
        """The student's accuracy on the test images, with the weights of another epoch."""
        own = copy.deepcopy(self.student.state_dict())
        self.student.load_state_dict(weights)
        accuracy = evaluate(self.student, self.images.test, len(self.images.classes)).accuracy
        self.student.load_state_dict(own)
        return accuracy

    def _tested_teacher(self, runs: Mapping[Role, Run]) -> tuple[Score | None, Ints | None]:
        """The teacher's score and its answers to the test images."""
        if self.teacher is None:
            return None, None
        if "teacher" in runs:
            other = self.session.images(self.others["teacher"])
            if other.fingerprint == self.images.fingerprint:
                return runs["teacher"].report.student, self._answers_of(runs["teacher"])
        # It may have learnt from the validation images: offsets cannot be fitted on them.
        evaluation = evaluate(self.teacher, self.images.test, len(self.images.classes))
        return Score.of(evaluation, self.images.classes), evaluation.answers

    def _answers_of(self, run: Run) -> Ints:
        """(N,), what another run's student answered to the test images, which are the same."""
        directory = RunDirectory(run.directory)
        targets, answers = read_answers(directory)
        if not np.array_equal(targets, self.images.test.targets.cpu().numpy()):
            raise CheckpointError(
                f"{directory.answers}: is about other test images; remove it to test again"
            )
        return answers

    def _network(
        self, recipe: NetworkRecipe, entry: ModelEntry, role: str
    ) -> tuple[Network, Layers]:
        loaded = entry.checkpoint is not None or role in self.others
        network, layers = recipe.build(stream(self.spec.seed, role), weights_follow=loaded)
        if entry.checkpoint is not None:
            load_weights(network.model, Path(entry.checkpoint), f"the {role}")
        network.to(self.session.device)
        network.prefer_channels_last(self.images.example.inputs)
        return network, layers

    def _teacher_recipe(self) -> NetworkRecipe:
        assert self.spec.teacher is not None
        if "teacher" not in self.others:
            return recipe_of(self.spec.teacher, self.images, "teacher")
        other = self.others["teacher"]
        recipe = recipe_of(other.student, self.session.images(other), "teacher")
        refuse_other_classes(recipe.classes, self.images, "teacher")
        return recipe

    def _measure_teacher(
        self, teacher: Network, entry: TeacherEntry, recipe: NetworkRecipe
    ) -> float | None:
        """The accuracy of a teacher whose weights are loaded; ``None`` if it is not checked."""
        if entry.train is not None or entry.run is not None:
            return None
        split, which = self.images.validation, "validation"
        if not len(split):
            # A pass over all of a large set would take as long as an epoch.
            split, which = self.images.train.sample(_MEASURED), "training"
        classes = self.images.classes
        name = f"the teacher ({entry.checkpoint})" if entry.checkpoint else "the teacher"
        data = self.spec.data
        accuracy = self.session.measured(
            [
                [vars(recipe), file_hash(entry.checkpoint), entry.check],
                [self.images.fingerprint, data.validation, data.split_seed],
            ],
            lambda: measure_teacher(teacher, split, which, classes, name, check=entry.check),
        )
        if not entry.check:
            return None
        if self.spec.student.checkpoint is not None:
            refuse_worse_teacher(accuracy, self.student, split, which, len(classes))
        return accuracy

    def _stage(self, stage: Stage, end: int, losses: Mapping[str, Loss]) -> PreparedStage:
        """A stage, after which so many epochs will have been trained."""
        terms = [Term(e.id, losses[e.id], e.weight, e.warmup_epochs) for e in stage.losses]
        entry = stage.policy
        policy: ClassPolicy = registry().make(ClassPolicy.kind, entry.use, entry.params)
        set_up_policy(
            policy,
            terms,
            classes=self.images.classes,
            has_baseline=self.spec.baseline,
            samples=self.images.train.counts(len(self.images.classes)),
            validation=self.images.validation.counts(len(self.images.classes)),
            seed=self.spec.seed,
            epochs=end,
            images=self.images.fingerprint,
        )
        return PreparedStage(stage, terms, policy)

    def _compare_teacher(self, baseline: RunDirectory) -> None:
        """A loaded teacher must not be worse than the student is without it."""
        split = self.images.validation
        if self.teacher_accuracy is None:
            return
        if not len(split):
            log.info(
                "teacher: not compared with the baseline, there are no validation images; the "
                "report compares it with the student"
            )
        else:
            student = load_student(baseline.path).to(self.session.device)
            count = len(self.images.classes)
            refuse_worse_teacher(self.teacher_accuracy, student, split, "validation", count)

    def _baseline_curves(self, baseline: RunDirectory) -> _Baseline:
        """What the baseline did, in the epochs of this run."""
        file = baseline.classes
        curves, bits = read_curves(file)[1], read_right_rows(baseline)
        epochs = self.others["baseline"].epochs
        if len(curves.student) != epochs or len(bits) != epochs:
            raise CheckpointError(
                f"{file}: epochs are missing; remove {file.parent} to train it again"
            )
        unknown = np.full(len(self.images.classes), np.nan)
        validation = None
        if curves.validation is not None:
            validation = self._our_epochs(curves.validation.student, unknown)
        return _Baseline(
            curve=self._our_epochs(curves.student, unknown),
            validation=validation,
            right_rows=self._our_epochs(bits, np.zeros(bits.shape[1:], bits.dtype)),
        )

    def _our_epochs(self, rows: npt.NDArray[N], unknown: npt.NDArray[N]) -> npt.NDArray[N]:
        """The baseline's ``rows``, one an epoch, in our epochs; ``unknown`` in stages that it has
        not."""
        own = iter(rows)
        shared = baseline_stages(self.spec)
        return np.stack(
            [
                next(own) if number in shared else unknown
                for number, epochs in enumerate(self.spec.stage_epochs)
                for _ in range(epochs)
            ]
        )


def _size(network: Network) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _other_than_1(weights: Floats, names: Sequence[str]) -> dict[str, float]:
    """By name, of the classes whose weight is not 1."""
    given = zip(names, weights.tolist(), strict=True)
    return {name: round(weight, 6) for name, weight in given if weight != 1}
