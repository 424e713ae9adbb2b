"""Several runs side by side: what seeds agree on, and what settings change.

Runs whose specs differ in nothing but the seed are one *setting*.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from kdzoo.errors import RunError
from kdzoo.extend.contracts import Floats
from kdzoo.report.evidence import (
    Judgement,
    Verdict,
    expected_harm,
    judge,
    lowest,
    mcnemar,
)
from kdzoo.report.summary import Confusion, Record, Report, Score, added_confusions, tenth_of
from kdzoo.spec.models import settings_of, without_source
from kdzoo.training.answers_file import read_answers
from kdzoo.training.directory import RunDirectory
from kdzoo.training.evaluate import confusion_of
from kdzoo.words import few

log = logging.getLogger("kdzoo")

__all__ = [
    "ClassEvidence",
    "Setting",
    "Spread",
    "StudyReport",
    "TwoNetworks",
    "Weight",
    "short_keys",
    "told_apart",
]

_METRICS = (
    "accuracy",
    "balanced_accuracy",
    "corrected_accuracy",
    "worst_tenth",
    "top5",
    "calibration_error",
)


class Spread(Record):
    """A number over seeds.

    Attributes:
        mean: its mean.
        deviation: its standard deviation; ``None`` with one seed.
        low: the lower end of the 90 % interval of the mean, by Student's t.
        high: the upper end.
    """

    mean: float
    deviation: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one number."""
        mean, count = float(np.mean(values)), len(values)
        if count == 1:
            return cls(mean=mean, deviation=None, low=None, high=None)
        deviation = float(np.std(values, ddof=1))
        half = float(stats.t.isf(0.05, count - 1)) * deviation / count**0.5
        return cls(mean=mean, deviation=deviation, low=mean - half, high=mean + half)


class ClassEvidence(Record):
    """What the seeds of one setting say about one class.

    See :class:`kdzoo.report.evidence.Judgement` for the numbers.

    Attributes:
        student: the student's mean accuracy.
        baseline: the baseline's.
        difference: the mean of student less baseline.
        low: the lower end of its interval; this and the next four are ``None`` with one seed.
        high: the upper end.
        p: the p value of a difference of 0.
        adjusted: the lowest rate of false discoveries at which the class would be named.
        visible: the smallest difference that would have been seen.
        verdict: ``None`` with fewer than five seeds.
        corrected_difference: the mean difference after both networks' offsets.
        precision: the mean of how much of what the student answers with the class is of it;
            ``None`` if one of the students never answers it.
        predicted_share: the mean of how much of all the student's answers the class is.
        baseline_predicted_share: the same of the baseline.
    """

    student: float
    baseline: float
    difference: float
    low: float | None
    high: float | None
    p: float | None
    adjusted: float | None
    visible: float | None
    verdict: Verdict | None
    corrected_difference: float | None
    precision: float | None
    predicted_share: float
    baseline_predicted_share: float


class Weight(Record):
    """What a policy gave a class in some runs; in the others it is 1.

    Attributes:
        runs: in how many it is not 1.
        mean: the geometric mean over these.
    """

    runs: int
    mean: float


class Setting(Record):
    """Runs that differ in nothing but the seed.

    Attributes:
        name: what tells it from the other settings; empty if there is no other.
        directories: the run directories, in the order of the seeds.
        seeds: the seeds.
        student: the student's accuracy and other numbers, by name; ``worst_class`` is the accuracy
            of whichever class does worst.
        baseline: the same of the baseline; empty without one.
        teacher: the same of the teacher; empty without one.
        agreement: on what share of the test images student and teacher answer the same.
        difference: the student's accuracy less the baseline's, seed by seed.
        against_first: the student's accuracy less that of the first setting, seed by seed; ``None``
            for the first itself, and where no seed is common to both.
        most_hurt: the difference to the baseline, seed by seed, of the tenth of the classes
            (rounded up) that lose most under the first setting in its other seeds: what to expect
            of them in new seeds. ``None`` where no other seed is there.
        harm: the expected harm, of all seeds together; of the two networks where there is one seed.
        capacity_gap: how many parameters the teacher has for each of the student's.
        classes: the evidence on each class, by name; empty without a baseline.
        untaught_runs: in how many of the runs a class was no longer taught at the end, by name, of
            the classes of which that is true in any.
        teacher_weights: how much of the teacher's terms a class got in the last epoch, by name, of
            the classes where it is not 1 in all runs.
        label_weights: the same of the policy's factor on a class's label terms.
        confusions: the pairs of classes that the students confuse more often than their baselines,
            images of all seeds added up, those with most added first, up to thirty; ``None``
            where the directory of a baseline is gone.
    """

    name: str
    directories: tuple[str, ...]
    seeds: tuple[int, ...]
    student: dict[str, Spread]
    baseline: dict[str, Spread]
    teacher: dict[str, Spread]
    agreement: Spread | None
    difference: Spread | None
    against_first: Spread | None
    most_hurt: Spread | None
    harm: float | None
    capacity_gap: float | None
    classes: dict[str, ClassEvidence]
    untaught_runs: dict[str, int]
    teacher_weights: dict[str, Weight]
    label_weights: dict[str, Weight]
    confusions: tuple[Confusion, ...] | None

    def count(self, verdict: Verdict) -> int:
        """How many classes have a verdict."""
        return sum(evidence.verdict == verdict for evidence in self.classes.values())


class TwoNetworks(Record):
    """The students of two runs as two given networks, on the same test images.

    Attributes:
        directories: the run directories.
        only: how many images each alone gets right.
        p: see :func:`kdzoo.report.evidence.mcnemar`; nothing about another seed.
    """

    directories: tuple[str, str]
    only: tuple[int, int]
    p: float

    @classmethod
    def of(cls, one: RunDirectory, other: RunDirectory) -> TwoNetworks:
        """Compare two students that were tested on the same images."""
        (targets, answers), (_, others_answers) = map(read_answers, (one, other))
        right, others_right = answers == targets, others_answers == targets
        return cls(
            directories=(str(one.path), str(other.path)),
            only=(int((right & ~others_right).sum()), int((others_right & ~right).sum())),
            p=mcnemar(right, others_right),
        )


class StudyReport(Record):
    """What came out of several runs.

    Attributes:
        name: the runs' name, or names.
        settings: one or more.
        same_images: whether all runs are on the same images and labels.
        networks: where there are two runs on the same images, their students as two networks.
    """

    name: str
    settings: tuple[Setting, ...]
    same_images: bool
    networks: TwoNetworks | None

    @classmethod
    def of(cls, directories: Iterable[RunDirectory]) -> StudyReport:
        """Put finished runs side by side.

        Raises:
            RunError: a run is not finished, two are the same but for what does not decide, they
                know different classes, or one setting has different images.
            CheckpointError: a file is damaged.
        """
        results = [_Result.read(directory) for directory in directories]
        for result in results:
            if list(result.report.images) != list(results[0].report.images):
                raise RunError(
                    f"{results[0].directory.path} and {result.directory.path} have different "
                    "classes, and cannot be compared"
                )
        same = len({result.report.data for result in results}) == 1
        groups = _grouped(results, same_images=same)
        names = told_apart([group[0].setting(same_images=same) for group in groups])
        settings = [_setting(n, group, groups[0]) for n, group in zip(names, groups, strict=True)]
        titles = dict.fromkeys(result.report.name for group in groups for result in group)
        networks = None
        if len(results) == 2 and same:
            networks = TwoNetworks.of(*(result.directory for result in results))
        return cls(
            name=", ".join(titles), settings=tuple(settings), same_images=same, networks=networks
        )


@dataclass(frozen=True)
class _Result:
    """A finished run: its directory, its spec as plain data, its report."""

    directory: RunDirectory
    spec: dict[str, Any]
    report: Report

    @classmethod
    def read(cls, directory: RunDirectory) -> _Result:
        if not directory.finished:
            raise RunError(f"{directory.path}: {directory.unfinished}")
        spec = directory.kept_spec()
        return cls(directory, spec, Report.read(directory.report))

    @property
    def seed(self) -> int:
        return int(self.spec.get("seed", 0))

    @property
    def differences(self) -> dict[str, float]:
        """Of each class, student less baseline; empty without a baseline."""
        comparison = self.report.comparison
        return {} if comparison is None else comparison.differences

    def setting(self, *, same_images: bool) -> dict[str, Any]:
        """Its spec without the keys that make no other setting. If all runs are on the same images,
        the params of their source are none."""
        setting = {key: item for key, item in settings_of(self.spec).items() if key != "seed"}
        if same_images:
            setting["data"] = without_source(setting["data"])
        return setting


def _grouped(results: Sequence[_Result], *, same_images: bool) -> list[list[_Result]]:
    """By setting, in the order in which these come; each by seed."""
    groups: dict[str, list[_Result]] = {}
    for result in results:
        setting = json.dumps(_flat(result.setting(same_images=same_images)), sort_keys=True)
        groups.setdefault(setting, []).append(result)
    for group in groups.values():
        group.sort(key=lambda result: result.seed)
        for one, other in itertools.pairwise(group):
            if one.seed == other.seed:
                raise RunError(
                    f"{one.directory.path} and {other.directory.path} are of one setting and one "
                    "seed; name one of the two"
                )
            if one.report.data != other.report.data:
                raise RunError(
                    f"{one.directory.path} and {other.directory.path} are of one setting, and not "
                    "of the same images and labels, so that what differs is not the seed alone; "
                    "name runs on the same data"
                )
    return list(groups.values())


def _setting(name: str, group: Sequence[_Result], first: Sequence[_Result]) -> Setting:
    reports = [result.report for result in group]
    baselines = [report.baseline for report in reports if report.baseline is not None]
    students = [report.student for report in reports]
    teachers = [report.teacher for report in reports if report.teacher is not None]
    agreements = [report.agreement for report in reports if report.agreement is not None]
    paired = len(baselines) == len(reports)
    classes, harm = _evidence(reports) if paired else ({}, None)
    others = {result.seed: result.report.student.accuracy for result in first}
    shared = [
        result.report.student.accuracy - others[result.seed]
        for result in group
        if group is not first and result.seed in others
    ]
    parameters = reports[0].teacher_parameters
    untaught = Counter(name for report in reports for name in report.no_longer_taught)
    return Setting(
        name=name,
        directories=tuple(str(result.directory.path) for result in group),
        seeds=tuple(result.seed for result in group),
        student=_spreads(students),
        baseline=_spreads(baselines) if paired else {},
        teacher=_spreads(teachers) if teachers else {},
        agreement=Spread.of(agreements) if agreements else None,
        difference=Spread.of(
            [s.accuracy - b.accuracy for s, b in zip(students, baselines, strict=True)]
        )
        if paired
        else None,
        against_first=Spread.of(shared) if shared else None,
        most_hurt=_most_hurt(group, first) if paired else None,
        harm=harm,
        capacity_gap=parameters / reports[0].parameters if parameters else None,
        classes=classes,
        untaught_runs=dict(untaught.most_common()),
        teacher_weights=_weights([report.teacher_weights for report in reports]),
        label_weights=_weights([report.label_weights for report in reports]),
        confusions=_confusions(group) if paired else (),
    )


def _weights(reports: Sequence[Mapping[str, float]]) -> dict[str, Weight]:
    """Over runs, which name the classes where it is not 1."""
    found: dict[str, list[float]] = {}
    for name, weight in itertools.chain.from_iterable(each.items() for each in reports):
        found.setdefault(name, []).append(weight)
    return {
        name: Weight(runs=len(weights), mean=float(stats.gmean(weights)))
        for name, weights in found.items()
    }


def _spreads(scores: Sequence[Score]) -> dict[str, Spread]:
    values = {metric: [getattr(score, metric) for score in scores] for metric in _METRICS}
    values["worst_class"] = [score.classes[score.worst_class] for score in scores]
    return {metric: Spread.of(v) for metric, v in values.items() if None not in v}


def _evidence(reports: Sequence[Report]) -> tuple[dict[str, ClassEvidence], float]:
    """Each class's evidence, and the expected harm."""
    comparisons = [report.comparison for report in reports if report.comparison is not None]
    names = list(reports[0].images)
    differences = np.array([[c.differences[name] for name in names] for c in comparisons])
    judged = judge(differences, np.array([reports[0].images[name] for name in names]))
    harm = comparisons[0].harm if len(reports) == 1 else expected_harm(judged.mean, judged.error)
    students = [report.student for report in reports]
    baselines = [report.baseline for report in reports if report.baseline is not None]
    accuracy = _means([score.classes for score in students], names)
    others = _means([score.classes for score in baselines], names)
    share = _means([score.predicted_share for score in students], names)
    others_share = _means([score.predicted_share for score in baselines], names)
    precision = _means([score.precision for score in students], names)
    corrected = _means([c.corrected_differences for c in comparisons], names)
    return {
        name: ClassEvidence(
            student=float(accuracy[i]),
            baseline=float(others[i]),
            difference=float(judged.mean[i]),
            **_numbers(judged, i),
            verdict=None if judged.verdicts is None else judged.verdicts[i],
            corrected_difference=_known(corrected[i]),
            precision=_known(precision[i]),
            predicted_share=float(share[i]),
            baseline_predicted_share=float(others_share[i]),
        )
        for i, name in enumerate(names)
    }, harm


def _most_hurt(group: Sequence[_Result], first: Sequence[_Result]) -> Spread | None:
    """See :attr:`Setting.most_hurt`."""
    changes = []
    for result in group:
        others = [other.differences for other in first if other.seed != result.seed]
        if not others or not all(others):
            return None
        own = result.differences
        count = tenth_of(len(own))
        weights = lowest(np.array([sum(each[name] for each in others) for name in own]), count)
        changes.append(float(weights @ np.array(list(own.values()))) / count)
    return Spread.of(changes)


def _confusions(group: Sequence[_Result]) -> tuple[Confusion, ...] | None:
    """What the students of all seeds confuse more often than their baselines."""
    names = list(group[0].report.student.predicted_share)
    pairs = [(result.directory, _baseline_of(result)) for result in group]
    gone = [baseline.path for _, baseline in pairs if not baseline.answers.exists()]
    if gone:
        log.warning("%s: is not there; what is confused more often is not known", gone[0])
        return None
    counts, others = (
        sum(confusion_of(*read_answers(directory), len(names)) for directory in directories)
        for directories in zip(*pairs, strict=True)
    )
    return added_confusions(np.asarray(counts), np.asarray(others), names)


def _baseline_of(result: _Result) -> RunDirectory:
    """Where a run's baseline lies: beside it, wherever both have been moved."""
    name = Path(result.report.directories["baseline"]).name
    return RunDirectory(result.directory.path.resolve().parent / name)


def _numbers(judged: Judgement, number: int) -> dict[str, float | None]:
    """What a judgement says of one class; ``None`` for what one seed cannot tell."""
    names = ("low", "high", "p", "adjusted", "visible")
    return {name: _known(getattr(judged, name)[number]) for name in names}


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _means(columns: Sequence[Mapping[str, float]], names: Sequence[str]) -> Floats:
    """(C,), over runs; NaN where a run has none."""
    table = np.array([[column.get(name, np.nan) for name in names] for column in columns])
    means: Floats = table.mean(0)
    return means


def _flat(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A spec's keys by path, as for ``--set``."""
    flat: dict[str, Any] = {}

    def walk(value: Any, path: str) -> None:
        if isinstance(value, Mapping):
            for key, item in value.items():
                walk(item, f"{path}.{key}" if path else key)
        elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            names = [item.get("id") or item.get("use") for item in value]
            if all(names):
                flat[f"{path}.use"] = names
            for number, item in enumerate(value):
                walk(item, f"{path}.{item.get('id') or item.get('use') or number}")
        elif value != "":  # a teacher that is another spec's student names no component
            flat[path] = value

    walk(spec, "")
    return flat


def told_apart(specs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What tells each spec from the others, as it would be said with ``--set``: of a key, as much
    as tells it from all other keys; of a long list the first few, if that is enough.

    A component's params are compared among the specs that use the component, and those of a list,
    the losses say, among the specs with the same list: elsewhere the names say enough.

    Args:
        specs: as plain data.
    """
    flats = [_flat(spec) for spec in specs]
    names = _names(flats, _said)
    return names if len(set(names)) == len(names) else _names(flats, json.dumps)


def short_keys(keys: Iterable[str]) -> dict[str, str]:
    """Each key without as many of its first parts as are not needed to tell it from the others."""
    ends = {key: [key.split(".", cut)[-1] for cut in range(key.count("."), -1, -1)] for key in keys}
    counts = Counter(end for own in ends.values() for end in own)
    return {key: next((e for e in own if counts[e] == 1), key) for key, own in ends.items()}


def _names(flats: Sequence[Mapping[str, Any]], say: Callable[[Any], str]) -> list[str]:
    words: list[list[str]] = [[] for _ in flats]
    keys = dict.fromkeys(key for flat in flats for key in flat)
    short = short_keys({key.removesuffix(".use") for key in keys})
    for key, end in short.items():  # what is not said to be the teacher's is the student's
        if key.startswith("teacher.") and not end.startswith("teacher."):
            short[key] = f"teacher.{end}"
    for key in keys:
        uses = _uses_above(key, keys)
        differs: dict[str, bool] = {}  # by what the specs that are compared have in common
        for flat, word in zip(flats, words, strict=True):
            if key not in flat:
                continue
            known = {use: flat[use] for use in uses if use in flat}
            common = json.dumps(known)
            if common not in differs:
                alike = [other.get(key) for other in flats if known.items() <= other.items()]
                differs[common] = any(value != alike[0] for value in alike)
            if differs[common]:
                value = flat[key]
                said = value if isinstance(value, str) else say(value)
                word.append(f"{short[key.removesuffix('.use')]}={said}")
    return [", ".join(word) or ("" if len(flats) == 1 else "as it is") for word in words]


def _said(value: Any) -> str:
    if isinstance(value, list):
        return f"[{few([v if isinstance(v, str) else _said(v) for v in value])}]"
    return json.dumps(value).removesuffix(".0")


def _uses_above(key: str, keys: Collection[str]) -> list[str]:
    """The keys that name the components which a key belongs to."""
    parts = key.removesuffix(".use").split(".")[:-1]
    above = [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
    return [f"{path}.use" for path in above if f"{path}.use" in keys]
