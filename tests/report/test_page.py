"""The page of a run: whole in one file, for everybody, with any class names."""

from __future__ import annotations

import base64
import csv
import hashlib
import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made import HOSTILE, finished_run, names_of
from page_reader import Page

import kdzoo
from kdzoo.report.page import write_run_page
from kdzoo.training.directory import RunDirectory


def page_of(directory: RunDirectory) -> tuple[str, Page]:
    text = write_run_page(directory).read_text(encoding="utf-8")
    return text, Page(text)


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_it_is_small_whole_and_well_formed(tmp_path: Path, classes: int) -> None:
    text, page = page_of(finished_run(tmp_path / "run", classes=classes, epochs=40))
    assert len(text.encode()) < 500_000
    # Nothing is fetched: no address anywhere but of the files beside it and of its own parts.
    links = [a["href"] or "" for a in page.all("a")]
    assert {link for link in links if not link.startswith("#")} == {
        "report.json",
        "report.csv",
        "classes.csv",
    }
    assert not re.search(r"https?://|@import|url\(", text)
    assert not [tag for tag, a in page.elements if "src" in a or tag in ("link", "img", "iframe")]
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)
    assert len([cells for cells in page.cells if cells[0] in names_of(classes)]) >= classes


def test_its_policy_lets_its_own_script_run_and_no_other(tmp_path: Path) -> None:
    text, _ = page_of(finished_run(tmp_path / "run"))
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in text


@pytest.mark.parametrize(("p", "said"), [(0.25, "0.25"), (0.0321, "0.032"), (1e-9, "0.0001 or")])
def test_mcnemar_is_told_as_another_question(tmp_path: Path, p: float, said: str) -> None:
    directory = finished_run(tmp_path / "run")
    report = kdzoo.Report.read(directory.report)
    assert report.comparison is not None
    comparison = report.comparison.model_copy(update={"mcnemar": p})
    directory.report.write_bytes(report.model_copy(update={"comparison": comparison}).as_json())
    text, _ = page_of(directory)
    assert f"p = {said}" in text
    assert "Taken as two networks" in text


def test_hostile_names_are_text(tmp_path: Path) -> None:
    directory = finished_run(
        tmp_path / "run", changes={"student": {"use": "</pre><script>boom()</script>"}}
    )
    text, page = page_of(directory)
    assert "<script>alert" not in text
    assert "<script>boom" not in text
    assert [cells[0] for cells in page.cells].count(HOSTILE) >= 1
    assert any("boom()" in (a.get("aria-label") or "") for a in page.all("svg")) is False


def test_who_cannot_see_it_is_told(tmp_path: Path) -> None:
    _, page = page_of(finished_run(tmp_path / "run", classes=40))
    assert page.all("html")[0]["lang"] == "en"
    assert all(a.get("scope") in ("row", "col") for a in page.all("th"))
    assert all(a.get("role") == "img" and a.get("aria-label") for a in page.all("svg"))
    said = [a["aria-label"] or "" for a in page.all("svg")]
    assert sum("teaching stopped after epoch 4" in label for label in said) == 1
    for _, attributes in page.elements:
        if "tabindex" in attributes and attributes.get("role") == "region":
            assert attributes.get("aria-label") or attributes.get("aria-labelledby")
    headings = [tag for tag, _ in page.elements if re.fullmatch(r"h\d", tag)]
    assert headings[0] == "h1"
    assert headings.count("h1") == 1


def luminance(colour: str) -> float:
    parts = colour if len(colour) == 6 else "".join(c * 2 for c in colour)
    values = [int(parts[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_colours_have_contrast_in_dark_and_light(tmp_path: Path) -> None:
    """WCAG 2.2: 4.5 to 1 for text, 3 to 1 for lines that mean something."""
    text, _ = page_of(finished_run(tmp_path / "run"))
    schemes = re.findall(r":root \{(.*?)\}", text, re.DOTALL)
    assert len(schemes) == 2
    for scheme in schemes:
        colours = {n: luminance(c) for n, c in re.findall(r"--(\w+): #([0-9a-f]+)", scheme)}
        least = dict.fromkeys(("ink", "quiet", "link", "lost", "gained"), 4.5)
        for name, ratio in (least | {"teacher": 3.0, "interval": 3.0}).items():
            for ground in ("ground", "raised"):
                lights = sorted((colours[name], colours[ground]))
                assert (lights[1] + 0.05) / (lights[0] + 0.05) > ratio, (name, ground)


def test_page_csv_and_json_say_the_same(tmp_path: Path) -> None:
    directory = finished_run(tmp_path / "run", label_weights={"hen": 14.23})
    text, page = page_of(directory)
    report = json.loads(directory.report.read_text())
    with open(directory.table, newline="", encoding="utf-8") as stream:
        lines = list(csv.DictReader(stream))
    differences = report["comparison"]["differences"]
    assert {line["class"]: float(line["difference"]) for line in lines} == differences
    assert [line["class"] for line in lines] == sorted(differences, key=differences.__getitem__)
    heads = next(cells for cells in page.cells if "Difference" in cells)
    shown = {cells[0]: cells for cells in page.cells if len(cells) == len(heads)}
    for line in lines:
        cells = dict(zip(heads, shown[line["class"]], strict=True))
        difference = f"{100 * float(line['difference']):+.1f}".replace("-", "\u2212")
        assert cells["Difference"].lstrip("+") == difference.lstrip("+")
        assert cells["Student"] == f"{100 * report['student']['classes'][line['class']]:.1f}"
        assert cells["Taught"] == ("to epoch 4" if line["class"] == HOSTILE else "to the end")
        assert float(line["label_weight"]) == report["label_weights"].get(line["class"], 1)
        assert cells["Label weight"] == ("14.2" if line["class"] == "hen" else "1")
    assert "Label weights other than 1: hen (14.2)." in text


@pytest.mark.parametrize("content", [b"\xdf\xff", b'{"versions": {"to', b"", None])
def test_a_page_needs_no_environment(tmp_path: Path, content: bytes | None) -> None:
    directory = finished_run(tmp_path / "run")
    directory.environment.unlink()
    if content is not None:
        directory.environment.write_bytes(content)
    text, _ = page_of(directory)
    assert 'The environment</summary><pre tabindex="0">is gone, or damaged</pre>' in text
    assert "with these installed" not in text


def test_it_says_how_to_repeat_the_run(tmp_path: Path) -> None:
    changes = {"teacher": {"use": "", "run": "/specs/large.yaml"}}
    directory = finished_run(tmp_path / "run", changes=changes)
    versions = {"torch": "2.0", "/my plugins/mine.py": "0123abcd"}
    directory.environment.write_text(json.dumps({"versions": versions}))
    said = html.unescape(page_of(directory)[0])
    command = "kdzoo run spec.yaml --plugin '/my plugins/mine.py'"
    assert f"say <code>{command}</code>, with these installed: torch 2.0. The same spec" in said
    assert "<code>/specs/large.yaml</code> trains; as that was, it is kept in" in said
    assert "<code>runs/t/spec.yaml</code>" in said


def test_every_run_has_its_page(
    tmp_path: Path, tiny: dict[str, Any], kdzoo_command: Callable[..., Any]
) -> None:
    run = kdzoo.run(tiny, runs=tmp_path / "runs")
    for directory in (run.directory, *map(Path, run.report.directories.values())):
        Page((directory / "report.html").read_text(encoding="utf-8"))
        assert (directory / "report.csv").exists()
    before = (run.directory / "report.html").read_bytes()
    (run.directory / "report.html").unlink()
    said = kdzoo_command("report", str(run.directory))
    assert said.stdout == f"Wrote {run.directory / 'report.html'}\n", said.stderr
    assert (run.directory / "report.html").read_bytes() == before
    refused = kdzoo_command("report", str(run.directory), "--output", "elsewhere")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "--output is for the report on several runs" in refused.stderr


def test_what_is_not_finished_has_no_report(
    tmp_path: Path, kdzoo_command: Callable[..., Any]
) -> None:
    said = kdzoo_command("report", "nowhere")
    assert said.returncode == 1
    assert said.stderr == "kdzoo: nowhere: holds no finished run; `kdzoo run` finishes one\n"
