"""What a study ends with: its best trials, and which params mattered."""

from __future__ import annotations

from optuna.study import Study
from optuna.trial import TrialState
from rich.table import Table

from kdzoo.report.study import short_keys
from kdzoo.report.table import plain_table
from kdzoo.tuning.outcome import Outcome
from kdzoo.tuning.trials import importances_of, number, on_front, ranked, short
from kdzoo.words import counted

__all__ = ["tuning_lines", "tuning_table"]

_ROWS = 10


def tuning_table(study: Study) -> Table:
    """The best trials: of several objectives, the Pareto front."""
    names = study.user_attrs["objective"]
    best = ranked(study)[:_ROWS]
    keys = list(dict.fromkeys(key for trial in best for key in trial.params))
    table = plain_table("trial", *names, *short_keys(keys).values(), words=0)
    for trial in best:
        values = [number(name, v) for name, v in zip(names, trial.values, strict=True)]
        params = [short(trial.params[key]) if key in trial.params else "" for key in keys]
        table.add_row(str(trial.number), *values, *params)
    return table


def tuning_lines(study: Study, outcome: Outcome) -> list[str]:
    """What is said below the table."""
    states = [trial.state for trial in study.get_trials(deepcopy=False)]
    complete, pruned = states.count(TrialState.COMPLETE), states.count(TrialState.PRUNED)
    objective = study.user_attrs["objective"]
    lines = []
    if len(objective) > 1:
        front = len(on_front(study))
        which = f"The best {_ROWS} in {objective[0]} of the" if front > _ROWS else "The"
        lines.append(
            f"{which} Pareto front, {counted(front, 'trial')} of {complete}: no other trial is "
            "better in one objective without being worse in another."
        )
    lines += [
        f"{counted(complete, 'trial')} complete, {pruned} pruned. Measured on the validation "
        "images: as the best of many, the first looks better there than it is.",
        f"{outcome.said}.",
    ]
    lines += [
        f"{name}: "
        + (f"{validation} on the validation images, " if validation else "")
        + f"{test} on the test images."
        for name, validation, test in outcome.rows
    ]
    for place, name in enumerate(objective):
        shares = importances_of(study, place)
        if shares:
            said = ", ".join(f"{key} {100 * share:.0f} %" for key, share in shares.items())
            lines.append(f"Importance for {name}: {said}.")
    return lines
