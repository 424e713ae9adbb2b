"""A study's report.html, report.json and report.csv: its trials, what mattered, the final runs."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from kdzoo.report.page import render
from kdzoo.training.directory import RunDirectory
from kdzoo.tuning.outcome import Outcome
from kdzoo.tuning.trials import importances_of, number, on_front, ranked, runs_again, short

__all__ = ["write_tuning_page"]

_LEFT, _RIGHT, _TOP, _BOTTOM = 60.0, 704.0, 16.0, 200.0  # the area of a wide plot, in its units
_CURVES = 40  # of trials that are drawn: more cannot be told apart, and make the page heavy


@dataclass(frozen=True)
class Mark:
    """A trial on a plot.

    Attributes:
        x: to the right.
        y: downwards.
        best: whether it is the best one, or of the Pareto front.
        said: the trial in words.
    """

    x: float
    y: float
    best: bool
    said: str


@dataclass(frozen=True)
class Line:
    """A trial across parallel axes, or over its epochs.

    Attributes:
        path: the data of its SVG path.
        best: whether it is of the best tenth; of several objectives, of the Pareto front.
    """

    path: str
    best: bool


@dataclass(frozen=True)
class Plot:
    """Trials in a plane.

    Attributes:
        title: what it shows.
        x: the ends of the horizontal axis, in words, with their places.
        y: the same of the vertical one.
        marks: the trials.
        line: the data of a path through them, if there is one.
        lines: trials that have many values each.
    """

    title: str
    x: tuple[tuple[str, float], ...]
    y: tuple[tuple[str, float], ...]
    marks: tuple[Mark, ...] = ()
    line: str = ""
    lines: tuple[Line, ...] = ()


class _Axis:
    """Numbers, or what is none in the order of its appearance, between two places."""

    def __init__(self, values: Sequence[Any], start: float, end: float, log: bool = False) -> None:
        self._names = None if all(_is_number(v) for v in values) else list(dict.fromkeys(values))
        self._log = log and self._names is None
        scaled = [self._scaled(value) for value in values]
        self._low, self._high = min(scaled), max(scaled)
        self._start, self._end = start, end
        self._ends = [v for _, v in sorted(dict(zip(scaled, values, strict=True)).items())]

    def _scaled(self, value: Any) -> float:
        if self._names is not None:
            return float(self._names.index(value))
        return math.log(value) if self._log else float(value)

    def place(self, value: Any) -> float:
        """Where a value is; in the middle if there is only one."""
        span = self._high - self._low
        share = (self._scaled(value) - self._low) / span if span else 0.5
        return round(self._start + (self._end - self._start) * share, 1)

    def ticks(self, words: Callable[[Any], str]) -> tuple[tuple[str, float], ...]:
        """The ends of a range, or all of a few names, in words."""
        values = self._ends
        shown = values if self._names is not None and len(values) <= 6 else [values[0], values[-1]]
        return tuple((words(v), self.place(v)) for v in dict.fromkeys(shown))


def write_tuning_page(directory: Path, study: Study, final: Path, outcome: Outcome) -> None:
    """Write the report on a study.

    Args:
        directory: the study's.
        study: Optuna's; a trial of it is complete.
        final: the directory of what was trained with the best setting: a run, or several.
        outcome: what came out of it.
    """
    place = RunDirectory(directory)
    names: list[str] = study.user_attrs["objective"]
    trials = [t for t in study.get_trials(deepcopy=False) if t.state.is_finished()]
    cut_off = runs_again(trials)
    trials = [trial for trial in trials if trial.number not in cut_off]
    order = {trial.number: rank for rank, trial in enumerate(ranked(study))}
    trials.sort(key=lambda trial: (order.get(trial.number, math.inf), trial.number))
    keys = list(dict.fromkeys(key for trial in trials for key in trial.params))
    importances = {name: importances_of(study, i) for i, name in enumerate(names)}
    front = on_front(study)
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    tenth = {trial.number for trial in complete[: math.ceil(len(complete) / 10)]}
    states = [trial.state for trial in trials]
    report = {
        "name": study.study_name,
        "space": {key: json.loads(said) for key, said in study.user_attrs["space"].items()},
        "objective": names,
        "best": outcome.trial,
        "front": sorted(front),
        "importances": importances,
        "final": _relative(final, directory),
        "trained_again": outcome.again,
        "validation": outcome.validation,
        "test": outcome.test,
        "trials": [_record(trial, names) for trial in trials],
    }
    page = render(
        "tuning.html",
        kind="study of settings",
        title=study.study_name,
        sections=[
            ("result", "Result"),
            ("trials", "Trials"),
            ("history", "History"),
            *([("curves", "Epoch by epoch")] if _curved(trials) else []),
            ("importances", "Importances"),
            ("slices", "Param by param"),
            ("parallel", "Together"),
            *([("front", "Pareto front")] if len(names) > 1 else []),
        ],
        about=(
            f"Trials: {states.count(TrialState.COMPLETE)} complete, "
            f"{states.count(TrialState.PRUNED)} pruned, {states.count(TrialState.FAIL)} failed. "
            f"Measured: {', '.join(names)}, on the validation images."
        ),
        names=names,
        keys=keys,
        rows=[
            (
                trial,
                _state(trial, outcome, front),
                [number(n, v) for n, v in _values(trial, names).items()] or [""] * len(names),
                [short(trial.params[key]) if key in trial.params else "" for key in keys],
            )
            for trial in trials
        ],
        histories=[_history(study, i, complete, front) for i in range(len(names))],
        curves=_curves(names[0], _curved(trials), front),
        importances=importances,
        slices=[
            _slice(name, i, key, complete, front) for i, name in enumerate(names) for key in keys
        ],
        parallel=_parallel(names[0], keys, complete, front if len(names) > 1 else tenth),
        fronts=[
            _front(names, pair, complete, front)
            for pair in itertools.combinations(range(len(names)), 2)
        ],
        final=(final.name, f"{_relative(final, directory)}/{place.page.name}"),
        outcome=outcome,
    )
    place.write(place.report, json.dumps(report, indent=2).encode() + b"\n")
    place.write(place.table, _csv(trials, names, keys))
    place.write(place.page, page)


def _state(trial: FrozenTrial, outcome: Outcome, front: set[int]) -> tuple[str, bool]:
    """What became of a trial, and whether it is among the best."""
    if trial.number not in front:
        return trial.state.name.lower(), False
    words = "best" if len(trial.values) == 1 else "on the front"
    return f"{words}, tested" if trial.number == outcome.trial else words, True


def _record(trial: FrozenTrial, names: Sequence[str]) -> dict[str, Any]:
    return {
        "number": trial.number,
        "state": trial.state.name.lower(),
        "values": _values(trial, names),
        "params": trial.params,
        "seconds": None if trial.duration is None else trial.duration.total_seconds(),
        "runs": trial.user_attrs.get("runs", []),
        "reason": trial.user_attrs.get("reason"),
    }


def _csv(trials: Sequence[FrozenTrial], names: Sequence[str], keys: Sequence[str]) -> bytes:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["trial", "state", *names, *keys])
    for trial in trials:
        values = _values(trial, names)
        writer.writerow(
            [trial.number, trial.state.name.lower()]
            + [values.get(name, "") for name in names]
            + [trial.params.get(key, "") for key in keys]
        )
    return stream.getvalue().encode()


def _values(trial: FrozenTrial, names: Sequence[str]) -> dict[str, float]:
    if trial.state != TrialState.COMPLETE:
        return {}
    return dict(zip(names, trial.values, strict=True))


def _history(study: Study, which: int, complete: Sequence[FrozenTrial], front: set[int]) -> Plot:
    """Values in the order of the trials, and the best one so far as a line."""
    name = study.user_attrs["objective"][which]
    trials = sorted(complete, key=lambda trial: trial.number)
    x = _Axis([trial.number for trial in trials], _LEFT, _RIGHT)
    y = _Axis([trial.values[which] for trial in trials], _BOTTOM, _TOP)
    lowest = study.directions[which] == StudyDirection.MINIMIZE
    choose: Callable[[float, float], float] = min if lowest else max
    bests = list(itertools.accumulate((trial.values[which] for trial in trials), choose))
    steps = [(x.place(t.number), y.place(b)) for t, b in zip(trials, bests, strict=True)]
    path = f"M{steps[0][0]} {steps[0][1]}" + "".join(f"H{right}V{down}" for right, down in steps)
    return Plot(
        f"{_measure(name)} by trial",
        x.ticks(str),
        y.ticks(lambda value: _tick(name, value)),
        tuple(_mark(trial, x.place(trial.number), which, name, y, front) for trial in trials),
        path,
    )


def _curved(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that said more than once how they did, the best ones first."""
    return [trial for trial in trials if len(trial.intermediate_values) > 1]


def _curves(name: str, trials: Sequence[FrozenTrial], best: set[int]) -> Plot:
    """What the trials said as they went, the best one above the others."""
    drawn = trials[:_CURVES]
    if not drawn:
        return Plot("", (), ())
    steps = sorted({step for trial in drawn for step in trial.intermediate_values})
    x = _Axis(steps, _LEFT, _RIGHT)
    y = _Axis([v for trial in drawn for v in trial.intermediate_values.values()], _BOTTOM, _TOP)
    lines = []
    for trial in sorted(drawn, key=lambda trial: trial.number in best):
        points = sorted(trial.intermediate_values.items())
        path = "M" + "L".join(f"{x.place(step)} {y.place(value)}" for step, value in points)
        lines.append(Line(path, trial.number in best))
    which = f" of {len(drawn)} trials of {len(trials)}" if len(drawn) < len(trials) else ""
    return Plot(
        f"{_measure(name)}{which} by epoch, over all seeds",
        x.ticks(str),
        y.ticks(lambda value: _tick(name, value)),
        lines=tuple(lines),
    )


def _slice(
    name: str, which: int, key: str, complete: Sequence[FrozenTrial], front: set[int]
) -> Plot:
    trials = [trial for trial in complete if key in trial.params]
    if not trials:
        return Plot(f"{_measure(name)} by {key}", (), ())
    x = _Axis([trial.params[key] for trial in trials], 52, 250, _is_log(trials, key))
    y = _Axis([trial.values[which] for trial in trials], 110, 14)
    return Plot(
        f"{_measure(name)} by {key}",
        x.ticks(short),
        y.ticks(lambda value: _tick(name, value)),
        tuple(_mark(trial, x.place(trial.params[key]), which, name, y, front) for trial in trials),
    )


def _front(
    names: Sequence[str], pair: tuple[int, int], complete: Sequence[FrozenTrial], front: set[int]
) -> Plot:
    first, second = pair
    x = _Axis([trial.values[first] for trial in complete], _LEFT, _RIGHT)
    y = _Axis([trial.values[second] for trial in complete], _BOTTOM, _TOP)
    return Plot(
        f"{_measure(names[second])} (upwards) by {_measure(names[first])}",
        x.ticks(lambda value: _tick(names[first], value)),
        y.ticks(lambda value: _tick(names[second], value)),
        tuple(
            _mark(trial, x.place(trial.values[first]), second, names[second], y, front)
            for trial in complete
        ),
    )


def _parallel(
    name: str, keys: Sequence[str], complete: Sequence[FrozenTrial], best: set[int]
) -> tuple[list[tuple[str, float, tuple[tuple[str, float], ...]]], list[Line]]:
    """The axes (their names, places and ends), and a line for each trial that has all params: the
    best ones last, above the others."""
    whole = [trial for trial in complete if all(key in trial.params for key in keys)]
    if not whole:
        return [], []
    columns = [name, *keys]
    places = [round(70 + max(145, 580 / len(keys)) * i, 1) for i in range(len(columns))]
    values = [[trial.values[0] for trial in whole]]
    values += [[trial.params[key] for trial in whole] for key in keys]
    scales = [_Axis(values[0], _BOTTOM, 40)]
    scales += [
        _Axis(column, _BOTTOM, 40, _is_log(whole, key))
        for column, key in zip(values[1:], keys, strict=True)
    ]
    words: list[Callable[[Any], str]] = [lambda value: number(name, value), *[short] * len(keys)]
    axes = [
        (column, place, scale.ticks(word))
        for column, place, scale, word in zip(columns, places, scales, words, strict=True)
    ]
    lines = []
    for row, trial in sorted(enumerate(whole), key=lambda item: item[1].number in best):
        points = [
            f"{place} {scale.place(column[row])}"
            for place, scale, column in zip(places, scales, values, strict=True)
        ]
        lines.append(Line("M" + "L".join(points), trial.number in best))
    return axes, lines


def _mark(
    trial: FrozenTrial, across: float, which: int, name: str, y: _Axis, front: set[int]
) -> Mark:
    value = trial.values[which]
    said = f"trial {trial.number}: {number(name, value)}"
    return Mark(across, y.place(value), trial.number in front, said)


def _measure(name: str) -> str:
    """An objective in a plot's title, with the unit that has no room on an axis."""
    return "harm in points" if name == "harm" else name


def _tick(name: str, value: float) -> str:
    return number(name, value).removesuffix(" points")


def _is_log(trials: Sequence[FrozenTrial], key: str) -> bool:
    return any(getattr(trial.distributions[key], "log", False) for trial in trials)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _relative(path: Path, directory: Path) -> str:
    return Path(os.path.relpath(path, directory)).as_posix()
