"""Optuna's samplers, pruners and storages, out of a spec's words."""

from __future__ import annotations

import copy
import inspect
import json
import math
import warnings
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages import RetryHeartbeatStaleTrialCallback as Retry
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study
from optuna.trial import FrozenTrial

from kdzoo.errors import RunError, SpecError, did_you_mean
from kdzoo.extend.ranges import Choices, Range
from kdzoo.seeds import stream
from kdzoo.spec.arguments import expected
from kdzoo.spec.tuning import AGAINST_BASELINE, SearchEntry, Tuning
from kdzoo.tuning.trials import setting_of

__all__ = [
    "RETRIES",
    "SeededSampler",
    "check_search",
    "count_trials",
    "make_pruner",
    "open_storage",
    "plain",
    "shown",
    "suggest",
]

RETRIES = 5  # of a trial whose worker dies: it may be the trial that kills it

_SAMPLERS: dict[str, type[Any]] = {
    name.removesuffix("Sampler").lower(): value
    for name, value in vars(optuna.samplers).items()
    if isinstance(value, type)
    and issubclass(value, BaseSampler)
    and not inspect.isabstract(value)
    and name != "PartialFixedSampler"  # it is made of another one
}
_PRUNERS: dict[str, type[Any]] = {
    name.removesuffix("Pruner").lower(): value
    for name, value in vars(optuna.pruners).items()
    if isinstance(value, type)
    and issubclass(value, BasePruner)
    and not inspect.isabstract(value)
    and name != "PatientPruner"
}


class SeededSampler(BaseSampler):
    """Optuna's sampler as a spec wants it, made anew for each setting, with that setting's seed.

    What is drawn depends on the spec and on the trials before: not on which process draws, nor on
    where a study was interrupted.

    Raises:
        SpecError: Optuna has no such sampler, or it does not take these arguments.
    """

    def __init__(self, tuning: Tuning) -> None:
        self._entry = tuning.tune.sampler
        self._use = plain(self._entry.use)
        self._seed = tuning.base[0].seed
        self._extra = {"search_space": _grids(tuning)} if self._use == "grid" else {}
        self._setting = 0
        self._sampler = self._for(0)

    def _for(self, setting: int) -> BaseSampler:
        if self._use in ("grid", "qmc"):  # a seed is that of one order of all settings
            setting = 0
        seed = stream(self._seed, "tune", setting) % 2**32
        made: BaseSampler = _made("sampler", self._entry, _SAMPLERS, {"seed": seed, **self._extra})
        return made

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """See :class:`optuna.samplers.BaseSampler`, as for the others."""
        self._setting = setting_of(study.get_trials(deepcopy=False), trial)
        self._sampler = self._for(self._setting)
        self._sampler.before_trial(study, trial)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """What is drawn together."""
        if trial.params:  # it is run again, and QMC would count it twice
            return {}
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """These values."""
        if self._use == "cmaes":  # it draws by the trial's number
            trial = copy.copy(trial)
            trial.number = self._setting
        return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(self, *given: Any) -> Any:
        """One of the others."""
        return self._sampler.sample_independent(*given)

    def after_trial(self, *given: Any) -> None:
        """When its values are known."""
        self._sampler.after_trial(*given)


def plain(name: str) -> str:
    """A sampler's or a pruner's name as Optuna's class has it: CMA-ES and NSGA-II are names too."""
    return name.lower().replace("-", "").replace("_", "")


def count_trials(tuning: Tuning) -> int:
    """How many trials a study has: as many as it is told, but no point of a grid twice."""
    if plain(tuning.tune.sampler.use) != "grid":
        return tuning.tune.trials
    return min(tuning.tune.trials, math.prod(len(points) for points in _grids(tuning).values()))


def check_search(tuning: Tuning) -> None:
    """See that a sampler and a pruner can be made.

    Raises:
        SpecError: one of them cannot.
    """
    SeededSampler(tuning)
    make_pruner(tuning)


def make_pruner(tuning: Tuning) -> BasePruner:
    """The pruner of a study.

    Raises:
        SpecError: Optuna has no such pruner, it does not take these arguments, or has no use here.
    """
    entry, objective, seeds = tuning.tune.pruner, tuning.tune.objective, len(tuning.base)
    late = len(objective) == 1 and objective[0] in AGAINST_BASELINE
    if entry is None:
        pruned = len(objective) == 1 and not late
        return optuna.pruners.MedianPruner() if pruned else optuna.pruners.NopPruner()
    if len(objective) > 1 and plain(entry.use) != "nop":
        raise SpecError("tune.pruner: Optuna prunes by one objective only; remove it")
    if late and plain(entry.use) not in ("nop", "wilcoxon"):
        raise SpecError(
            f"tune.pruner: {objective[0]} is measured when a seed's run is through, not after each "
            "epoch; only wilcoxon can prune by it"
        )
    last = tuning.longest() * seeds
    extra = {"max_resource": last} if plain(entry.use) == "hyperband" else {}
    made: BasePruner = _made("pruner", entry, _PRUNERS, extra)
    if plain(entry.use) == "wilcoxon":
        threshold = entry.arguments.get("p_threshold", 0.1)
        if 0.5**seeds >= threshold:
            raise SpecError(
                f"tune.pruner: wilcoxon compares seeds, and with {seeds} it can never be as sure "
                f"as p_threshold {threshold} asks; list more `seeds`"
            )
    return made


def open_storage(where: str, heartbeat: int) -> BaseStorage:
    """A database, or the file of a journal.

    Args:
        where: a URL, or a path.
        heartbeat: seconds between two signs of life in a database.

    Raises:
        RunError: it cannot be reached or read.
    """
    if "://" not in where:
        return _journal(Path(where))
    import sqlalchemy

    said = where
    try:
        url = sqlalchemy.make_url(where)
        said = url.render_as_string(hide_password=True)
        connect: dict[str, Any] = {}
        if url.get_backend_name() == "sqlite":
            if url.database in (None, "", ":memory:"):
                raise RunError(
                    f"{said}: is a database in memory, which nothing can go on with; name a file: "
                    "sqlite:///study.db"
                )
            connect = {"timeout": 60}
        elif url.get_backend_name() in ("postgresql", "postgres"):
            connect = {"connect_timeout": 10}
            if url.drivername in ("postgresql", "postgres"):
                url = url.set(drivername="postgresql+psycopg")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return RDBStorage(
                url.render_as_string(hide_password=False),
                engine_kwargs={"connect_args": connect},
                heartbeat_interval=heartbeat,
                heartbeat_stale_trial_callback=Retry(max_retry=RETRIES),
            )
    except ImportError as error:
        raise RunError(
            f"{said}: its driver is not installed ({error}); for PostgreSQL: "
            "pip install 'kdzoo[postgresql]'"
        ) from error
    except RunError:
        raise
    except Exception as error:  # SQLAlchemy's, Alembic's, Optuna's, the driver's own
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        raise RunError(f"{said}: the storage cannot be used: {reason}") from error


def _journal(path: Path) -> BaseStorage:
    try:
        if path.exists():  # looked at first: Optuna would write into whatever it is
            _check_journal(path)
        elif not path.parent.is_dir():
            raise RunError(f"{path}: the storage cannot be used: there is no {path.parent}")
        return JournalStorage(JournalFileBackend(str(path)))
    except OSError as error:
        raise RunError(f"{path}: the storage cannot be used: {error.strerror}") from error


def _check_journal(path: Path) -> None:
    with open(path, "rb") as stream:
        first = stream.readline(100_000)
    if first.startswith(b"SQLite"):
        raise RunError(f"{path}: is an SQLite file; say sqlite:///{path}")
    try:
        known = not first or "op_code" in json.loads(first)
    except (ValueError, TypeError):
        known = False
    if not known:
        raise RunError(f"{path}: is no journal of Optuna's; name a new file, or a database's URL")


def suggest(trial: optuna.trial.Trial, key: str, domain: Range | Choices) -> Any:
    """What a trial is to use."""
    if isinstance(domain, Choices):
        kept = shown(domain)
        return domain.choices[kept.index(trial.suggest_categorical(key, kept))]
    if domain.whole:
        low, high, step = int(domain.low), int(domain.high), int(domain.step or 1)
        return trial.suggest_int(key, low, high, step=step, log=domain.log)
    return trial.suggest_float(key, domain.low, domain.high, step=domain.step, log=domain.log)


def shown(domain: Choices) -> list[Any]:
    """Choices as Optuna can keep them: whole entries as text."""
    return [
        choice if choice is None or isinstance(choice, str | int | float) else json.dumps(choice)
        for choice in domain.choices
    ]


def _grids(tuning: Tuning) -> dict[str, list[Any]]:
    return {key: _grid(key, domain) for key, domain in tuning.space.items()}


def _grid(key: str, domain: Range | Choices) -> list[Any]:
    if isinstance(domain, Choices):
        return shown(domain)
    step = domain.step or (1 if domain.whole else None)
    if step is None:
        raise SpecError(f"tune.space.{key}: a grid needs a step, or choices")
    steps = round((domain.high - domain.low) / step)
    return [min(domain.low + i * step, domain.high) for i in range(steps + 1)]


def _made(kind: str, entry: SearchEntry, known: dict[str, type[Any]], extra: dict[str, Any]) -> Any:
    cls = known.get(plain(entry.use))
    if cls is None:
        raise SpecError(
            f'tune.{kind}: unknown {kind} "{entry.use}"{did_you_mean(entry.use, known)}'
        )
    parameters = inspect.signature(cls).parameters
    taken = {
        name
        for name, parameter in parameters.items()
        if not any(word in str(parameter.annotation) for word in ("Callable", "Base"))
    }
    for key in entry.arguments:
        if key not in taken:
            raise SpecError(
                f'tune.{kind}: unknown argument "{key}" of {entry.use}{did_you_mean(key, taken)}'
            )
        if (wanted := expected(entry.arguments[key], parameters[key])) is not None:
            raise SpecError(
                f"tune.{kind}: {key} of {entry.use} must be {wanted}, not {entry.arguments[key]!r}"
            )
    arguments = {**{k: v for k, v in extra.items() if k in parameters}, **entry.arguments}
    missing = [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty and name not in arguments
    ]
    if missing:
        raise SpecError(f"tune.{kind}: {entry.use} needs {', '.join(f'`{m}`' for m in missing)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return cls(**arguments)
    except Exception as error:
        raise SpecError(f"tune.{kind}: {entry.use} does not take these: {error}") from error
