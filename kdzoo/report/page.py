"""report.html and report.csv: a run's page, whole in one file, and its table of classes.

The page is rendered with Jinja, which escapes whatever it is given: class names come from folders
and files of anybody's. It asks no network for anything; its policy forbids that to it.
"""

from __future__ import annotations

import base64
import csv
import dataclasses
import functools
import hashlib
import io
import json
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from kdzoo.errors import RunError
from kdzoo.extend.contracts import Floats, TeachingCurves
from kdzoo.report.summary import Report, Score, notes
from kdzoo.training.curves_file import read_curves
from kdzoo.training.directory import RunDirectory
from kdzoo.training.environment import is_plugin_file, read_environment, versions_in
from kdzoo.words import counted

__all__ = ["as_csv", "render", "write_run_page"]

_CURVES = 12  # classes whose teaching curves are drawn
_UNTAUGHT = 8  # of them, at most, are no longer taught
_POINTS = 120  # of a curve, at most: no more can be seen
_MINUS = "\u2212"


@dataclass(frozen=True)
class ClassRow:
    """A line of a run's table of classes; ``None`` is what is not known.

    Attributes:
        class_: its name.
        images: how many test images it has.
        student: the student's accuracy.
        baseline: the baseline's.
        difference: of the two.
        low: the lower end of its interval.
        high: the upper end.
        corrected_difference: the difference after both networks' offsets.
        precision: the student's precision.
        predicted_share: how much of the student's answers the class is.
        baseline_predicted_share: how much of the baseline's.
        teacher: the teacher's accuracy.
        taught: until when the teacher was listened to, in words.
        label_weight: the policy's factor on its label terms in the last epoch.
        offset: what corrects the student's logit of the class.
    """

    class_: str
    images: int
    student: float
    baseline: float | None
    difference: float | None
    low: float | None
    high: float | None
    corrected_difference: float | None
    precision: float | None
    predicted_share: float
    baseline_predicted_share: float | None
    teacher: float | None
    taught: str
    label_weight: float
    offset: float | None


@dataclass(frozen=True)
class CurveFigure:
    """One class's teaching curve, drawn.

    Attributes:
        name: the class.
        said: the same in words, for who cannot see it.
        lines: which network, and the data of its SVG path.
        stopped: where on the x axis teaching stopped; ``None`` if it did not.
    """

    name: str
    said: str
    lines: tuple[tuple[str, str], ...]
    stopped: float | None


class Interval(Protocol):
    """What the overview of many classes draws."""

    @property
    def difference(self) -> float | None:
        """A difference."""

    @property
    def low(self) -> float | None:
        """The lower end of its interval."""

    @property
    def high(self) -> float | None:
        """The upper end."""


def write_run_page(directory: RunDirectory) -> Path:
    """Write ``report.html`` and ``report.csv`` of a finished run from what lies in its directory.

    Returns:
        The page.

    Raises:
        CheckpointError: something in the directory is damaged.
        RunError: the run is not finished, or a file cannot be written.
    """
    if not directory.finished:
        raise RunError(f"{directory.path}: {directory.unfinished}")
    report, environment = Report.read(directory.report), read_environment(directory)
    names, curves = read_curves(directory.classes)
    spec = directory.kept_spec()
    command, installed = _repeat(versions_in(environment))
    rows = _class_rows(report, dict(zip(names, _taught(curves), strict=True)))
    content = render(
        "run.html",
        kind="run",
        title=report.name,
        sections=_sections(report),
        about=_about(report, spec),
        report=report,
        notes=notes(report),
        classes=rows,
        reach=reach(rows),
        curves=_figures(report, names, curves, [row.class_ for row in rows]),
        spec=directory.spec.read_text(encoding="utf-8"),
        environment=json.dumps(environment, indent=2) if environment else "is gone, or damaged",
        command=command,
        installed=installed,
        teacher_spec=(spec.get("teacher") or {}).get("run"),
    )
    directory.write(directory.table, as_csv(ClassRow, rows))
    directory.write(directory.page, content)
    return directory.page


def render(template: str, **values: Any) -> bytes:
    """A page out of one of the templates, with style and script in it."""
    script, style = _part("page.js"), _part("style.css")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = (
        _templates()
        .get_template(template)
        .render(script=Markup(script), style=Markup(style), script_hash=digest, **values)
    )
    return page.encode()


def as_csv(line: type[Any], rows: Iterable[Any]) -> bytes:
    """Instances of a dataclass, with its fields as columns (``class_`` as ``class``); what is
    unknown is empty."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([field.name.removesuffix("_") for field in dataclasses.fields(line)])
    writer.writerows([["" if v is None else v for v in vars(row).values()] for row in rows])
    return stream.getvalue().encode()


def reach(rows: Iterable[Interval]) -> float:
    """How far an axis must go to both sides of 0 for all intervals: a whole number of 10 points."""
    ends = [abs(end) for row in rows for end in (row.low, row.difference, row.high) if end]
    return min(max(math.ceil(max(ends, default=0.0) * 10 - 1e-9), 1), 10) / 10


def _class_rows(report: Report, taught: Mapping[str, str]) -> list[ClassRow]:
    student, baseline, comparison = report.student, report.baseline, report.comparison
    rows = []
    for name, accuracy in student.classes.items():
        low, high = comparison.intervals[name] if comparison else (None, None)
        rows.append(
            ClassRow(
                class_=name,
                images=report.images[name],
                student=accuracy,
                baseline=_of(baseline, "classes", name),
                difference=comparison.differences[name] if comparison else None,
                low=low,
                high=high,
                corrected_difference=(
                    comparison.corrected_differences.get(name) if comparison else None
                ),
                precision=student.precision.get(name),
                predicted_share=student.predicted_share[name],
                baseline_predicted_share=_of(baseline, "predicted_share", name),
                teacher=_of(report.teacher, "classes", name),
                taught=taught.get(name, ""),
                label_weight=report.label_weights.get(name, 1.0),
                offset=student.correction.offsets[name] if student.correction else None,
            )
        )
    return sorted(rows, key=lambda row: row.student if row.difference is None else row.difference)


def _of(score: Score | None, column: str, name: str) -> float | None:
    return None if score is None else getattr(score, column).get(name)


def _stops(curves: TeachingCurves) -> list[int | None]:
    """For each class, after which epoch it was untaught; ``None`` if it was taught to the end."""
    taught = ~curves.stopped
    return [
        None if column[-1] else int(np.flatnonzero(column)[-1] + 1 if column.any() else 0)
        for column in taught.T
    ]


def _taught(curves: TeachingCurves) -> list[str]:
    words = []
    columns = zip(_stops(curves), curves.stopped.T, curves.teacher_weight[-1], strict=True)
    for stop, stopped, weight in columns:
        gap = stopped[:stop].sum()  # before it was stopped for good
        but = f" but for {counted(gap, 'epoch')}" if gap else ""
        if stop is None:
            words.append(f"to the end{but}" + ("" if weight == 1 else f", weight {weight:.3g}"))
        elif weight:
            rest = f"weight {weight:.3g}"
            words.append(f"to epoch {stop}{but}, then {rest}" if stop else f"never but with {rest}")
        else:
            words.append(f"to epoch {stop}{but}" if stop else "never")
    return words


def _figures(
    report: Report, names: Sequence[str], curves: TeachingCurves, order: Sequence[str]
) -> list[CurveFigure]:
    """The curves of a few classes: those that are no longer taught, then the furthest from the
    baseline on either side, the lost before the gained."""
    stops = dict(zip(names, _stops(curves), strict=True))
    untaught = [name for name in names if name in report.untaught]
    ends = [name for pair in zip(order, reversed(order), strict=True) for name in pair]
    chosen = list(dict.fromkeys([*untaught[:_UNTAUGHT], *ends]))[:_CURVES]
    chosen.sort(key=lambda name: (name not in untaught, order.index(name) if name in order else 0))
    lines = {"student": curves.student}
    if report.teacher is not None:
        lines = {"teacher": curves.teacher, **lines}
    if report.comparison is not None and curves.baseline is not None:
        lines = {"baseline": curves.baseline, **lines}
    figures = []
    for name in chosen:
        column, stop = names.index(name), stops[name] if report.teacher else None
        said = [f"{name}: after the last epoch"]
        said += [f"{who} {_percent(float(line[-1, column]))} %" for who, line in lines.items()]
        if stop is not None:
            weight = curves.teacher_weight[-1, column]
            to = f"went down to {weight:.3g}" if weight else "stopped"
            said.append(f"teaching {to} after epoch {stop}")
        figures.append(
            CurveFigure(
                name=name,
                said=", ".join(said),
                lines=tuple((who, _path(line[:, column])) for who, line in lines.items()),
                stopped=None if stop is None else round(_across(stop, report.epochs), 1),
            )
        )
    return figures


def _across(epoch: float, epochs: int) -> float:
    """Where an epoch, counted from 1, lies on a curve's x axis."""
    return 30 + 226 * (epoch - 1) / max(epochs - 1, 1)


def _path(curve: Floats) -> str:
    """The data of an SVG path; where the curve is unknown it has a gap."""
    steps, pen = [], "M"
    kept = np.unique(np.linspace(0, len(curve) - 1, min(len(curve), _POINTS)).round().astype(int))
    for epoch in kept:
        if np.isnan(curve[epoch]):
            pen = "M"
            continue
        steps.append(f"{pen}{_across(epoch + 1, len(curve)):.1f} {110 - 100 * curve[epoch]:.1f}")
        pen = "L"
    return "".join(steps)


def _sections(report: Report) -> list[tuple[str, str]]:
    sections = [("result", "Result"), ("classes", "Class by class"), ("curves", "Teaching curves")]
    if report.comparison is not None and report.comparison.confusions:
        sections.append(("confusions", "Confusions added"))
    return [*sections, ("repeat", "How to repeat it")]


def _about(report: Report, spec: Mapping[str, Any]) -> str:
    """One sentence on what was run."""
    taught = ""
    if report.teacher is not None:
        by = spec["teacher"].get("use") or f"the student of {Path(spec['teacher']['run']).name}"
        taught = f" by {by} ({report.teacher_parameters:,} parameters)"
    return (
        f"{spec['student']['use']} ({report.parameters:,} parameters), "
        f"{'taught' if taught else 'trained'}{taught} on {spec['data']['use']}: "
        f"{len(report.images)} classes, {report.epochs} epochs, seed {spec.get('seed', 0)}."
    )


def _repeat(versions: Mapping[str, Any]) -> tuple[str, str]:
    """The command that repeats a run, and what must be installed for it."""
    files = [name for name in versions if is_plugin_file(name)]
    command = ["kdzoo run spec.yaml", *(f"--plugin {shlex.quote(name)}" for name in files)]
    installed = [f"{name} {version}" for name, version in versions.items() if name not in files]
    return " ".join(command), ", ".join(installed)


# What the templates use.


def _percent(share: float | None, digits: int = 1) -> str:
    if share is None or math.isnan(share):
        return ""
    return f"{100 * share:.{digits}f}".replace("-", _MINUS)


def _signed(share: float | None, digits: int = 1) -> str:
    if share is None or math.isnan(share):
        return ""
    text = f"{100 * share:+.{digits}f}"
    zero = float(text) == 0
    return text.lstrip("+-") if zero else text.replace("-", _MINUS)


def _probability(p: float) -> str:
    return "0.0001 or less" if p <= 0.0001 else f"{p:.2g}"


def _place(value: float, reach: float) -> str:
    """Where a difference lies on an axis from ``-reach`` to ``reach``, in percent of it."""
    return f"{50 + 50 * max(-1.0, min(value / reach, 1.0)):.3g}"


def _ticks(reach: float) -> list[float]:
    return [reach, reach / 2, 0.0, -reach / 2, -reach]


def _height(value: float, reach: float) -> float:
    return round(120 - 110 * value / reach, 1)


def _rank(number: int, count: int) -> str:
    return f"{52 + 660 * (number + 0.5) / count:.4g}"


def _intervals(rows: Sequence[Interval], reach: float) -> str:
    return "".join(
        f"M{_rank(i, len(rows))} {_height(row.low, reach)}V{_height(row.high, reach)}"
        for i, row in enumerate(rows)
        if row.low is not None and row.high is not None
    )


def _lost(difference: float) -> bool:
    """Whether it is shown as a loss: shares have six digits, and a mean of their differences may be
    off 0 for that alone."""
    return difference < -5e-6


def _dots(rows: Sequence[Interval], reach: float, gained: bool) -> str:
    return "".join(
        f"M{_rank(i, len(rows))} {_height(row.difference, reach)}h0"
        for i, row in enumerate(rows)
        if row.difference is not None and _lost(row.difference) != gained
    )


def _signed_reach(reach: float) -> str:
    return f"{_signed(-reach, 0)} to {_signed(reach, 0)}"


def _part(name: str) -> str:
    return (resources.files("kdzoo.report") / "templates" / name).read_text(encoding="utf-8")


@functools.cache
def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("kdzoo.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=_percent,
        signed=_signed,
        probability=_probability,
        place=_place,
        height=_height,
        intervals=_intervals,
        lost=_lost,
        dots=_dots,
        signed_reach=_signed_reach,
    )
    environment.globals["ticks"] = _ticks
    return environment
