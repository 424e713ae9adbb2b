"""What a study ends with: its best trials, and which params mattered."""

from __future__ import annotations

import warnings

import optuna
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState
from rich.table import Table

__all__ = ["tuning_lines", "tuning_table"]

_ROWS = 10


def tuning_table(study: Study) -> Table:
    """The best trials: of several objectives, the Pareto front."""
    names = study.user_attrs["objective"]
    best = _ranked(study)[:_ROWS]
    keys = list(dict.fromkeys(key for trial in best for key in trial.params))
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for column in ("trial", *names, *keys):
        table.add_column(column, justify="right")
    for trial in best:
        values = [
            f"{v:g}" if name == "hurt_classes" else f"{100 * v:.2f} %"
            for name, v in zip(names, trial.values, strict=True)
        ]
        params = [trial.params.get(key, "") for key in keys]
        shown = [f"{p:.4g}" if isinstance(p, float) else str(p) for p in params]
        table.add_row(str(trial.number), *values, *shown)
    return table


def tuning_lines(study: Study) -> list[str]:
    """What is said below the table."""
    states = [trial.state for trial in study.get_trials(deepcopy=False)]
    complete, pruned = states.count(TrialState.COMPLETE), states.count(TrialState.PRUNED)
    lines = [
        f"{complete} trials complete, {pruned} pruned. Measured on the validation images: as the "
        "best of many, the first looks better there than it is."
    ]
    for number, name in enumerate(study.user_attrs["objective"]):
        shares = _importances(study, number)
        if shares:
            said = ", ".join(f"{key} {100 * share:.0f} %" for key, share in shares.items())
            lines.append(f"Importance for {name}: {said}.")
    return lines


def _ranked(study: Study) -> list[FrozenTrial]:
    if len(study.directions) > 1:
        return study.best_trials
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    highest = study.directions[0] == StudyDirection.MAXIMIZE
    return sorted(complete, key=lambda trial: trial.values[0], reverse=highest)


def _importances(study: Study, number: int) -> dict[str, float]:
    """Optuna's importances; none where there are too few trials to tell."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return optuna.importance.get_param_importances(
                study, target=lambda trial: trial.values[number]
            )
    except (ValueError, RuntimeError):
        return {}
