"""What can be read out of a study's trials, for its table, its page and TensorBoard."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

__all__ = [
    "best_trial",
    "count_done",
    "importances_of",
    "number",
    "on_front",
    "ranked",
    "runs_again",
    "setting_of",
    "short",
    "values_of",
]


def best_trial(study: Study) -> FrozenTrial:
    """The best trial; of several objectives the one of the front that is best in the first."""
    if len(study.directions) == 1:
        return study.best_trial
    return ranked(study)[0]


def ranked(study: Study) -> list[FrozenTrial]:
    """The complete trials, the best one first; of several objectives, the Pareto front."""
    if len(study.directions) > 1:
        sign = 1 if study.directions[0] == StudyDirection.MINIMIZE else -1
        return sorted(study.best_trials, key=lambda trial: (sign * trial.values[0], trial.number))
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    highest = study.directions[0] == StudyDirection.MAXIMIZE
    return sorted(complete, key=lambda trial: trial.values[0], reverse=highest)


def on_front(study: Study) -> set[int]:
    """The numbers of the trials on the Pareto front; of one objective, of the best one."""
    if len(study.directions) == 1:
        return {study.best_trial.number}
    return {trial.number for trial in study.best_trials}


def values_of(study: Study, trial: FrozenTrial) -> dict[str, float]:
    """What a trial reached in each objective; of a pruned one, what it had when it was pruned."""
    names = study.user_attrs["objective"]
    if trial.values is not None and trial.state == TrialState.COMPLETE:
        return dict(zip(names, trial.values, strict=True))
    if trial.last_step is not None:
        return {names[0]: trial.intermediate_values[trial.last_step]}
    return {}


def runs_again(trials: Sequence[FrozenTrial]) -> set[int]:
    """The numbers of the trials that were cut off and run again as another one."""
    return {number for t in trials for number in t.system_attrs.get("retry_history", ())}


def count_done(trials: Sequence[FrozenTrial]) -> int:
    """How many trials are through; one that was run again is another one's beginning."""
    again = runs_again(trials)
    return sum(t.state.is_finished() and t.number not in again for t in trials)


def setting_of(trials: Sequence[FrozenTrial], trial: FrozenTrial) -> int:
    """The how manieth setting a trial has, from 0: one that is run again keeps its own."""
    first = trial.system_attrs.get("retry_history", (trial.number,))[0]
    return sum("retry_history" not in t.system_attrs for t in trials[:first])


def importances_of(study: Study, objective: int) -> dict[str, float]:
    """Optuna's importances; none where there are too few trials to tell, or they are all alike."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len({trial.values[objective] for trial in complete}) < 2:
        return {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return optuna.importance.get_param_importances(
                study, target=lambda trial: trial.values[objective]
            )
    except (ValueError, RuntimeError):
        return {}


def number(name: str, value: float) -> str:
    """A value of an objective as it is shown."""
    if name == "hurt_classes":
        return f"{value:.4g}"
    return f"{100 * value:.2f} {'points' if name == 'harm' else '%'}"


def short(value: Any) -> str:
    """A param as it is shown; of a whole entry, what it uses first."""
    if isinstance(value, float):
        return f"{value:.4g}"
    try:
        entry = json.loads(value) if isinstance(value, str) else None
    except ValueError:  # a name
        entry = None
    if not isinstance(entry, dict) or "use" not in entry:
        return str(value)
    params = ", ".join(f"{key} {short(v)}" for key, v in entry.items() if key != "use")
    return f"{entry['use']} ({params})" if params else str(entry["use"])
