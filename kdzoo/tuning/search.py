"""Optuna's samplers, pruners and storages, out of a spec's words."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path
from typing import Any

import optuna
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages import RetryHeartbeatStaleTrialCallback as Retry
from optuna.storages.journal import JournalFileBackend

from kdzoo.errors import RunError, SpecError, did_you_mean
from kdzoo.extend.ranges import Choices, Range
from kdzoo.spec.tuning import SearchEntry, Tuning

__all__ = ["RETRIES", "make_pruner", "make_sampler", "open_storage", "suggest"]

RETRIES = 5  # of a trial whose worker dies: it may be the trial that kills it

_SAMPLERS: dict[str, type[Any]] = {
    name.removesuffix("Sampler").lower(): value
    for name, value in vars(optuna.samplers).items()
    if isinstance(value, type)
    and issubclass(value, BaseSampler)
    and name not in ("BaseSampler", "PartialFixedSampler")  # the last is made of another one
}
_PRUNERS: dict[str, type[Any]] = {
    name.removesuffix("Pruner").lower(): value
    for name, value in vars(optuna.pruners).items()
    if isinstance(value, type)
    and issubclass(value, BasePruner)
    and name not in ("BasePruner", "PatientPruner")
}


def make_sampler(tuning: Tuning, seed: int) -> BaseSampler:
    """The sampler of a study; one that is told no seed gets this one.

    Raises:
        SpecError: Optuna has no such sampler, or it does not take these arguments.
    """
    entry = tuning.tune.sampler
    extra: dict[str, Any] = {"seed": seed % 2**32}
    if _plain(entry.use) == "grid":
        extra["search_space"] = {key: _grid(key, d) for key, d in tuning.space.items()}
    made: BaseSampler = _made("sampler", entry, _SAMPLERS, extra)
    return made


def make_pruner(tuning: Tuning, epochs: int, seeds: int) -> BasePruner:
    """The pruner of a study.

    Raises:
        SpecError: Optuna has no such pruner, it does not take these arguments, or has no use here.
    """
    entry, several = tuning.tune.pruner, len(tuning.tune.objective) > 1
    if entry is None:
        return optuna.pruners.NopPruner() if several else optuna.pruners.MedianPruner()
    if several and _plain(entry.use) != "nop":
        raise SpecError("tune.pruner: Optuna prunes by one objective only; remove it")
    extra = {"max_resource": epochs} if _plain(entry.use) == "hyperband" else {}
    made: BasePruner = _made("pruner", entry, _PRUNERS, extra)
    if _plain(entry.use) == "wilcoxon":
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

    shown = where
    try:
        url = sqlalchemy.make_url(where)
        shown = url.render_as_string(hide_password=True)
        connect: dict[str, Any] = {"timeout": 60}
        if url.get_backend_name() in ("postgresql", "postgres"):
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
            f"{shown}: its driver is not installed ({error}); for PostgreSQL: "
            "pip install 'kdzoo[postgresql]'"
        ) from error
    except Exception as error:  # SQLAlchemy's, Alembic's, Optuna's, the driver's own
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        raise RunError(f"{shown}: the storage cannot be used: {reason}") from error


def _journal(path: Path) -> BaseStorage:
    try:
        if path.exists() and path.read_bytes()[:6] == b"SQLite":
            raise RunError(f"{path}: is an SQLite file; say sqlite:///{path}")
        path.parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(path)))
    except OSError as error:
        raise RunError(f"{path}: the storage cannot be used: {error.strerror}") from error
    except (ValueError, KeyError) as error:
        raise RunError(f"{path}: is no journal of Optuna's: {error}") from error


def suggest(trial: optuna.trial.Trial, key: str, domain: Range | Choices, shown: list[Any]) -> Any:
    """What a trial is to use. ``shown`` is how the choices stand in the storage."""
    if isinstance(domain, Choices):
        return domain.choices[shown.index(trial.suggest_categorical(key, shown))]
    if domain.whole:
        low, high, step = int(domain.low), int(domain.high), int(domain.step or 1)
        return trial.suggest_int(key, low, high, step=step, log=domain.log)
    return trial.suggest_float(key, domain.low, domain.high, step=domain.step, log=domain.log)


def _grid(key: str, domain: Range | Choices) -> list[Any]:
    if isinstance(domain, Choices):
        return [c if isinstance(c, str | int | float | None) else str(c) for c in domain.choices]
    step = domain.step or (1 if domain.whole else None)
    if step is None:
        raise SpecError(f"tune.space.{key}: a grid needs a step, or choices")
    return [domain.low + i * step for i in range(round((domain.high - domain.low) / step) + 1)]


def _made(kind: str, entry: SearchEntry, known: dict[str, type[Any]], extra: dict[str, Any]) -> Any:
    cls = known.get(_plain(entry.use))
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
    arguments = {**{k: v for k, v in extra.items() if k in parameters}, **entry.arguments}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return cls(**arguments)
    except Exception as error:
        raise SpecError(f"tune.{kind}: {entry.use} does not take these: {error}") from error


def _plain(name: str) -> str:
    """CMA-ES and NSGA-II are names too."""
    return name.lower().replace("-", "").replace("_", "")
