"""From a spec to a report: the teacher's run, the baseline's run, the student's run."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kdzoo.data.decode import cores
from kdzoo.data.images import Images, ImageSet
from kdzoo.data.load import load_images
from kdzoo.distill.distiller import Distiller
from kdzoo.distill.network import Network
from kdzoo.distill.terms import Term, make_loss, set_up_policy
from kdzoo.errors import (
    CheckpointError,
    DataError,
    KdzooError,
    LockedError,
    NonFiniteError,
    RunError,
    SpecError,
)
from kdzoo.extend.bases import ClassPolicy, DataSource, Loss, ModelSource, Observer
from kdzoo.extend.calling import calling
from kdzoo.extend.contracts import Floats, Layers, RunInfo, TeachingCurves
from kdzoo.extend.registry import registry
from kdzoo.report.page import write_run_page
from kdzoo.report.study import StudyReport, told_apart
from kdzoo.report.study_page import write_study
from kdzoo.report.summary import BestValidation, Comparison, Report, Score, teacher_note
from kdzoo.seeds import stream
from kdzoo.spec.derive import baseline_spec, baseline_stages, teacher_spec
from kdzoo.spec.document import Document
from kdzoo.spec.models import (
    DataEntry,
    LossEntry,
    ModelEntry,
    Spec,
    Stage,
    TeacherEntry,
    settings_of,
)
from kdzoo.spec.read import dump_spec, read_spec, read_study
from kdzoo.training.answers_file import (
    read_answers,
    read_right_rows,
    write_answers,
    write_right_rows,
)
from kdzoo.training.checkpoint import Checkpoint
from kdzoo.training.correction import fit_correction
from kdzoo.training.curves_file import curves_as_csv, read_curves
from kdzoo.training.directory import RunDirectory
from kdzoo.training.distributed import processes, refuse_too_many_processes
from kdzoo.training.environment import device_of, environment, keep_environment, need_compiler
from kdzoo.training.evaluate import Evaluation, Ints, evaluate
from kdzoo.training.loop import PreparedStage, Trainer, Watch, autocast, try_step
from kdzoo.training.teacher_check import measure_teacher, refuse_worse_teacher
from kdzoo.training.teacher_store import TeacherStore, chunk_size, store_key
from kdzoo.training.weights import NetworkRecipe, load_weights

_EVALUATED = ("name", "seed", "data", "student", "device")  # the keys that evaluation reads
_MEASURED = 10_000  # training images that a loaded teacher is measured on

__all__ = ["Run", "Sessions", "Study", "evaluate_run", "load_student", "run", "run_study"]

log = logging.getLogger("kdzoo")

Role = Literal["teacher", "baseline", "student"]
T = TypeVar("T")
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
class Study:
    """Finished runs of one spec.

    Attributes:
        directory: where the report on all of them is.
        report: what came out.
        runs: the runs that were finished.
        failures: why the others were not.
    """

    directory: Path
    report: StudyReport
    runs: tuple[Run, ...]
    failures: tuple[KdzooError, ...]


def run(
    spec: str | Path | Mapping[str, Any] | Spec,
    overrides: Iterable[str] = (),
    *,
    runs: str | Path = "runs",
    fresh: bool = False,
) -> Run:
    """Do what a spec says, or finish what was cut off, or find what was done before.

    The teacher and the baseline are runs of their own, in directories of their own, and are found
    again by every spec that would train the same ones. Called in several processes that torchrun
    started, it trains in all of them together; each gets the same back.

    Args:
        spec: a YAML file, or the same as a mapping.
        overrides: ``key.path=value`` each, as with ``--set``.
        runs: the directory of all run directories.
        fresh: start this run over; a finished teacher or baseline is still used.

    Raises:
        KdzooError: see :mod:`kdzoo.errors`.
    """

    def one() -> Run:
        resolved = read_spec(spec, overrides)
        registry().warn_of_broken()
        with _threads(resolved):
            return _Session(Path(runs), resolved).do(resolved, "student", fresh=fresh)

    return _led(one, Path(runs))


def run_study(
    spec: str | Path | Mapping[str, Any] | Spec,
    overrides: Iterable[str] = (),
    *,
    runs: str | Path = "runs",
    fresh: bool = False,
) -> Study:
    """Do all runs that a spec with ``seeds`` or ``sweep`` stands for, and put them side by side.

    Each is a run as :func:`run` does it; what is finished is found again. A run that another
    process is working on is left for the end. One whose numbers became infinite is left out.

    Args:
        spec: a YAML file, or the same as a mapping.
        overrides: ``key.path=value`` each, as with ``--set``.
        runs: the directory of all run directories; that of the study will be among them.
        fresh: start all these runs over; finished teachers and baselines are still used.

    Raises:
        KdzooError: see :mod:`kdzoo.errors`.
    """
    return _led(lambda: _run_study(read_study(spec, overrides), Path(runs), fresh), Path(runs))


def _run_study(specs: tuple[Spec, ...], runs: Path, fresh: bool) -> Study:
    registry().warn_of_broken()
    sessions = Sessions(runs)
    identities = [sessions.of(one).identity(one) for one in specs]
    _refuse_the_same_run(specs, identities)
    sessions.put_together(specs)
    done: dict[int, Run] = {}
    failures: list[KdzooError] = []
    postponed: list[tuple[int, Spec]] = []

    def do(number: int, one: Spec, *, fresh: bool = False, wait: bool = False) -> None:
        try:
            done[number] = sessions.do(one, fresh=fresh, wait=wait)
        except NonFiniteError as error:
            failures.append(error)
            log.warning("run %d of %d failed: %s", number, len(specs), error)

    for number, one in enumerate(specs, 1):
        log.info("run %d of %d: seed %d", number, len(specs), one.seed)
        try:
            do(number, one, fresh=fresh)
        except LockedError:
            log.info("another process is working on it; it is left for the end")
            postponed.append((number, one))
    for number, one in postponed:
        do(number, one, wait=True)
    finished = tuple(done[number] for number in sorted(done))
    if not finished:
        raise RunError(f"no run of {len(specs)} was finished; the first failed so:\n{failures[0]}")
    identity = hashlib.sha256("".join(identities).encode()).hexdigest()[:10]
    directory = runs / f"{specs[0].name}-study-{identity}"
    report = write_study(directory, [RunDirectory(one.directory) for one in finished])
    return Study(directory, report, finished, tuple(failures))


def _refuse_the_same_run(specs: Sequence[Spec], identities: Sequence[str]) -> None:
    """What differs between two cells of a sweep must make two runs of them."""
    for number, identity in enumerate(identities):
        if (first := identities.index(identity)) < number:
            one, other = told_apart([_as_set(specs[first]), _as_set(specs[number])])
            raise SpecError(
                f"sweep: run {first + 1} ({one}) and run {number + 1} ({other}) are the same run: "
                "what differs changes nothing that is trained; leave one of the two out"
            )


def _as_set(spec: Spec) -> dict[str, Any]:
    """A spec as plain data, with its keys where ``--set`` finds them."""
    data = spec.model_dump(mode="json")
    if len(spec.stages) == 1:
        (stage,) = data.pop("stages")
        data |= stage
    return data


def _led(work: Callable[[], T], runs: Path) -> T:
    """Work that the first process does, while the others take part in what it trains."""
    sessions = Sessions(runs)

    def part(job: _Job) -> None:
        with _threads(job.spec):
            sessions.of(job.spec).take_part(job)

    return processes().lead(work, part)


def load_student(directory: str | Path) -> Network:
    """The trained student of a run, in eval mode, on the CPU.

    It takes images as floats in [0, 1], (B, channels, height, width), and returns logits (B, C);
    the input normalization is part of it. An architecture of your own must be known before
    (:func:`kdzoo.register`).

    Args:
        directory: the run directory.

    Raises:
        CheckpointError: there is no finished run, or its weights are damaged.
    """
    return _trained_student(directory)[0]


def _trained_student(directory: str | Path) -> tuple[Network, NetworkRecipe]:
    file = RunDirectory(Path(directory)).student
    if not file.exists():
        raise CheckpointError(
            f"{directory}: holds no trained student (no {file.name}); name a finished run's "
            "directory (runs/NAME-HASH)"
        )
    recipe = NetworkRecipe.of(file)
    if recipe is None:
        raise CheckpointError(f"{file}: was not written by kdzoo")
    network, _ = recipe.build(seed=0, weights_follow=True)
    load_weights(network.model, file, "the student")
    return network.eval(), recipe


def evaluate_run(directory: str | Path) -> Score:
    """The score of a finished run's student on the test images of its spec.

    Raises:
        KdzooError: there is no finished run, or its data is gone.
    """
    student, recipe = _trained_student(directory)
    # Of the spec only the data and the student are needed: whatever else it names may be gone.
    document = Document.read(RunDirectory(Path(directory)).spec)
    kept = {key: document.data[key] for key in _EVALUATED if key in document.data}
    kept["student"] = {k: v for k, v in kept["student"].items() if k != "checkpoint"}
    spec = read_spec({**kept, "train": {"epochs": 1}})
    session = _Session(Path(directory).parent, spec)
    images = session.images(spec)
    _refuse_other_classes(recipe.classes, images, "student")
    student.to(session.device).prefer_channels_last(images.example.inputs)
    return Score.of(_test(student, images), images.classes)


@dataclass(frozen=True)
class _Job:
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


class _Session:
    """One command: the runs that it needs, and the images they share."""

    def __init__(self, runs: Path, spec: Spec) -> None:
        self.runs = runs
        self.begun = time.time()
        self.device = device_of(spec.device)
        self.workers = spec.data.workers
        if self.workers is None and processes().count > 1:  # they share the machine's cores
            self.workers = max(cores() // processes().local_count, 1)
        self.stored = ""  # what was said last of the teacher's outputs
        self._data: dict[str, ImageSet] = {}
        self._images: dict[str, Images] = {}
        self._measured: dict[str, float] = {}

    def do(self, spec: Spec, role: Role, *, fresh: bool = False, wait: bool = False) -> Run:
        """One run, from wherever it was left to its report.

        Args:
            spec: the run's.
            role: what its student is.
            fresh: start it over.
            wait: wait for another process that is working on it; teachers and baselines always do.
        """
        directory = self.directory(spec)
        if not fresh and directory.finished:
            return self._found(directory, spec, role)
        # All parts are put together before anything is trained, so that whatever does not fit is
        # found at once and not after the teacher.
        plan = _Plan(self, spec, role)
        with directory.locked(wait=wait or role != "student"), _disk_errors(directory):
            if fresh:
                directory.clear()
            elif directory.finished:  # by the process that had the lock
                return self._found(directory, spec, role)
            others = {name: self.do(other, name) for name, other in plan.others.items()}
            return Run(directory.path, plan.do(directory, others))

    def train(self, spec: Spec, role: Role, watch: Watch) -> RunDirectory:
        """The same run, up to where the test images would be read; :meth:`do` goes on from there.

        Another process that is working on it is waited for.

        Args:
            spec: the run's.
            role: what its student is.
            watch: who looks on, at the teacher's and the baseline's run too.
        """
        directory = self.directory(spec)
        if directory.trained:
            return directory
        plan = _Plan(self, spec, role)
        with directory.locked(wait=True), _disk_errors(directory):
            if not directory.trained:  # by the process that had the lock
                watch.begin(role)
                others = {name: self.train(o, name, watch) for name, o in plan.others.items()}
                plan.train(directory, others, watch)
        return directory

    def take_part(self, job: _Job) -> None:
        """In another process than the first: train with it."""
        if self.images(job.spec).fingerprint != job.fingerprint:
            raise DataError(
                f'data "{job.spec.data.use}": the images are not those of the first process; each '
                "machine needs the same"
            )
        _Plan(self, job.spec, job.role).fit(None)

    def environment(self, spec: Spec) -> dict[str, Any]:
        """What a run's last digits depend on."""
        return environment(
            self.device,
            processes=processes().count,
            compiled=any(stage.train.compile for stage in spec.stages),
        )

    def _found(self, directory: RunDirectory, spec: Spec, role: Role) -> Run:
        log.info("%s: finished before, in %s", role, directory.path)
        keep_environment(directory, self.environment(spec))
        if not (directory.page.exists() and directory.table.exists()):
            write_run_page(directory)  # the run was killed between its report and its page
        return Run(directory.path, Report.read(directory.report))

    def images(self, spec: Spec) -> Images:
        """The images of a spec, on the device."""
        seed = stream(spec.seed if spec.data_seed is None else spec.data_seed, "augmentation")
        key = json.dumps([spec.data.model_dump(mode="json"), seed])
        if key not in self._images:
            entry = spec.data
            self._images[key] = self._load(entry).prepare(
                validation=entry.validation,
                split_seed=entry.split_seed,
                augment_seed=seed,
                crop=entry.crop,
                flip=entry.flip,
            )
        return self._images[key]

    def _load(self, entry: DataEntry) -> ImageSet:
        key = json.dumps([entry.use, entry.params])
        if key not in self._data:
            source: DataSource = registry().make(DataSource.kind, entry.use, entry.params)
            with calling(f'data "{entry.use}"'):
                answer = source.load()
            name = hashlib.sha256(key.encode()).hexdigest()[:10]
            self._data[key] = load_images(
                entry.use,
                answer,
                self.device,
                cache=self.runs / ".cache" / f"{entry.use}-{name}.safetensors",
                workers=self.workers,
            )
        return self._data[key]

    def measured(self, about: object, measure: Callable[[], float]) -> float:
        """A number that many runs of a command ask for, measured once.

        Args:
            about: what decides it, as plain data.
            measure: measures it.
        """
        key = json.dumps(about)
        if key not in self._measured:
            self._measured[key] = measure()
        return self._measured[key]

    def directory(self, spec: Spec) -> RunDirectory:
        """Where a run is, or would be."""
        return RunDirectory.at(self.runs, spec.name, self.identity(spec))

    def identity(self, spec: Spec) -> str:
        """A hash of all that decides a run's result but for rounding: not of names, observers,
        devices or compilation."""
        images = self.images(spec)
        decides = settings_of(spec.model_dump(mode="json"))
        del decides["data_seed"]
        if spec.epochs == sum(stage.train.epochs for stage in spec.stages):
            decides["stop_epoch"] = None  # it would end there anyway
        # The source's own params say where images are; what they are says the fingerprint.
        own = decides["data"].keys() & DataEntry.model_fields.keys()
        decides["data"] = {key: decides["data"][key] for key in own} | {
            "fingerprint": images.fingerprint,
            "crop": images.augmentation.crop,
            "flip": images.augmentation.flip,
            "seed": images.augmentation.seed,
        }
        decides["student"]["checkpoint"] = _file_hash(spec.student.checkpoint)
        decides["teacher"] = None
        if (trained := teacher_spec(spec)) is not None:
            decides["teacher"] = self.identity(trained)
        elif (loaded := spec.teacher) is not None:
            decides["teacher"] = {
                "use": loaded.use,
                "params": loaded.params,
                "normalize": loaded.normalize and loaded.normalize.model_dump(mode="json"),
                "checkpoint": _file_hash(loaded.checkpoint),
            }
        decides["code"] = registry().local_code(set(_uses(decides)))
        text = json.dumps(decides, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]


class Sessions:
    """The sessions of a command of several runs: one for each device that they ask for."""

    def __init__(self, runs: Path) -> None:
        self.runs = runs
        self._sessions: dict[tuple[str, int | None], _Session] = {}

    def of(self, spec: Spec) -> _Session:
        """The one for this spec's device."""
        key = spec.device, spec.data.workers
        if key not in self._sessions:
            self._sessions[key] = _Session(self.runs, spec)
        return self._sessions[key]

    def do(self, spec: Spec, *, fresh: bool = False, wait: bool = False) -> Run:
        """One run, as :func:`run` does it."""
        with _threads(spec):
            return self.of(spec).do(spec, "student", fresh=fresh, wait=wait)

    def train(self, spec: Spec, watch: Watch) -> RunDirectory:
        """One run, up to where the test images would be read. It is the run that :func:`run`
        finishes: found by the same hash, in the same directory."""
        with _threads(spec):
            return self.of(spec).train(spec, "student", watch)

    @property
    def stored(self) -> str:
        """What was said last of the stored outputs of a teacher; empty where there are none."""
        return next((one.stored for one in self._sessions.values() if one.stored), "")

    def directory(self, spec: Spec) -> RunDirectory:
        """Where a run is, or would be."""
        return self.of(spec).directory(spec)

    def validation_images(self, spec: Spec) -> tuple[tuple[str, ...], Ints]:
        """The class names, and (C,) how many validation images each has."""
        images = self.of(spec).images(spec)
        targets = images.validation.targets.cpu().numpy()
        return images.classes, np.bincount(targets, minlength=len(images.classes))

    def put_together(self, specs: Iterable[Spec]) -> None:
        """Put each setting together once, so that the last one's mistake does not wait for the
        first one's hours."""
        tried = set()
        for spec in specs:
            key = dump_spec(spec.model_copy(update={"seed": 0}))
            if key not in tried and not self.directory(spec).finished:
                with _threads(spec):
                    _Plan(self.of(spec), spec, "student")
            tried.add(key)


@contextlib.contextmanager
def _threads(spec: Spec) -> Iterator[None]:
    """The spec's number of threads; that, and the caller's random state, are put back."""
    threads = torch.get_num_threads()
    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    try:
        with torch.random.fork_rng():
            yield
    finally:
        torch.set_num_threads(threads)


class _Plan:
    """All parts of one run, put together but not yet trained."""

    def __init__(self, session: _Session, spec: Spec, role: Role) -> None:
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
        self.recipe = _recipe(spec.student, self.images, "student")
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
        losses = _losses(spec)
        self.stages = [self._stage(stage, losses) for stage in spec.stages]
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
                similarity=any(stage.policy.needs_similarity for stage in self.stages),
                teacher_layers=teacher_layers,
                student_layers=student_layers,
            )
        if spec.teacher is None:  # it may be somebody's baseline
            self.distiller.curves.keep_right_rows(self.images.rows)
        try_step(self.distiller, self.stages, self.images.example)
        for name, other in self.others.items():
            there = session.directory(other)
            if not (there.trained or there.finished):
                _Plan(session, other, name)

    def do(self, directory: RunDirectory, runs: Mapping[Role, Run]) -> Report:
        """Train the student, test it, and write down what came out."""
        others = {role: RunDirectory(done.directory) for role, done in runs.items()}
        trainer, curves = self.train(directory, others)
        report = self._report(directory, trainer, curves, runs)
        if (note := teacher_note(report)) is not None:
            log.warning("%s", note)
        directory.write(directory.report, report.as_json())
        write_run_page(directory)
        return report

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
        keep_environment(directory, self.session.environment(self.spec))
        text = dump_spec(self.spec)
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
        processes().give_out(_Job(self.spec, self.role, self.images.fingerprint))
        trainer, curves = self.fit(_Beginning(info, start, baseline), watch)
        # Again: the run may have been killed between its last checkpoint and these curves.
        directory.write(directory.classes, curves_as_csv(info.classes, curves))
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
        evaluation = _test(self.student, self.images)
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
            images={name: int(n) for name, n in zip(names, evaluation.images, strict=True) if n},
            student=student,
            best_validation=best,
            teacher=teacher,
            baseline=baseline,
            comparison=comparison,
            agreement=agreement,
            untaught=tuple(names[c] for c in curves.untaught),
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
            return _recipe(self.spec.teacher, self.images, "teacher")
        other = self.others["teacher"]
        recipe = _recipe(other.student, self.session.images(other), "teacher")
        _refuse_other_classes(recipe.classes, self.images, "teacher")
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
        count = len(self.images.classes)
        name = f"the teacher ({entry.checkpoint})" if entry.checkpoint else "the teacher"
        data = self.spec.data
        accuracy = self.session.measured(
            [
                [vars(recipe), _file_hash(entry.checkpoint), entry.check],
                [self.images.fingerprint, data.validation, data.split_seed],
            ],
            lambda: measure_teacher(teacher, split, which, count, name, check=entry.check),
        )
        if not entry.check:
            return None
        if self.spec.student.checkpoint is not None:
            refuse_worse_teacher(accuracy, self.student, split, which, count)
        return accuracy

    def _stage(self, stage: Stage, losses: Mapping[str, Loss]) -> PreparedStage:
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


def _test(network: Network, images: Images) -> Evaluation:
    """The test images, with a correction that was fitted on the validation images."""
    correction = fit_correction(network, images.validation)
    return evaluate(network, images.test, len(images.classes), correction)


def _size(network: Network) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _recipe(entry: ModelEntry, images: Images, role: str) -> NetworkRecipe:
    source: ModelSource = registry().make(ModelSource.kind, entry.use, entry.params)
    # Weights of ours bring the classes and the normalization that they were trained with.
    saved = None if entry.checkpoint is None else NetworkRecipe.of(Path(entry.checkpoint))
    if saved is not None:
        _refuse_other_classes(saved.classes, images, role)
    with calling(f'model "{entry.use}"'):
        normalization = entry.normalize or saved or source.normalization() or images
    channels, count = images.input_shape[0], len(normalization.mean)
    if count != channels:
        raise SpecError(
            f"the {role} is normalized with {count} means, and the images have {channels} "
            f"channels; say `normalize` in {role}"
        )
    return NetworkRecipe(
        entry.use,
        entry.params,
        images.input_shape,
        images.classes,
        normalization.mean,
        normalization.std,
    )


def _refuse_other_classes(known: tuple[str, ...], images: Images, role: str) -> None:
    if known != images.classes:
        pairs = zip_longest(known, images.classes, fillvalue="none")
        number, (ours, theirs) = next((i, pair) for i, pair in enumerate(pairs) if len({*pair}) > 1)
        raise SpecError(
            f"the {role} knows {len(known)} classes and the data has {len(images.classes)}; class "
            f"{number} is {ours} there and {theirs} here; they must be the same, in the same order"
        )


def _uses(value: Any) -> Iterator[str]:
    """The names of all components in a spec's plain data."""
    if isinstance(value, dict):
        if isinstance(value.get("use"), str):
            yield value["use"]
        for item in value.values():
            yield from _uses(item)
    elif isinstance(value, list):
        for item in value:
            yield from _uses(item)


def _losses(spec: Spec) -> dict[str, Loss]:
    """The losses of all stages by id; what has the same id in two stages is the same loss."""
    entries: dict[str, LossEntry] = {}
    for stage in spec.stages:
        for entry in stage.losses:
            plain = entry.model_copy(update={"weight": 1.0, "warmup_epochs": 0})
            if entries.setdefault(entry.id, plain) != plain:
                raise SpecError(
                    f'stages: the loss "{entry.id}" has other parameters in another stage; only '
                    "weight and warmup_epochs may differ, or give it another id"
                )
    return {name: make_loss(entry) for name, entry in entries.items()}


def _file_hash(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    return hashlib.sha256(content).hexdigest()


@contextlib.contextmanager
def _disk_errors(directory: RunDirectory) -> Iterator[None]:
    """Says of an error of the disk what it means for the run."""
    try:
        yield
    except OSError as error:
        kept = "the last checkpoint is kept" if directory.checkpoint.exists() else "nothing is lost"
        reason = error.strerror or error
        raise RunError(f"{error.filename or directory.path}: {reason}; {kept}") from error
