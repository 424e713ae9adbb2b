"""The page, the table and the files on several runs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from kdzoo.errors import RunError
from kdzoo.report.evidence import FALSE_DISCOVERIES, SEEDS_FOR_A_VERDICT, Verdict
from kdzoo.report.page import as_csv, reach, render
from kdzoo.report.study import (
    ClassEvidence,
    Setting,
    Spread,
    StudyReport,
    TwoNetworks,
    Weight,
)
from kdzoo.report.summary import tenth_of, weights_note
from kdzoo.report.table import plain_table
from kdzoo.training.directory import RunDirectory
from kdzoo.words import counted, few

__all__ = ["study_lines", "study_table", "write_study"]

_OTHER_IMAGES = "The runs are not all on the same images, so that settings differ by these too."
_ACROSS = 30  # classes, in the table of classes by settings
_NAME = 24  # what a terminal of 80 columns has room for beside the numbers


@dataclass(frozen=True)
class EvidenceRow:
    """A line of a study's table: a class of a setting."""

    setting: str
    class_: str
    verdict: str | None
    difference: float
    low: float | None
    high: float | None
    student: float
    baseline: float
    corrected_difference: float | None
    p: float | None
    adjusted: float | None
    visible: float | None
    precision: float | None
    predicted_share: float
    baseline_predicted_share: float
    untaught_runs: int
    label_weight: float
    label_weight_runs: int


def write_study(directory: Path, runs: Iterable[RunDirectory]) -> StudyReport:
    """Write ``report.html``, ``report.json`` and ``report.csv`` on several finished runs.

    Args:
        directory: where to; it is made.
        runs: the runs.

    Raises:
        KdzooError: see :meth:`StudyReport.of`, or a file cannot be written.
    """
    report = StudyReport.of(runs)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{directory}: cannot be made: {error.strerror}") from error
    place = RunDirectory(directory)
    tables = [_rows(setting) for setting in report.settings]
    capacity, across = _capacity(report), _across(report)
    page = render(
        "study.html",
        kind="study",
        title=report.name,
        sections=_sections(report, capacity=bool(capacity), across=bool(across)),
        report=report,
        about=_about(report),
        tables=[
            (setting, rows, _said(report, setting), _bars(setting))
            for setting, rows in zip(report.settings, tables, strict=True)
        ],
        across=across,
        reach=reach(row for rows in tables for row in rows),  # one, to compare settings by eye
        capacity=capacity,
        networks=_as_networks(report.networks) if report.networks else "",
        runs=[
            (f"{setting.name}, seed {seed}".removeprefix(", "), _page_of(run, directory), run)
            for setting in report.settings
            for seed, run in zip(setting.seeds, setting.directories, strict=True)
        ],
    )
    place.write(place.report, report.as_json())
    place.write(place.table, as_csv(EvidenceRow, [row for rows in tables for row in rows]))
    place.write(place.page, page)
    return report


def _rows(setting: Setting) -> list[EvidenceRow]:
    """A line for each class, by its difference."""
    unchanged = Weight(runs=0, mean=1.0)
    rows = []
    for name, evidence in setting.classes.items():
        weight = setting.label_weights.get(name, unchanged)
        rows.append(
            EvidenceRow(
                setting=setting.name,
                class_=name,
                **dict(evidence),
                untaught_runs=setting.untaught_runs.get(name, 0),
                label_weight=weight.mean,
                label_weight_runs=weight.runs,
            )
        )
    return sorted(rows, key=lambda row: row.difference)


def _page_of(run: str, directory: Path) -> str:
    page = RunDirectory(Path(run)).page
    return Path(os.path.relpath(page, directory)).as_posix()


def study_table(report: StudyReport) -> Table:
    """The table that a command of several runs ends with."""
    table = plain_table(
        "setting", "seeds", "student", "baseline", "difference", "harm", "hurt", "helped"
    )
    names = [(setting.name or report.name).replace(", ", ",\n") for setting in report.settings]
    # A terminal that is too narrow folds the numbers before it breaks a name that is not too long.
    table.columns[0].no_wrap = max(len(line) for n in names for line in n.split("\n")) <= _NAME
    for name, setting in zip(names, report.settings, strict=True):
        judged = bool(setting.classes) and len(setting.seeds) >= SEEDS_FOR_A_VERDICT
        table.add_row(
            name,
            str(len(setting.seeds)),
            _spread(setting.student["accuracy"]),
            _spread(setting.baseline.get("accuracy")),
            _spread(setting.difference, "+"),
            "" if setting.harm is None else f"{100 * setting.harm:.1f}",
            str(setting.count("hurt")) if judged else "",
            str(setting.count("helped")) if judged else "",
        )
    return table


def study_lines(report: StudyReport) -> list[str]:
    """What is said below the table."""
    lines = ["Accuracies are on the test images, mean and standard deviation over seeds."]
    if not report.same_images:
        lines.append(_OTHER_IMAGES)
    for setting in report.settings:
        said = _said(report, setting)
        lines.append(f"{setting.name}: {said}" if len(report.settings) > 1 else said)
    return lines + ([_as_networks(report.networks)] if report.networks else [])


def _as_networks(two: TwoNetworks) -> str:
    """What McNemar's test says of two students."""
    (one, other), (first, second) = two.directories, two.only
    return (
        f"As two networks: {first} test images are classified correctly by {one} alone, and "
        f"{second} by {other} alone; p = {two.p:.2g} (exact McNemar test). It is not about another "
        "seed."
    )


def _about(report: StudyReport) -> str:
    runs = sum(len(setting.directories) for setting in report.settings)
    seeds = sorted({seed for setting in report.settings for seed in setting.seeds})
    count = len(report.settings)
    settings = "One setting" if count == 1 else f"{count} settings"
    about = f"{settings}, {runs} runs, seeds {', '.join(map(str, seeds))}."
    return about if report.same_images else f"{about} {_OTHER_IMAGES}"


def _said(report: StudyReport, setting: Setting) -> str:
    """The evidence of a setting, and what its policy did, in one paragraph."""
    hurt = _most_hurt(setting, setting is report.settings[0])
    return " ".join([_evidence(setting), *hurt, *_policy(setting)])


def _most_hurt(setting: Setting, first: bool) -> list[str]:
    """What is to be expected of the classes that lose most, in a sentence."""
    fresh = setting.most_hurt
    if fresh is None:
        return []
    count = tenth_of(len(setting.classes))
    they = "class that loses" if count == 1 else f"{count} classes that lose"
    change = f"{100 * fresh.mean:+.1f} points"
    if fresh.low is not None and fresh.high is not None:
        change += f" (90 % interval {100 * fresh.low:+.1f} to {100 * fresh.high:+.1f})"
    if not first:
        return [f"The {they} most under the first setting, chosen by its other seeds: {change}."]
    least = sorted(evidence.difference for evidence in setting.classes.values())[:count]
    return [
        f"The {they} most: {100 * np.mean(least):+.1f} points in these seeds; in each seed, "
        f"chosen by the other seeds, {change}, which is what to expect of new ones."
    ]


def _bars(setting: Setting) -> str:
    """What the bars of a setting's classes are."""
    if len(setting.seeds) == 1:
        return ""
    said = "The bars are 90 % intervals"
    if len(setting.seeds) < SEEDS_FOR_A_VERDICT:
        return f"{said}."
    if setting.count("hurt") + setting.count("helped"):
        said += "; those of classes that are named allow for the selection"
    return (
        f"{said}. One that leaves out 0 is no verdict yet: where there is no difference at all, a "
        "tenth of the classes has such a one by chance."
    )


def _policy(setting: Setting) -> list[str]:
    """What a setting's policy did, in sentences."""
    said, runs = [], len(setting.seeds)
    if setting.untaught_runs:
        names = [
            name + (f" ({count} of {runs} runs)" if runs > 1 else "")
            for name, count in setting.untaught_runs.items()
        ]
        said.append(f"No longer taught: {few(names)}.")
    lesser = {
        name: weight
        for name, weight in setting.teacher_weights.items()
        if name not in setting.untaught_runs
    }
    if lesser:
        said.append(_weights("Teacher", lesser, runs))
    if setting.label_weights:
        said.append(_weights("Label", setting.label_weights, runs))
    return said


def _weights(whose: str, weights: Mapping[str, Weight], runs: int) -> str:
    means = {name: weight.mean for name, weight in weights.items()}
    where = {name: f" in {weight.runs} of {runs} runs" for name, weight in weights.items()}
    return weights_note(whose, means, where if runs > 1 else None)


def _evidence(setting: Setting) -> str:
    count, classes = len(setting.seeds), len(setting.classes)
    if not classes:
        return "There is no baseline to compare with: say `baseline: true`."
    if count == 1:
        return "One seed: estimates without verdicts. How much seeds vary is not known."
    visible = np.median([e.visible for e in setting.classes.values() if e.visible is not None])
    least = (
        f"A class that alone differed by {100 * visible:.1f} points (the median class's number) "
        "would have been seen four times out of five."
        if visible < 1
        else "Not even a class that alone differed by all its images would be seen four times out "
        "of five."
    )
    if count < SEEDS_FOR_A_VERDICT:
        return (
            f"{count} seeds: estimates without verdicts, which need {SEEDS_FOR_A_VERDICT}. {least}"
        )
    hurt, helped = _named(setting, "hurt"), _named(setting, "helped")
    rest = setting.count("no difference shown")
    wrongly = (
        f" On average, {100 * FALSE_DISCOVERIES:.0f} % at most of the classes named are named "
        "wrongly."
    )
    named = wrongly if rest < classes else ""
    return f"{count} seeds: {hurt}, {helped}, and no difference shown for {rest}.{named} {least}"


def _named(setting: Setting, verdict: Verdict) -> str:
    """How many classes have a verdict, and which, the largest difference first."""
    named = [(name, e.difference) for name, e in setting.classes.items() if e.verdict == verdict]
    named.sort(key=lambda item: -abs(item[1]))
    said = [f"{name} by {100 * abs(difference):.1f} points" for name, difference in named]
    return f"{counted(len(named), 'class')} {verdict}" + (f" ({few(said)})" if said else "")


def _sections(report: StudyReport, *, capacity: bool, across: bool) -> list[tuple[str, str]]:
    """The page's parts that there are, by their anchors."""
    sections = [("comparison", "Comparison")]
    if capacity:
        sections.append(("capacity", "Capacity gap"))
    if across:
        sections.append(("across", "Classes by settings"))
    names = [setting.name or "Class by class" for setting in report.settings]
    return [*sections, *((f"s{i}", name) for i, name in enumerate(names)), ("runs", "The runs")]


def _across(report: StudyReport) -> list[tuple[str, list[ClassEvidence]]]:
    """What each setting does to the classes that lose most in any, by what the first does; nothing
    where there is one setting, or one has no baseline."""
    settings = [setting.classes for setting in report.settings]
    if len(settings) == 1 or not all(settings):
        return []
    least = {name: min(each[name].difference for each in settings) for name in settings[0]}
    names = sorted(least, key=lambda name: least[name])[:_ACROSS]
    names.sort(key=lambda name: settings[0][name].difference)
    return [(name, [each[name] for each in settings]) for name in names]


@dataclass(frozen=True)
class CapacityPoint:
    """A setting on a plot of 720 by 240: where, and the numbers.

    Attributes:
        x: to the right, by the logarithm of the gap.
        y: downwards, by the harm.
        gap: how many parameters the teacher has for each of the student's.
        harm: the expected harm.
        name: the setting.
    """

    x: float
    y: float
    gap: float
    harm: float
    name: str


def _capacity(report: StudyReport) -> list[CapacityPoint]:
    """The settings whose gap and harm are known, by gap; none where all gaps are the same."""
    known = sorted(
        (setting.capacity_gap, setting.harm, setting.name)
        for setting in report.settings
        if setting.capacity_gap is not None and setting.harm is not None
    )
    logs = np.log([gap for gap, _, _ in known])
    if len(set(logs)) < 2:
        return []
    across = (logs - logs.min()) / np.ptp(logs)
    most = max(max(harm for _, harm, _ in known), 1e-9)
    return [
        CapacityPoint(
            round(80 + 610 * float(x), 1), round(200 - 180 * harm / most, 1), gap, harm, name
        )
        for x, (gap, harm, name) in zip(across, known, strict=True)
    ]


def _spread(spread: Spread | None, sign: str = "") -> str:
    if spread is None:
        return ""
    deviation = "" if spread.deviation is None else f" ± {100 * spread.deviation:.2f}"
    return f"{100 * spread.mean:{sign}.2f}{deviation}"
