"""A study: trials, which are ordinary runs up to their test; then the best one, whole."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import math
import socket
import sys
import time
import uuid
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from filelock import FileLock, Timeout
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import JournalStorage, fail_stale_trials
from optuna.storages import RetryHeartbeatStaleTrialCallback as Retry
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState
from ruamel.yaml import YAML

from kdzoo.errors import CheckpointError, KdzooError, NonFiniteError, RunError, SpecError
from kdzoo.extend.bases import ClassPolicy
from kdzoo.extend.contracts import RunInfo
from kdzoo.extend.declared import Declared
from kdzoo.extend.ranges import Choices
from kdzoo.extend.registry import registry
from kdzoo.pipeline.plan import Run
from kdzoo.pipeline.runs import Study as Runs
from kdzoo.pipeline.runs import run_study
from kdzoo.pipeline.sessions import Sessions
from kdzoo.report.evidence import expected_harm, paired_error
from kdzoo.report.summary import tenth_of
from kdzoo.spec.derive import baseline_spec
from kdzoo.spec.models import Spec
from kdzoo.spec.read import dump_spec
from kdzoo.spec.tuning import AGAINST_BASELINE, Tuning, read_tuning
from kdzoo.training.checkpoint import Checkpoint
from kdzoo.training.directory import RunDirectory
from kdzoo.training.distributed import processes
from kdzoo.training.environment import read_environment
from kdzoo.training.evaluate import Ints
from kdzoo.tuning.hparams import write_hparams
from kdzoo.tuning.interrupts import Interrupts
from kdzoo.tuning.outcome import Outcome
from kdzoo.tuning.page import write_tuning_page
from kdzoo.tuning.progress import Progress
from kdzoo.tuning.search import (
    RETRIES,
    SeededSampler,
    count_trials,
    make_pruner,
    open_storage,
    plain,
    shown,
    suggest,
)
from kdzoo.tuning.trials import best_trial, count_done
from kdzoo.tuning.workers import Workers, follow_leader

__all__ = ["Tuned", "tune"]

log = logging.getLogger("kdzoo")
say = logging.getLogger("kdzoo.tuning")  # heard while the trials' own runs are not

_POLL = 1.0  # seconds between two looks at what the others do
_STORE_GB = 4.0  # what teachers' outputs may take where the spec does not say
_ORPHAN = 60.0  # seconds after which a trial without a worker's name has lost its worker


@dataclass(frozen=True)
class Tuned:
    """A finished study.

    Attributes:
        directory: where it is: ``study.db``, ``best.yaml``, ``report.html``.
        study: Optuna's own.
        best: the best trial; of several objectives the one of the front that is best in the first.
        final: the best setting, trained again on all training images, and tested.
        outcome: what it reached on the validation images, and what on the test images.
    """

    directory: Path
    study: Study
    best: FrozenTrial
    final: Run | Runs
    outcome: Outcome


def tune(
    spec: str | Path | Mapping[str, Any],
    overrides: Iterable[str] = (),
    *,
    runs: str | Path = "runs",
    resume: bool = False,
    workers: int = 1,
) -> Tuned:
    """Search the keys that a spec's ``tune`` names; train the best setting again, and test it.

    Trials are measured on validation images. Any number of processes may work on one study.

    Args:
        spec: a YAML file, or the same as a mapping.
        overrides: ``key.path=value`` each, as with ``--set``.
        runs: the directory of all run directories; that of the study will be among them.
        resume: the study must be there already.
        workers: how many processes on this machine work on it, this one among them. They share its
            threads. A script needs its ``if __name__ == "__main__"`` for them.

    Raises:
        KdzooError: see :mod:`kdzoo.errors`.
    """
    if workers < 1:
        raise RunError(f"workers is {workers}; it must be 1 or more")
    if processes().count > 1:
        raise RunError(
            "a study's workers are not started by torchrun; start `kdzoo tune` as often as there "
            "are to be workers"
        )
    overrides = tuple(overrides)
    tuning = read_tuning(spec, overrides)
    with _quiet():
        worker = _Worker(tuning, Path(runs), resume, workers)
        files = registry().files
        others = Workers(workers - 1, _help, spec, overrides, Path(runs), workers, files)
        with worker.alive(others), others, Progress(worker.study, worker.trials, others):
            worker.work()
        best = worker.best()
        worker.keep_best(best)
        if said := worker.sessions.stored:
            say.info("%s", said)
    final = worker.finish(best)
    again = any(_whole(one) != one for one in worker.specs_of(best))
    reports = [one.report for one in ([final] if isinstance(final, Run) else final.runs)]
    outcome = Outcome.of(worker.study, best, reports, again=again)
    write_tuning_page(worker.directory, worker.study, final.directory, outcome)
    return Tuned(worker.directory, worker.study, best, final, outcome)


def _help(
    spec: str | Path | Mapping[str, Any],
    overrides: tuple[str, ...],
    runs: Path,
    workers: int,
    files: tuple[Path, ...],
) -> None:
    """In another process than the first: work on the study."""
    follow_leader()
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    try:
        for file in files:
            registry().add_file(file)
        with _quiet():
            worker = _Worker(read_tuning(spec, overrides), runs, False, workers)
            with worker.alive(None):
                worker.work()
    except KeyboardInterrupt:
        sys.exit(130)
    except KdzooError as error:
        log.error("a worker: %s", error)
        sys.exit(1)


class _Worker:
    """One process's part in a study."""

    def __init__(self, tuning: Tuning, runs: Path, resume: bool, workers: int) -> None:
        self.tuning = tuning
        self.runs = runs
        self.sessions = Sessions(runs)
        base = tuning.base
        self.seeds = len(base)
        self.threads = base[0].threads or max(torch.get_num_threads() // workers, 1)
        registry().warn_of_broken()
        what = {
            "runs": [self.sessions.of(one).identity(one) for one in base],
            "space": {key: asdict(domain) for key, domain in tuning.space.items()},
            "objective": tuning.tune.objective,
        }
        text = json.dumps(what, sort_keys=True)
        self.identity = hashlib.sha256(text.encode()).hexdigest()[:10]
        self.name = base[0].name
        self.directory = runs / f"{self.name}-tune-{self.identity}"
        there = (self.directory / "study.db").exists()
        if resume and tuning.tune.storage is None and not there:
            raise RunError(f"{self.directory}: there is no study to go on with; leave --resume out")
        # All that can be wrong is found before anything is trained.
        self.pruner = make_pruner(tuning)
        self.trials = count_trials(tuning)
        self._rehearse()
        self.sessions.put_together(one for specs in tuning.structures() for one in specs[:1])
        self._claim = FileLock(self.directory / ".claim.lock")
        try:
            (self.directory / ".workers").mkdir(parents=True, exist_ok=True)
            with self._claim:  # two that make one new database's tables get in each other's way
                self.study = self._open(resume)
        except OSError as error:
            raise RunError(f"{self.directory}: cannot be written: {error.strerror}") from error
        # Another worker finds us dead where nobody holds this lock. Its path names us, too.
        self._lock = FileLock(self.directory.resolve() / ".workers" / uuid.uuid4().hex)
        self.key = f"{socket.gethostname()}:{self._lock.lock_file}"
        self.study.sampler = SeededSampler(tuning)
        self.interrupts = Interrupts()
        self._asked_to_stop = False
        self._waited_for: set[int] = set()

    @property
    def directions(self) -> list[StudyDirection]:
        return [
            StudyDirection.MINIMIZE if name in AGAINST_BASELINE else StudyDirection.MAXIMIZE
            for name in self.tuning.tune.objective
        ]

    def _open(self, resume: bool) -> Study:
        where = self.tuning.tune.storage
        if where is None:
            where = f"sqlite:///{(self.directory / 'study.db').resolve()}"
        storage = open_storage(where, self.tuning.tune.heartbeat)
        try:
            known = {s.study_name for s in optuna.get_all_study_summaries(storage)}
            if resume and self.name not in known:
                raise RunError(f'the storage holds no study "{self.name}"; leave --resume out')
            study = optuna.create_study(
                study_name=self.name,
                storage=storage,
                directions=self.directions,
                pruner=self.pruner,
                load_if_exists=True,
            )
            there = study.user_attrs.get("identity")
            if there is None and not study.get_trials(deepcopy=False):
                study.set_metric_names(list(self.tuning.tune.objective))  # for optuna-dashboard
                study.set_user_attr("space", {k: _said(d) for k, d in self.tuning.space.items()})
                study.set_user_attr("objective", list(self.tuning.tune.objective))
                study.set_user_attr("search", _search(self.tuning))
                study.set_user_attr("identity", self.identity)
            elif there != self.identity:
                space = study.user_attrs.get("space", {})
                keys = ", ".join(f"{key} {said}" for key, said in space.items()) or "none"
                raise SpecError(
                    f'the storage holds another study "{self.name}" (its space: {keys}); give '
                    "this one another `name`, or another storage"
                )
            else:
                self._tell_of_another_search(study)
        except KdzooError:
            raise
        except Exception as error:  # Optuna's, SQLAlchemy's, a damaged journal's
            raise RunError(f"the storage cannot be used: {error}") from error
        return study

    def _tell_of_another_search(self, study: Study) -> None:
        """It may go on with another sampler or pruner; its trials so far stay what they are."""
        before, now = study.user_attrs["search"], _search(self.tuning)
        if before == now:
            return
        for kind in [kind for kind in now if now[kind] != before[kind]]:
            say.warning("the study's %s was %s and is %s now", kind, before[kind], now[kind])
        if count_done(study.get_trials(deepcopy=False)) >= self.trials:
            say.warning(
                "but it has all its trials (%d): raise `tune.trials`, or give it another `name` to "
                "begin again",
                self.trials,
            )
        study.set_user_attr("search", now)

    def _rehearse(self) -> None:
        """Ask the sampler for trials whose values are made up, so that what it cannot do is found
        before anything is trained."""
        study = optuna.create_study(
            directions=self.directions, sampler=SeededSampler(self.tuning), pruner=self.pruner
        )
        try:
            study.optimize(self._made_up, n_trials=12)
        except KdzooError:
            raise
        except Exception as error:
            both = ", ".join(f"{kind} {said}" for kind, said in _search(self.tuning).items())
            raise SpecError(f"tune: cannot work so ({both}): {error}") from error

    def _made_up(self, trial: Trial) -> list[float]:
        self._choose(trial)
        value = float(trial.number % 5)
        if len(self.directions) == 1:
            trial.report(value, 1)
            trial.should_prune()
        return [value] * len(self.directions)

    def _choose(self, trial: Trial) -> dict[str, Any]:
        values: dict[str, Any] = {}

        def choose(key: str, domain: Any) -> Any:
            values[key] = suggest(trial, key, domain)
            return values[key]

        self.tuning.derive(choose)
        return values

    @contextlib.contextmanager
    def alive(self, others: Workers | None) -> Iterator[None]:
        """Hold a lock that is this process's while it lives, and nobody's after it; hear signals.

        Args:
            others: the processes that this one has started; ``None`` in one of them.
        """
        with self._lock, self.interrupts.listen(others):
            yield

    def work(self) -> None:
        """Run trials until the study has as many as it should."""
        while True:
            self.interrupts.check()
            with self.interrupts.deferred():
                self._revive()
                room, running = self._room()
                if room and not self._optimize():
                    return  # the sampler has nothing left to try
                if not room and running:
                    self._tell_of_waiting()
            if not room:
                if not running:
                    return
                time.sleep(_POLL)  # another worker may die, and its trial be left to this one

    def _optimize(self) -> bool:
        """Run trials while there is room: whether more could follow."""
        self._asked_to_stop = False
        try:
            self.study.optimize(self._trial, callbacks=[self._next], catch=(_FailedError,))
        except ValueError as error:
            if not str(error).startswith("Cannot tell a"):  # Optuna has no class for it
                raise
            say.warning("this worker was silent for too long: another one took its trial over")
            return True
        finally:
            self._claim.release(force=True)
        return self._asked_to_stop

    def _next(self, study: Study, trial: FrozenTrial) -> None:
        with self._claim:
            write_hparams(self.directory, study)
        if self.interrupts.stopping or not self._room()[0]:
            self._asked_to_stop = True
            study.stop()

    def _room(self) -> tuple[bool, int]:
        """Whether another trial may begin, and how many are running. If so, nobody else on this
        machine begins one until this one has."""
        self._claim.acquire()
        trials = self.study.get_trials(deepcopy=False)
        running = sum(trial.state == TrialState.RUNNING for trial in trials)
        if count_done(trials) + running < self.trials:
            return True, running
        self._claim.release(force=True)
        return False, running

    def _revive(self) -> None:
        """Queue trials again whose worker is dead. A database knows by its heartbeat; of a worker
        on this machine its lock knows at once."""
        fail_stale_trials(self.study)
        host = f"{socket.gethostname()}:"
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            owner = trial.user_attrs.get("worker", "")
            if not owner:
                begun = trial.datetime_start
                dead = begun is not None and time.time() - begun.timestamp() > _ORPHAN
            else:
                lock = Path(owner.removeprefix(host))
                dead = owner != self.key and owner.startswith(host) and _let_go(lock)
            if dead:
                self._bury(trial.number)

    def _tell_of_waiting(self) -> None:
        """Say once of each trial that it is waited for, where nobody would notice a dead worker."""
        if not isinstance(self.study._storage, JournalStorage):
            return
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            host = trial.user_attrs.get("worker", "").partition(":")[0]
            if host and host != socket.gethostname() and trial.number not in self._waited_for:
                self._waited_for.add(trial.number)
                say.info(
                    "waiting for trial %d on %s; a journal does not know whether it still runs",
                    trial.number,
                    host,
                )

    def _bury(self, number: int) -> None:
        """Queue a dead worker's trial again, unless another process just did."""
        with self._claim:
            trial = self.study.get_trials()[number]
            if trial.state == TrialState.RUNNING:
                self.study.tell(number, state=TrialState.FAIL)
                Retry(max_retry=RETRIES)(self.study, trial)

    def _trial(self, trial: Trial) -> tuple[float, ...]:
        trial.set_user_attr("worker", self.key)
        self._claim.release(force=True)
        values = self._choose(trial)
        try:
            specs = [
                one.model_copy(
                    update={
                        "threads": self.threads,
                        "observers": _silent(one),
                        "store_gb": _STORE_GB if one.store_gb is None else one.store_gb,
                    }
                )
                for one in self.tuning.specs(values)
            ]
            runs = [self.sessions.directory(one).path.name for one in specs]
            trial.set_user_attr("runs", runs)
            watch = _Watch(self, trial, len(specs))
            for place, one in enumerate(specs):
                watch.seed = place
                with self.interrupts.immediate():
                    directory = self.sessions.train(one, watch)
                watch.trained(one, directory)
            threads = read_environment(directory).get("threads", self.threads)
            trial.set_user_attr("threads", threads)  # it may have been begun with others
            return tuple(float(v) for v in np.mean(watch.finals, axis=0))
        except optuna.TrialPruned:
            raise
        except UpdateFinishedTrialError as error:  # another worker took it over
            raise _FailedError from error
        except NonFiniteError as error:
            trial.set_user_attr("reason", str(error))
            raise optuna.TrialPruned from error
        except (SpecError, CheckpointError) as error:
            trial.set_user_attr("reason", str(error))
            raise _FailedError from error
        except BaseException:  # it is the study that ends, not the trial that is bad
            Retry()(self.study, self.study.get_trials()[trial.number])
            raise

    def best(self) -> FrozenTrial:
        """The best trial.

        Raises:
            RunError: none was finished.
        """
        trials = self.study.get_trials(deepcopy=False)
        if not any(trial.state == TrialState.COMPLETE for trial in trials):
            reasons = [t.user_attrs["reason"] for t in trials if "reason" in t.user_attrs]
            why = f"; the first failed so:\n{reasons[0]}" if reasons else ": all were pruned"
            raise RunError(f"no trial of {len(trials)} was finished{why}")
        return best_trial(self.study)

    def specs_of(self, trial: FrozenTrial) -> tuple[Spec, ...]:
        """A trial's specs, one for each seed, as they were run."""
        values = {
            key: domain.choices[shown(domain).index(trial.params[key])]
            if isinstance(domain := self.tuning.space[key], Choices)
            else trial.params[key]
            for key in trial.params
        }
        threads = trial.user_attrs["threads"]
        specs = self.tuning.specs(values)
        return tuple(one.model_copy(update={"threads": threads}) for one in specs)

    def keep_best(self, trial: FrozenTrial) -> None:
        """Write ``best.yaml``."""
        text = dump_spec(*self.specs_of(trial))
        RunDirectory(self.directory).write(self.directory / "best.yaml", text.encode())

    def finish(self, trial: FrozenTrial) -> Run | Runs:
        """Train the best setting again on all training images, and test it."""
        specs = tuple(_whole(one) for one in self.specs_of(trial))
        if len(specs) == 1:
            return self.sessions.do(specs[0], wait=True)
        data = YAML(typ="safe", pure=True).load(dump_spec(*specs))
        return run_study(data, runs=self.runs)


class _FailedError(Exception):
    """A trial cannot be done; the study goes on."""


class _Watch:
    """Tells Optuna how a trial does, and ends it when Optuna or the user says so."""

    def __init__(self, worker: _Worker, trial: Trial, seeds: int) -> None:
        self.worker = worker
        self.trial = trial
        self.seeds = seeds
        self.seed = 0
        self.finals: list[tuple[float, ...]] = []
        self._told: set[int] = set()
        self._shown = -math.inf
        pruner = worker.tuning.tune.pruner
        self._by_seed = pruner is not None and plain(pruner.use) == "wilcoxon"
        objective = worker.tuning.tune.objective
        self._prunes = len(objective) == 1 and (
            self._by_seed or objective[0] not in AGAINST_BASELINE
        )

    def begin(self, role: str) -> None:
        """See :class:`kdzoo.training.loop.Watch`."""
        with self.worker.interrupts.deferred():
            self._show(f"{role} begins")
        self.worker.interrupts.check()

    def epoch(self, info: RunInfo, validation: Sequence[Sequence[int]]) -> None:
        """See :class:`kdzoo.training.loop.Watch`."""
        with self.worker.interrupts.deferred():
            self._show(f"{info.role} {len(validation)}/{info.epochs}")
            self.worker.interrupts.check()
            if info.role == "student" and self._prunes and not self._by_seed:
                self._report(info.epochs, [np.array(one) for one in validation])

    def trained(self, spec: Spec, directory: RunDirectory) -> None:
        """A seed's run is through; it may have been so before this trial began."""
        kept = Checkpoint.load(directory)
        assert kept is not None
        correct = [np.array(one) for one in kept.validation]
        sessions = self.worker.sessions
        baseline = None
        if AGAINST_BASELINE & set(self.worker.tuning.tune.objective):
            other = Checkpoint.load(sessions.directory(baseline_spec(spec)))
            assert other is not None
            baseline = np.array(other.validation[-1])
        if self._prunes and not self._by_seed:
            self._report(len(correct), correct)
        self.finals.append(self._values(correct[-1], baseline))
        if self._prunes and self._by_seed:
            self._tell(self.seed, self.finals[-1][0])

    def _report(self, epochs: int, validation: list[Any]) -> None:
        for number, correct in enumerate(validation):
            before = [final[0] for final in self.finals]
            value = float(np.mean([*before, self._values(correct, None)[0]]))
            self._tell(self.seed * epochs + number + 1, value)

    def _tell(self, step: int, value: float) -> None:
        if step in self._told:
            return
        self._told.add(step)
        self.trial.report(value, step)
        if self.trial.should_prune():
            raise optuna.TrialPruned

    @functools.cached_property
    def _images(self) -> Ints:
        """(C,), the validation images; which they are does not change within a study."""
        return self.worker.sessions.validation_images(self.worker.tuning.base[0])[1]

    def _values(self, correct: Any, baseline: Any) -> tuple[float, ...]:
        images = self._images
        known = images > 0
        shares = np.sort(correct[known] / images[known])
        values = {
            "accuracy": correct.sum() / images.sum(),
            "worst_class": shares[0],
            "worst_tenth": shares[: tenth_of(len(shares))].mean(),
        }
        if baseline is not None:
            values["harm"] = _harm(correct[known], baseline[known], images[known])
            values["hurt_classes"] = (correct < baseline).sum()
        return tuple(float(values[name]) for name in self.worker.tuning.tune.objective)

    def _show(self, doing: str) -> None:
        """Tell whoever shows the study what the trial is at; an epoch may be shorter than that."""
        if time.monotonic() - self._shown > _POLL:
            self._shown = time.monotonic()
            which = f"seed {self.seed + 1}, " if self.worker.seeds > 1 else ""
            self.trial.set_user_attr("doing", which + doing)


def _harm(correct: Ints, baseline: Ints, images: Ints) -> float:
    """The expected harm, of (C,) each. Which images both got right is not kept: as by chance."""
    gained, lost = correct * (1 - baseline / images), baseline * (1 - correct / images)
    errors = paired_error(gained, lost, images.astype(np.float64))
    return expected_harm((correct - baseline) / images, errors)


def _whole(spec: Spec) -> Spec:
    """The spec with all its training images, unless a policy decides by the others."""
    for entry in (stage.policy for stage in spec.stages):
        policy: ClassPolicy = registry().make(ClassPolicy.kind, entry.use, entry.params)
        if Declared.by(policy).needs_validation:
            return spec
    return spec.model_copy(update={"data": spec.data.model_copy(update={"validation": 0.0})})


def _let_go(lock: Path) -> bool:
    """Whether a worker's lock is there, and nobody's: where it is not, nothing is known."""
    if not lock.exists():
        return False
    try:
        with FileLock(lock, timeout=0):
            return True
    except Timeout:
        return False


def _silent(spec: Spec) -> tuple[Any, ...]:
    return tuple(entry for entry in spec.observers if entry.use != "progress")


def _search(tuning: Tuning) -> dict[str, str]:
    """What a spec says of how to search, for messages."""
    entries = {"sampler": tuning.tune.sampler, "pruner": tuning.tune.pruner}
    return {
        kind: "the default" if entry is None else json.dumps({"use": entry.use, **entry.arguments})
        for kind, entry in entries.items()
    }


def _said(domain: Any) -> str:
    return json.dumps({k: v for k, v in asdict(domain).items() if v not in (None, False)})


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Optuna tells of each trial by itself, and of what is experimental in it; the runs tell of
    what each of them finds again."""
    before, level = optuna.logging.get_verbosity(), log.level
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    log.setLevel(logging.WARNING)
    say.setLevel(logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)
        log.setLevel(level)
