"""Shows a study while it works: a line for each trial that ends, and one for each that runs."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Sequence

import numpy as np
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from kdzoo.report.study import short_keys
from kdzoo.tuning.trials import (
    best_trial,
    count_done,
    number,
    runs_again,
    short,
    values_of,
)
from kdzoo.tuning.workers import Workers

__all__ = ["Progress"]

log = logging.getLogger("kdzoo.tuning")

_LOOK = 1.0  # seconds between two looks at the study


class Progress:
    """Tells of all trials of a study, whichever process they run in, as a context manager.

    In a terminal the running ones stand below the others; elsewhere each is said when it begins.

    Args:
        study: Optuna's.
        trials: how many it is to have.
        workers: this machine's other processes.
    """

    def __init__(self, study: Study, trials: int, workers: Workers) -> None:
        self._study = study
        self._total = trials
        self._workers = workers
        self._known = {t.number for t in study.get_trials(deepcopy=False) if t.state.is_finished()}
        self._keys = short_keys(study.user_attrs["space"])
        self._begun: set[int] = set()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        console = Console(stderr=True, highlight=False)
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Progress:
        if self._live.console.is_terminal:
            self._live.start()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._done.set()
        try:
            self._thread.join()
            if kind is None:
                self._look()
        finally:
            self._live.stop()

    def say(self, line: str) -> None:
        """Say a line above those of the running trials."""
        if self._live.is_started:
            self._live.console.print(Text(line))
        else:
            log.info("%s", line)

    def _watch(self) -> None:
        while not self._done.wait(_LOOK):
            try:
                self._look()
            except Exception:  # the storage's: the worker meets it too, and says what it is
                continue

    def _look(self) -> None:
        trials = self._study.get_trials(deepcopy=False)
        again = runs_again(trials)
        running = [t for t in trials if t.state == TrialState.RUNNING and "runs" in t.user_attrs]
        if self._live.is_started:  # first: what is said below shows these again
            lines = [
                f"trial {t.number}: {t.user_attrs.get('doing', '')}  {self._params(t)}"
                for t in running
            ]
            lines.append(f"{count_done(trials)} of {self._total}{self._outlook(trials)}")
            texts = [Text(line, no_wrap=True, overflow="ellipsis") for line in lines]
            self._live.update(Group(*texts))
        through = [t for t in trials if t.state.is_finished() and t.number not in self._known]
        for trial in sorted(
            through, key=lambda t: (t.datetime_complete is None, t.datetime_complete)
        ):
            self._known.add(trial.number)
            if trial.number in again:
                self.say(f"trial {trial.number} was cut off; another one goes on with it")
            else:
                self.say(self._told(trial, trials, again))
        for line in self._workers.lost():
            self.say(line)
        if self._live.is_started:
            self._live.refresh()
            return
        for trial in running:
            if trial.number not in self._begun:
                self._begun.add(trial.number)
                self.say(f"trial {trial.number} begun: {self._params(trial)}")

    def _told(self, trial: FrozenTrial, trials: Sequence[FrozenTrial], again: set[int]) -> str:
        values = ", ".join(f"{n} {number(n, v)}" for n, v in values_of(self._study, trial).items())
        if trial.state != TrialState.COMPLETE:
            values = f"{trial.state.name.lower()}{f' at {values}' if values else ''}"
        done = sum(t.number in self._known and t.number not in again for t in trials)
        return (
            f"trial {trial.number}: {values}  {self._params(trial)}; {done} of {self._total}"
            f"{self._outlook(trials)}"
        )

    def _params(self, trial: FrozenTrial) -> str:
        return ", ".join(f"{self._keys[key]}={short(v)}" for key, v in trial.params.items())

    def _outlook(self, trials: Sequence[FrozenTrial]) -> str:
        said = ""
        if any(t.state == TrialState.COMPLETE for t in trials):
            (name, value), *_ = values_of(self._study, best_trial(self._study)).items()
            said += f", best so far {number(name, value)}"
        lasted = [t.duration.total_seconds() for t in trials if t.duration is not None]
        left = self._total - count_done(trials)
        if lasted and left > 0:
            at_once = max(sum(t.state == TrialState.RUNNING for t in trials), 1)
            said += f", about {_time(float(np.mean(lasted)) * left / at_once)} left"
        return said


def _time(seconds: float) -> str:
    if seconds < 60:
        return f"{math.ceil(seconds)} s"
    minutes = math.ceil(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"
