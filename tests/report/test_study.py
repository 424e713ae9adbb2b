"""Several runs side by side."""

from __future__ import annotations

import csv
import html
import io
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made import HOSTILE, IMAGES, finished_run, names_of
from page_reader import Page
from rich.console import Console
from ruamel.yaml import YAML
from scipy import stats

import kdzoo
from kdzoo.report.evidence import expected_harm, judge
from kdzoo.report.study import StudyReport, told_apart
from kdzoo.report.study_page import study_lines, study_table, write_study
from kdzoo.training.answers_file import read_answers
from kdzoo.training.directory import RunDirectory

EFFECTS = np.array([0.0, -0.3, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.15])


def runs_of(place: Path, seeds: range, name: str = "", **options: Any) -> list[RunDirectory]:
    return [finished_run(place / f"r{name}-{s}", seed=s, **options) for s in seeds]


def test_five_seeds_have_verdicts(tmp_path: Path) -> None:
    directories = runs_of(tmp_path, range(6), effects=EFFECTS)
    (setting,) = StudyReport.of(directories).settings
    assert setting.name == ""
    assert setting.seeds == tuple(range(6))
    verdicts = {name: evidence.verdict for name, evidence in setting.classes.items()}
    assert verdicts[HOSTILE] == "hurt"
    reports = [kdzoo.Report.read(directory.report) for directory in directories]
    differences = np.array(
        [[r.comparison.differences[name] for name in names_of(10)] for r in reports if r.comparison]
    )
    judged = judge(differences, np.full(10, IMAGES))
    assert setting.harm == pytest.approx(expected_harm(judged.mean, judged.error))
    evidence = setting.classes[HOSTILE]
    assert evidence.difference == pytest.approx(differences[:, 1].mean())
    assert (evidence.low, evidence.high) == pytest.approx((judged.low[1], judged.high[1]))
    assert setting.untaught_runs == {HOSTILE: 6}
    precisions = [report.student.precision[HOSTILE] for report in reports]
    assert evidence.precision == pytest.approx(np.mean(precisions))
    shares = [report.baseline.predicted_share[HOSTILE] for report in reports if report.baseline]
    assert evidence.baseline_predicted_share == pytest.approx(np.mean(shares))
    assert evidence.predicted_share != evidence.baseline_predicted_share
    accuracies = [report.student.accuracy for report in reports]
    assert setting.student["accuracy"].mean == pytest.approx(np.mean(accuracies))
    assert setting.student["accuracy"].deviation == pytest.approx(np.std(accuracies, ddof=1))
    assert setting.capacity_gap == 10
    for metric in ("corrected_accuracy", "calibration_error"):
        values = [getattr(report.student, metric) for report in reports]
        assert setting.student[metric].mean == pytest.approx(np.mean(values))
    worst = [min(report.student.classes.values()) for report in reports]
    assert setting.student["worst_class"].mean == pytest.approx(np.mean(worst))
    errors = [report.teacher.calibration_error for report in reports if report.teacher]
    assert setting.teacher["calibration_error"].mean == pytest.approx(np.mean(errors))
    agreements = [report.agreement for report in reports]
    assert setting.agreement is not None
    assert setting.agreement.mean == pytest.approx(np.mean(agreements))


def test_the_classes_that_are_hurt_are_named_the_worst_first(tmp_path: Path) -> None:
    effects = np.linspace(0.1, -0.45, 10)
    report = StudyReport.of(runs_of(tmp_path, range(6), effects=effects))
    (setting,) = report.settings
    hurt = {n: e.difference for n, e in setting.classes.items() if e.verdict == "hurt"}
    worst = sorted(hurt, key=hurt.__getitem__)
    assert len(worst) == 7
    named = ", ".join(f"{name} by {-100 * hurt[name]:.1f} points" for name in worst[:5])
    assert f"6 seeds: 7 classes hurt ({named}, and 2 others), " in study_lines(report)[1]
    classes = {n: e for n, e in setting.classes.items() if n not in worst[:6]}
    one = report.model_copy(update={"settings": (setting.model_copy(update={"classes": classes}),)})
    said = f": 1 class hurt ({worst[6]} by {-100 * hurt[worst[6]]:.1f} points), "
    assert said in study_lines(one)[1]


def test_what_is_expected_of_the_classes_that_lose_most_comes_from_the_other_seeds(
    tmp_path: Path,
) -> None:
    """Where nothing has any effect the worst classes of some seeds are not bad in the next."""
    kept: dict[str, Any] = {"classes": 25, "untaught": ()}
    effects = np.zeros(25)
    effects[[3, 4, 5]] = 0.2
    others = {"effects": effects, "changes": {"policy": {"use": "hardest"}}}
    report = StudyReport.of(
        runs_of(tmp_path, range(5), **kept) + runs_of(tmp_path, range(3, 7), "b", **others, **kept)
    )
    first, second = report.settings
    changes = {
        setting.name: {
            seed: kdzoo.Report.read(Path(run) / "report.json").comparison.differences
            for seed, run in zip(setting.seeds, setting.directories, strict=True)
        }
        for setting in report.settings
    }
    draw = np.random.default_rng(0)
    for setting in report.settings:
        fresh = []
        for seed, own in changes[setting.name].items():
            rest = [each for s, each in changes[first.name].items() if s != seed]
            for _ in range(400):  # of classes that lose the same, whichever
                names = sorted(own, key=lambda name: draw.uniform())
                names.sort(key=lambda name, rest=rest: round(sum(r[name] for r in rest), 6))
                fresh.append(np.mean([own[name] for name in names[:3]]))
        assert setting.most_hurt is not None
        assert setting.most_hurt.mean == pytest.approx(np.mean(fresh), abs=2e-3)
    least = np.mean(sorted(evidence.difference for evidence in first.classes.values())[:3])
    assert least < -0.03
    assert first.most_hurt.mean > least / 2
    _, one, other = study_lines(report)
    assert f"The 3 classes that lose most: {100 * least:+.1f} points in these seeds; " in one
    assert f"by the other seeds, {100 * first.most_hurt.mean:+.1f} points (90 % interval " in one
    assert f"by its other seeds: {100 * second.most_hurt.mean:+.1f} points (90 %" in other


@pytest.mark.parametrize("seeds", [1, 2, 4])
def test_fewer_seeds_have_none(tmp_path: Path, seeds: int) -> None:
    report = StudyReport.of(runs_of(tmp_path, range(seeds), effects=EFFECTS))
    (setting,) = report.settings
    assert {evidence.verdict for evidence in setting.classes.values()} == {None}
    known = [evidence.visible is not None for evidence in setting.classes.values()]
    assert all(known) == any(known) == (seeds > 1)
    _, said, *networks = study_lines(report)
    assert len(networks) == (seeds == 2)
    assert "without verdicts" in said
    assert ("would have been seen" in said) == (seeds > 1)
    assert (setting.most_hurt is not None) == ("loses most: " in said) == (seeds > 1)


def test_settings_are_told_apart_as_set_would_say_it(tmp_path: Path) -> None:
    loss = {"use": "kd", "id": "kd", "temperature": 4}
    changes: list[dict[str, Any]] = [
        {"policy": {"use": "all"}},
        {"policy": {"use": "tllm", "margin": 0.1, "window": 5}},
        {"policy": {"use": "tllm", "margin": 0.2, "window": 5}, "losses": [{**loss, "alpha": 1}]},
    ]
    directories = [
        directory
        for number, change in enumerate(changes)
        for directory in runs_of(tmp_path, range(2), str(number), changes=change)
    ]
    report = StudyReport.of(directories)
    assert [setting.name for setting in report.settings] == [
        "policy=all",
        "policy=tllm, margin=0.1",
        "policy=tllm, margin=0.2, alpha=1",
    ]
    first, second, _ = report.settings
    assert first.against_first is None
    assert second.against_first is not None
    # Of the same seed and the same drawn numbers, so there is no difference.
    assert second.against_first.mean == 0


def test_a_name_has_as_much_of_a_key_as_tells_it_from_the_others() -> None:
    losses = [{"use": "ce", "weight": 0.1}, {"use": "kd", "weight": 0.9, "temperature": 2.0}]
    train, many = {"optimizer": {"lr": 0.1}}, list("abcdefgh")
    spec = {"losses": losses, "train": train, "teacher": {"train": train}, "classes": []}
    others = [
        {**spec, "losses": [losses[0], {**losses[1], "weight": 1.5, "temperature": 4.5}]},
        {**spec, "train": {"optimizer": {"lr": 0.2}}, "classes": many},
    ]
    short = "train.optimizer.lr=0.1"  # the teacher has one, too, and all of this is its end
    assert told_apart([spec, *others]) == [
        f"kd.weight=0.9, temperature=2, {short}, classes=[]",
        f"kd.weight=1.5, temperature=4.5, {short}, classes=[]",
        "kd.weight=0.9, temperature=2, train.optimizer.lr=0.2, "
        "classes=[a, b, c, d, e, and 3 others]",
    ]
    # Of another list of losses their names say enough.
    weights = [{"use": "ce", "weight": 1.0}, {"use": "dkd", "warmup_epochs": 0}]
    assert told_apart([spec, {**spec, "losses": weights}]) == [
        "losses=[ce, kd]",
        "losses=[ce, dkd]",
    ]
    # A list is not cut where it differs.
    one, other = told_apart([{"classes": many}, {"classes": [*many[:-1], "z"]}])
    assert one == f"classes={json.dumps(many)}"
    assert other.endswith('"z"]')


def test_a_teacher_that_another_spec_trains_is_named_by_it() -> None:
    specs = [{"teacher": {"use": "mlp"}}, {"teacher": {"use": "", "run": "assistant.yaml"}}]
    assert told_apart(specs) == ["teacher=mlp", "teacher.run=assistant.yaml"]


def test_no_name_is_cut_where_the_table_is_wide(tmp_path: Path) -> None:
    changes = [{"policy": {"use": "tllm", "false_discoveries": x, "margin": x}} for x in (0.1, 0.2)]
    report = StudyReport.of(
        directory
        for number, change in enumerate(changes)
        for directory in runs_of(tmp_path, range(2), str(number), changes=change)
    )
    for width in (60, 80, 200):
        console = Console(width=width, file=io.StringIO(), soft_wrap=True)
        console.print(study_table(report))
        said = console.file.getvalue()
        assert all(said.count(f"false_discoveries={x},") == 1 for x in (0.1, 0.2)), said
        assert all(said.count(f"margin={x} ") == 1 for x in (0.1, 0.2)), said


def test_what_a_policy_did_is_said_of_each_setting(tmp_path: Path) -> None:
    given = [{"hen": 40.0, "tench": 0.5}, {"hen": 20.0}]
    options = [{"untaught": (2, 7), "label_weights": w} for w in given]
    runs = [finished_run(tmp_path / f"r{s}", seed=s, **o) for s, o in enumerate(options)]
    runs.append(finished_run(tmp_path / "r2", seed=2, untaught=(2,)))
    report = write_study(tmp_path / "side", runs)
    (setting,) = report.settings
    assert setting.untaught_runs == {"=1+2": 3, "hen": 2}
    kept = {name: (each.runs, each.mean) for name, each in setting.label_weights.items()}
    assert kept == {"hen": (2, pytest.approx(800**0.5)), "tench": (1, pytest.approx(0.5))}
    said = study_lines(report)[1]
    assert "No longer taught: =1+2 (3 of 3 runs), hen (2 of 3 runs)." in said
    weights = "hen (28.3 in 2 of 3 runs), tench (0.5 in 1 of 3 runs)"
    assert f"Label weights other than 1: {weights}." in said
    assert said in html.unescape((tmp_path / "side" / "report.html").read_text(encoding="utf-8"))
    with open(tmp_path / "side" / "report.csv", newline="", encoding="utf-8") as stream:
        lines = {line["class"]: line for line in csv.DictReader(stream)}
    assert float(lines["hen"]["label_weight"]) == pytest.approx(800**0.5)
    assert (lines["hen"]["untaught_runs"], lines["hen"]["label_weight_runs"]) == ("2", "2")
    assert (lines["ostrich"]["label_weight"], lines["ostrich"]["label_weight_runs"]) == ("1.0", "0")


def test_what_does_not_decide_makes_no_setting(tmp_path: Path) -> None:
    one = finished_run(tmp_path / "a", seed=0)
    data, train = {"use": "image-folder", "workers": 2}, {"epochs": 8, "compile": True}
    changes = {"device": "cpu", "name": "other", "data": data, "train": train, "threads": 2}
    other = finished_run(tmp_path / "b", seed=1, changes=changes)
    third = finished_run(tmp_path / "c", seed=2, changes={"train": {"epochs": 9}})
    report = StudyReport.of([other, one, third])
    assert [setting.seeds for setting in report.settings] == [(0, 1), (2,)]


def test_where_the_same_images_lie_makes_no_setting(tmp_path: Path) -> None:
    data = {"use": "image-folder", "validation": 0.1, "root": "/here"}
    one = finished_run(tmp_path / "a", seed=0, changes={"data": data})
    moved = finished_run(tmp_path / "b", seed=1, changes={"data": {**data, "root": "/there"}})
    (setting,) = StudyReport.of([one, moved]).settings
    assert setting.seeds == (0, 1)
    kept = {"data": {**data, "root": "/there", "validation": 0.2}}
    report = StudyReport.of([one, moved, finished_run(tmp_path / "c", changes=kept)])
    assert [setting.name for setting in report.settings] == ["validation=0.1", "validation=0.2"]
    others = {"data": {**data, "root": "/there"}}
    report = StudyReport.of([one, finished_run(tmp_path / "d", data="those", changes=others)])
    assert [setting.name for setting in report.settings] == ["root=/here", "root=/there"]
    told = "The runs are not all on the same images"
    assert sum(told in line for line in study_lines(report)) == 1
    assert not any(told in line for line in study_lines(StudyReport.of([one, moved])))


def test_what_cannot_be_compared_is_refused(
    tmp_path: Path, kdzoo_command: Callable[..., Any]
) -> None:
    one, other = finished_run(tmp_path / "a"), finished_run(tmp_path / "b", classes=12)
    with pytest.raises(kdzoo.RunError, match="have different classes"):
        StudyReport.of([one, other])
    with pytest.raises(kdzoo.RunError, match=r"are of one setting and one seed; name one"):
        StudyReport.of([one, finished_run(tmp_path / "c")])
    with pytest.raises(kdzoo.RunError, match="one setting, and not of the same images and labels"):
        StudyReport.of([one, finished_run(tmp_path / "d", seed=1, data="those")])
    said = kdzoo_command("report", "a", "nowhere")
    assert said.returncode == 1
    assert said.stderr.startswith("kdzoo: nowhere: holds no finished run")


def test_page_json_and_csv_say_the_same(tmp_path: Path, kdzoo_command: Callable[..., Any]) -> None:
    for number, gap in enumerate((5_000, 50_000)):
        changes = {"teacher": {"use": "wide", "width": gap}}
        options = {"effects": EFFECTS, "changes": changes, "parameters": (1_000, gap)}
        runs_of(tmp_path, range(5), str(number), **options)
    runs = sorted(path.name for path in tmp_path.glob("r*"))
    said = kdzoo_command("report", *runs, "--output", "side")
    assert said.stdout == f"Wrote {Path('side') / 'report.html'}\n", said.stderr
    report = json.loads((tmp_path / "side" / "report.json").read_text())
    with open(tmp_path / "side" / "report.csv", newline="", encoding="utf-8") as stream:
        lines = list(csv.DictReader(stream))
    assert len(lines) == 20
    text = (tmp_path / "side" / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert "<script>alert" not in text
    for setting in report["settings"]:
        for name, evidence in setting["classes"].items():
            (line,) = (
                row for row in lines if (row["setting"], row["class"]) == (setting["name"], name)
            )
            assert float(line["difference"]) == evidence["difference"]
            assert line["verdict"] == evidence["verdict"]
            assert float(line["predicted_share"]) == evidence["predicted_share"]
            shown = [cells for cells in page.cells if cells[0] == name and len(cells) > 5]
            assert evidence["verdict"] in {cells[1] for cells in shown}
    links = [a["href"] or "" for a in page.all("a")]
    pages = [link for link in links if link.startswith("..")]
    assert len(pages) == 10
    for number, gap in enumerate((5_000, 50_000)):
        listed = {
            f"../r{number}-{seed}/report.html": f"teacher.width={gap}, seed {seed}"
            for seed in range(5)
        }
        assert all(f'<a href="{link}">{name}</a>' in text for link, name in listed.items())
    # One scale for both settings: bars are compared by eye.
    scales = [cells[3] for cells in page.cells if cells[:2] == ["Class", "Verdict"]]
    assert len(scales) == 2
    assert len(set(scales)) == 1
    assert all((tmp_path / "side" / link).parent.is_dir() for link in pages)
    assert sum(tag == "circle" for tag, _ in page.elements) == 2
    assert {link[1:] for link in links if link[0] == "#"} <= {
        a["id"] for _, a in page.elements if "id" in a
    }


def test_classes_are_shown_by_settings(tmp_path: Path) -> None:
    weak = {"train": {"epochs": 9}}
    runs = runs_of(tmp_path, range(5), effects=EFFECTS, classes=10)
    runs += runs_of(tmp_path, range(5), name="weak", effects=-EFFECTS, classes=10, changes=weak)
    report = write_study(tmp_path / "side", runs)
    page = Page((tmp_path / "side" / "report.html").read_text(encoding="utf-8"))
    head = next(i for i, row in enumerate(page.cells) if row == ["Class", "epochs=8", "epochs=9"])
    table = page.cells[head + 1 : head + 11]
    one, other = (setting.classes for setting in report.settings)
    assert [row[0] for row in table] == sorted(one, key=lambda name: one[name].difference)
    shown = {name: cells for name, *cells in table}
    for cell, evidence in zip(shown[HOSTILE], (one[HOSTILE], other[HOSTILE]), strict=True):
        assert evidence.verdict in ("hurt", "helped")
        number = f"{100 * evidence.difference:+.1f}".replace("-", "\N{MINUS SIGN}")
        assert cell == f"{number} {evidence.verdict}"
    alone = write_study(tmp_path / "alone", runs[:5])
    assert len(alone.settings) == 1
    assert "Classes by settings" not in (tmp_path / "alone" / "report.html").read_text()


def test_confusions_added_are_those_of_all_seeds_together(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directories = runs_of(tmp_path, range(3), effects=EFFECTS)
    report = write_study(tmp_path / "side", directories)
    (setting,) = report.settings
    counts = {"student": np.zeros((10, 10), int), "baseline": np.zeros((10, 10), int)}
    for run in directories:
        beside = RunDirectory(run.path.with_name(f"of-{run.path.name}"))
        for role, directory in (("student", run), ("baseline", beside)):
            np.add.at(counts[role], read_answers(directory), 1)
    added = counts["student"] - counts["baseline"]
    np.fill_diagonal(added, 0)
    names = names_of(10)
    for pair in setting.confusions:
        cell = names.index(pair.of), names.index(pair.answered)
        assert (pair.student, pair.baseline) == tuple(c[cell] for c in counts.values())
    shown = [pair.student - pair.baseline for pair in setting.confusions]
    assert shown == sorted(added[added > 0].tolist(), reverse=True)[:30]
    first = setting.confusions[0]
    page = Page((tmp_path / "side" / "report.html").read_text(encoding="utf-8"))
    rows = [cells[1:] for cells in page.cells if len(cells) == 5 and cells[0] == first.of]
    assert [first.answered, f"{first.student}", f"{first.baseline}", f"+{shown[0]}"] in rows
    moved = tmp_path / "moved"
    moved.mkdir()
    (alone,) = StudyReport.of([RunDirectory(directories[0].path.rename(moved / "r"))]).settings
    assert alone.confusions is None
    assert "is not there; what is confused more often is not known" in caplog.text


def test_two_runs_are_compared_as_networks(tmp_path: Path) -> None:
    directories = runs_of(tmp_path, range(3), effects=EFFECTS)
    assert StudyReport.of(directories).networks is None
    two = StudyReport.of(directories[:2]).networks
    assert two is not None
    (targets, one), (_, other) = map(read_answers, directories[:2])
    only = int(((one == targets) & (other != targets)).sum())
    only_other = int(((other == targets) & (one != targets)).sum())
    assert two.only == (only, only_other)
    assert only != only_other
    assert two.p == pytest.approx(stats.binomtest(only, only + only_other).pvalue)
    report = write_study(tmp_path / "two", directories[:2])
    said = f"{only} test images are classified correctly by {directories[0].path} alone"
    assert said in study_lines(report)[-1]
    assert said in (tmp_path / "two" / "report.html").read_text(encoding="utf-8")


def test_growing_teachers_and_a_chain_are_swept_from_one_spec(
    tmp_path: Path, tiny: dict[str, Any]
) -> None:
    yaml = YAML(typ="safe", pure=True)
    trained = {"epochs": 1}
    large = {"use": "mlp", "widths": [32], "train": trained}
    student = {"use": "mlp", "widths": [16]}
    assistant = {**tiny, "name": "assistant", "teacher": large, "student": student}
    yaml.dump({**assistant, "baseline": False, "policy": "all"}, tmp_path / "assistant.yaml")
    teachers = [{**large, "widths": [16]}, large, {"run": "assistant.yaml"}]
    swept = {key: value for key, value in tiny.items() if key != "teacher"}
    yaml.dump({**swept, "sweep": {"teacher": teachers}}, tmp_path / "gap.yaml")
    study = kdzoo.run_study(tmp_path / "gap.yaml", runs=tmp_path / "runs")
    names = [setting.name for setting in study.report.settings]
    assert names[:2] == ["teacher=mlp, teacher.widths=[16]", "teacher=mlp, teacher.widths=[32]"]
    assert names[2].startswith("teacher.run=")
    small, wide, chain = (setting.capacity_gap for setting in study.report.settings)
    assert small == chain
    assert small is not None
    assert wide is not None
    assert wide > small > 1
    page = Page((study.directory / "report.html").read_text(encoding="utf-8"))
    assert sum(tag == "circle" for tag, _ in page.elements) == 3


def test_runs_without_a_baseline_are_compared_by_their_accuracy(
    tmp_path: Path, tiny: dict[str, Any]
) -> None:
    spec = {**tiny, "baseline": False, "policy": "all"}
    runs = [kdzoo.run({**spec, "seed": seed}, runs=tmp_path) for seed in (0, 1)]
    report = write_study(tmp_path / "side", [RunDirectory(run.directory) for run in runs])
    (setting,) = report.settings
    assert (setting.baseline, setting.difference, setting.classes) == ({}, None, {})
    assert "There is no baseline" in study_lines(report)[1]
    assert study_table(report).row_count == 1
    Page((tmp_path / "side" / "report.html").read_text(encoding="utf-8"))


def test_a_thousand_classes_and_five_seeds(tmp_path: Path) -> None:
    directories = runs_of(tmp_path, range(5), classes=1000)
    write_study(tmp_path / "side", directories)
    page = tmp_path / "side" / "report.html"
    assert os.path.getsize(page) < 500_000
    assert "Confusions added" in page.read_text(encoding="utf-8")


def test_a_spec_of_several_runs_does_them_all(
    tmp_path: Path, tiny: dict[str, Any], kdzoo_command: Callable[..., Any]
) -> None:
    sweep = {"losses.kd.temperature": [2, 4]}
    study = kdzoo.run_study({**tiny, "seeds": [0, 1], "sweep": sweep}, runs=tmp_path / "runs")
    assert len(study.runs) == 4
    names = [setting.name for setting in study.report.settings]
    assert names == ["temperature=2", "temperature=4"]
    # One teacher for all, and one baseline for each seed.
    shared = {
        role: {run.report.directories[role] for run in study.runs}
        for role in ("teacher", "baseline")
    }
    assert {role: len(places) for role, places in shared.items()} == {"teacher": 1, "baseline": 2}
    # Each is the run that it would be alone.
    teacher = {**tiny["teacher"], "seed": kdzoo.read_spec(study.runs[3].directory / "spec.yaml")}
    teacher["seed"] = teacher["seed"].teacher.seed
    losses = [tiny["losses"][0], {**tiny["losses"][1], "temperature": 4}]
    alone = kdzoo.run(
        {**tiny, "seed": 1, "teacher": teacher, "losses": losses}, runs=tmp_path / "runs"
    )
    assert alone.directory == study.runs[3].directory
    # Again, nothing is trained, and the report is found in the same place.
    before = {run.directory: os.stat(run.directory / "checkpoint.pt") for run in study.runs}
    again = kdzoo.run_study({**tiny, "seeds": [0, 1], "sweep": sweep}, runs=tmp_path / "runs")
    assert again == study
    assert {run.directory: os.stat(run.directory / "checkpoint.pt") for run in again.runs} == before


def test_what_is_cut_off_goes_on(
    tmp_path: Path, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdzoo.training.loop import Trainer

    class Cut(BaseException):
        pass

    original, left = Trainer._epoch, [9]

    def cut(self: Trainer, *arguments: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Cut
        original(self, *arguments)

    whole = kdzoo.run_study({**tiny, "seeds": [0, 1]}, runs=tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_epoch", cut)
        with pytest.raises(Cut):
            kdzoo.run_study({**tiny, "seeds": [0, 1]}, runs=tmp_path / "cut")
    after = kdzoo.run_study({**tiny, "seeds": [0, 1]}, runs=tmp_path / "cut")
    assert [r.report.student for r in after.runs] == [r.report.student for r in whole.runs]
    assert after.directory.name == whole.directory.name


def test_a_run_that_diverges_does_not_stop_the_others(
    tmp_path: Path, tiny: dict[str, Any], kdzoo_command: Callable[..., Any]
) -> None:
    spec = {**tiny, "baseline": False, "policy": "all"}
    losses = ["ce", {"use": "sample-explodes"}]
    sweep = {"losses.sample-explodes.after": [1.0, 1000.0, 2000.0]}
    file = tmp_path / "study.yaml"
    file.write_text(json.dumps({**spec, "losses": losses, "sweep": sweep}))
    said = kdzoo_command("run", "study.yaml", env={"COLUMNS": "20"})
    assert said.returncode == 1
    assert "kdzoo: 1 run failed, and is in no table:" in said.stderr
    assert "became" in said.stderr
    (directory,) = tmp_path.glob("runs/tiny-study-*")
    assert f"Report:         {Path('runs') / directory.name / 'report.html'}" in said.stdout
    assert len(json.loads((directory / "report.json").read_text())["settings"]) == 2
    # In a pipe a table has the room that it needs.
    for after in (1000, 2000):
        assert re.search(rf"^after={after} +1 +\d+\.\d\d *$", said.stdout, re.MULTILINE), (
            said.stdout
        )


def test_a_mistake_in_the_last_cell_is_found_before_the_first_is_trained(
    tmp_path: Path, tiny: dict[str, Any]
) -> None:
    sweep = {"student": ["mlp", {"use": "sample-dropout"}], "learn": [["student"], ["student.no"]]}
    with pytest.raises(kdzoo.SpecError, match=r'learn: no parameters under "student\.no"'):
        kdzoo.run_study({**tiny, "sweep": sweep}, runs=tmp_path)
    assert not list(tmp_path.glob("tiny*"))


def test_a_run_that_another_process_has_is_left_for_the_end(
    tmp_path: Path, tiny: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """The lock is held until the other seed has been done."""
    import threading
    import time

    first = kdzoo.run_study({**tiny, "seeds": [0, 1]}, runs=tmp_path / "runs").runs[0].directory
    (first / "report.json").unlink()
    other = next(p for p in (tmp_path / "runs").glob("tiny-study-*"))
    for file in other.iterdir():
        file.unlink()
    ready = threading.Event()

    def hold() -> None:
        with RunDirectory(first).locked(wait=False):
            ready.set()
            time.sleep(1.5)

    thread = threading.Thread(target=hold)
    thread.start()
    ready.wait()
    with caplog.at_level("INFO", "kdzoo"):
        study = kdzoo.run_study({**tiny, "seeds": [0, 1]}, runs=tmp_path / "runs")
    thread.join()
    assert "it is left for the end" in caplog.text
    assert study.runs[0].directory == first


def test_one_that_diverges_is_left_out_whoever_had_it_first(
    tmp_path: Path, tiny: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Another process has the run, and ends without having finished it."""
    import threading
    import time

    from kdzoo.pipeline.sessions import Sessions
    from kdzoo.spec.read import read_study

    losses = ["ce", {"use": "sample-explodes"}]
    sweep = {"losses.sample-explodes.after": [1.0, 1000.0]}
    spec = {**tiny, "baseline": False, "policy": "all", "losses": losses, "sweep": sweep}
    first = Sessions(tmp_path).directory(read_study(spec)[0])
    ready = threading.Event()

    def hold() -> None:
        with first.locked(wait=False):
            ready.set()
            deadline = time.monotonic() + 60
            while "it is left for the end" not in caplog.text and time.monotonic() < deadline:
                time.sleep(0.02)

    thread = threading.Thread(target=hold)
    thread.start()
    ready.wait()
    with caplog.at_level("INFO", "kdzoo"):
        study = kdzoo.run_study(spec, runs=tmp_path)
    thread.join()
    assert len(study.runs) == 1
    (failure,) = study.failures
    assert isinstance(failure, kdzoo.NonFiniteError)
    assert (study.directory / "report.html").exists()


@pytest.mark.parametrize(
    ("sweep", "said"),
    [
        ({"log_every": [5, 10]}, r"run 1 \(log_every=5\) and run 2 \(log_every=10\) are the same"),
        ({"data.flip": [False, None]}, r"run 1 \(flip=false\) and run 2 \(flip=null\)"),
        (
            {"train.compile": [False, True], "losses.kd.temperature": [2.0, 4.0]},
            r"run 1 \(train.compile=false\) and run 3 \(train.compile=true\)",
        ),
        ({"stop_epoch": [None, 4]}, r"run 1 \(stop_epoch=null\) and run 2 \(stop_epoch=4\)"),
    ],
)
def test_cells_that_are_the_same_run_are_refused_before_anything_is_trained(
    tmp_path: Path, tiny: dict[str, Any], sweep: dict[str, Any], said: str
) -> None:
    with pytest.raises(kdzoo.SpecError, match=said):
        kdzoo.run_study({**tiny, "seeds": [0], "sweep": sweep}, runs=tmp_path)
    assert not list(tmp_path.glob("tiny*"))
