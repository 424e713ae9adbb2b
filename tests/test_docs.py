"""What the pages say is what happens, and what is generated in them is as the code is."""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fresh import Fresh
from pictures import spec, write_pictures
from safetensors.torch import load_file
from torch import nn

import kdzoo
from kdzoo.extend.bases import DataSource
from kdzoo.extend.hookspecs import HOOKS
from kdzoo.extend.registry import registry

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(DOCS.glob("*.md"))


def blocks(page: str, language: str = "python") -> list[str]:
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def block(page: str, part: str) -> str:
    """The page's one block of code that has this part."""
    (code,) = (code for code in blocks(page) if part in code)
    return code


@pytest.fixture
def generate(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What docs/generate.py defines."""
    monkeypatch.syspath_prepend(str(DOCS))
    return runpy.run_path(str(DOCS / "generate.py"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_is_generated_is_as_the_code_is(page: Path, generate: dict[str, Any]) -> None:
    text = page.read_text(encoding="utf-8")
    assert text == generate["renewed"](text), "python docs/generate.py"


def test_the_plots_show_what_was_measured(generate: dict[str, Any]) -> None:
    drawn = {path: text for path, text in generate["files"]() if path.suffix == ".svg"}
    assert set(drawn) == set((DOCS / "plots").glob("*.svg"))
    for path, text in drawn.items():
        assert path.read_text(encoding="utf-8") == text, "python docs/generate.py"


def test_a_share_is_drawn_as_a_part_of_the_whole(generate: dict[str, Any]) -> None:
    picture = generate["bars"]("waiting", [("a", "0%", [0.0]), ("b", "50%", [0.4, 0.5, 0.6])])
    (whole,) = re.findall(r'<line x1="([\d.]+)" [^>]*\n?stroke-dasharray', picture)
    (right,) = re.findall(r'viewBox="0 0 (\d+) ', picture)
    assert float(whole) < float(right)
    left, width = zip(*re.findall(r'<rect x="(\d+)" [^>]*width="([\d.]+)"', picture), strict=True)
    assert [float(each) for each in width] == [0, (float(whole) - float(left[0])) / 2]


def test_the_column_that_most_rows_have_is_drawn(
    generate: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing, measured = {"shown": "-", "values": []}, {"shown": "1.2", "values": [1.2]}
    columns = ["kdzoo", "tllm / kdzoo", "kdzoo / plain", "of it waiting"]
    rows = [["ce", [measured, nothing, measured, measured]], ["kd", [measured] * 4]]
    tables = [
        {"title": "all", "columns": columns, "rows": rows},
        {"title": "one row", "columns": columns, "rows": rows[1:]},
        {"title": "parts", "columns": ["norms", "products"], "rows": [["kd", [measured] * 2]] * 2},
    ]
    (tmp_path / "made.json").write_text(json.dumps({"tables": tables}))
    monkeypatch.setitem(generate["plots"].__globals__, "RESULTS", tmp_path)
    ((file, picture),) = generate["plots"]("made").items()
    assert file == "made-0.svg"
    assert "<title>all: kdzoo / plain</title>" in picture


def test_the_public_surface_changes_only_on_purpose() -> None:
    names = runpy.run_path(str(DOCS / "surface.py"))
    listed = names["FILE"].read_text(encoding="utf-8")
    assert listed == names["surface"](), "if it is meant: python docs/surface.py"


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_has_its_page(hook: str) -> None:
    base = HOOKS[hook]
    page = (DOCS / f"{hook.removeprefix('kdzoo_')}.md").read_text(encoding="utf-8")
    assert f"<!-- generated: hook {hook} -->" in page
    assert f"<!-- generated: contract {base.__name__} -->" in page
    assert re.search(rf"`kdzoo plugins new \S+ --kind {base.kind}` writes", page)


def test_the_spec_explained_line_by_line_is_the_starter() -> None:
    assert blocks("index", "yaml") == [
        registry().find(DataSource.kind, "digits").starters["digits"]
    ]


def test_a_student_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = kdzoo.run(spec(write_pictures(tmp_path / "pictures")), runs=tmp_path)
    answers = load_file(run.directory / "answers.safetensors")["answers"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "birds-0123456789").symlink_to(run.directory)
    with pytest.raises(kdzoo.SpecError, match=r"images are \(3, 12, 12\); they must be \(B, cha"):
        kdzoo.load_student(run.directory)(torch.rand(3, 12, 12))
    code = block("index", "load_student")
    for file, answer in zip(sorted(tmp_path.glob("pictures/test/*/*")), answers, strict=True):
        (tmp_path / "owl.jpg").unlink(missing_ok=True)
        (tmp_path / "owl.jpg").symlink_to(file)
        exec(code, {})
        assert capsys.readouterr().out == f"{sorted(run.report.images)[answer]}\n"


def test_the_message_shown_is_the_message_given(
    tmp_path: Path, kdzoo_command: Callable[..., Any]
) -> None:
    kdzoo_command("init", "digits")
    said = kdzoo_command("validate", "digits.yaml", "--set", "losses.kd.temprature=2").stderr
    assert said.strip() in (DOCS / "index.md").read_text()


def test_every_command_and_every_public_name_has_its_entry() -> None:
    page = (DOCS / "commands.md").read_text()
    for command in ("run", "tune", "validate", "plugins new", "report"):
        assert f"### `kdzoo {command}" in page
    api = (DOCS / "api.md").read_text()
    pages = "".join(page.read_text() for page in PAGES)
    for name in kdzoo.__all__:
        listed = f"`kdzoo.{name}`" in api or f"| `{name}` |" in api
        assert listed or f"### `kdzoo.{name}`" in pages, name


@pytest.mark.parametrize(
    ("page", "name", "checks"),
    [
        ("losses", "FeatureMSE", ["contract", "gradients", "parameters", "class_weights"]),
        ("losses", "Similarity", ["contract", "gradients", "class_weights", "permutation"]),
        ("adapters", "Channels", ["contract", "the_teachers_shape", "refusals"]),
        ("policies", "BetterTeacher", ["contract", "settings", "state_dict"]),
        ("models", "TwoLayers", ["contract", "declared_layers"]),
        ("datasets", "Stripes", ["contract", "delivers", "deterministic"]),
        ("observers", "Accuracies", ["contract", "whole_runs", "restarts"]),
    ],
)
def test_the_short_examples_keep_their_contracts(page: str, name: str, checks: list[str]) -> None:
    from kdzoo.testing import run_checks

    names: dict[str, Any] = {"__name__": "example"}
    exec(block(page, f"class {name}"), names)
    results = run_checks(names[name], checks=checks)
    assert [(result.check, result.status) for result in results] == [
        (check, "passed") for check in checks
    ]


def shorten(spec: Path) -> None:
    """Two epochs are enough to see that it runs, and the page says nothing of its numbers."""
    text, lengths = re.subn(r"\bepochs: \d+", "epochs: 2", spec.read_text())
    assert lengths == 2
    spec.write_text(text)


@pytest.mark.slow
def test_the_first_loss_works_as_shown(tmp_path: Path, fresh: Fresh) -> None:
    """The whole page: each block of code goes where it says, each command is given, in order."""
    text = (DOCS / "your-first-loss.md").read_text(encoding="utf-8")
    for language, block in re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL):
        if language == "sh":
            for line in block.splitlines():
                fresh(line, tmp_path)
                if line == "kdzoo init digits":
                    shorten(tmp_path / "digits.yaml")
        elif language == "toml":
            assert block in (tmp_path / "correlate" / "pyproject.toml").read_text()
        elif file := re.match(r"# (\w+\.py)\n", block):
            (tmp_path / file[1]).write_text(block)
        else:  # a line for the class
            loss = tmp_path / "correlate.py"
            name = '    name = "correlate"\n'
            loss.write_text(loss.read_text().replace(name, name + block))
    added = fresh("kdzoo plugins show correlate", tmp_path)
    assert "One minus the correlation" in added  # that of the page, not the one written first
    finished = list((tmp_path / "runs").glob("digits-*/report.json"))
    assert len(finished) == 4  # both students have the same teacher and the same baseline


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that the page on training loops begins with."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, Any] = {
        "__name__": "example",
        "images": torch.rand(32, 1, 4, 4),
        "labels": torch.arange(32) % 4,
        "class_names": list("abcd"),
        "teacher": network(9),
        "student": network(5),
    }
    exec(block("your-own-loop", "def make_distiller"), names)
    return names


def network(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(16, width), nn.BatchNorm1d(width), nn.Linear(width, 4)
    )


def start_alike(given: dict[str, Any]) -> None:
    """From now on each distiller has a student of the same weights, and batches have one order."""
    make = given["make_distiller"]

    def alike() -> Any:
        torch.manual_seed(1)
        given["student"] = network(5)
        return make()

    given["make_distiller"] = alike
    rows = torch.utils.data.TensorDataset(given["images"], given["labels"], torch.arange(32))
    given["loader"] = torch.utils.data.DataLoader(rows, batch_size=16)


def same_state(one: kdzoo.Distiller, other: kdzoo.Distiller) -> bool:
    left, right = one.student.state_dict(), other.student.state_dict()
    curves = zip(one.curves.history, other.curves.history, strict=True)
    return all(torch.equal(left[key], right[key]) for key in left) and all(
        a.keys() == b.keys() and all(np.array_equal(a[key], b[key], equal_nan=True) for key in a)
        for a, b in curves
    )


def test_the_plain_loop(given: dict[str, Any]) -> None:
    before = given["teacher"][1].weight.clone()
    exec(block("your-own-loop", "torch.save([distiller"), given)
    assert len(given["distiller"].curves.history) == 2
    assert torch.equal(given["teacher"][1].weight, before)
    state, _ = torch.load("checkpoint.pt", weights_only=True)
    assert not [key for key in state if "teacher" in key and key != "teacher_weights"]


def test_losses_on_layers(given: dict[str, Any]) -> None:
    exec(block("your-own-loop", '"layers": layers}'), given)
    (_, crd) = given["terms"]
    assert crd.loss.layers == (kdzoo.LayerPair("1", "1"),)
    exec(block("your-own-loop", "kdzoo.Layers("), given)
    step = given["distiller"](given["images"], given["labels"], torch.arange(32))
    assert step.terms.keys() == {"ce", "crd"}


def test_a_policy(given: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    exec(block("your-own-loop", "torch.save([distiller"), given)
    exec(block("your-own-loop", "import TLLM"), given)
    assert capsys.readouterr().out == "1 []\n2 []\n"
    assert given["curves"].learning_rate.tolist() == [0.05, 0.05]
    assert given["distiller"].policy is given["policy"]


def test_lightning(given: dict[str, Any]) -> None:
    pytest.importorskip("lightning", reason="pip install 'kdzoo[lightning]'")
    for part in ("class Distillation", "def fit"):
        exec(block("your-own-loop", part), given)
    start_alike(given)
    whole = given["fit"](3, "whole").distiller
    assert not given["teacher"].training
    assert len(whole.curves.history) == 3
    given["fit"](1, "part")
    state = torch.load("part/last.ckpt", weights_only=True)["state_dict"]
    assert len(state["distiller.curves._extra_state"]["training"]) == 1
    assert same_state(given["fit"](3, "rest", "part/last.ckpt").distiller, whole)


@pytest.fixture
def hugging_face(given: dict[str, Any]) -> dict[str, Any]:
    pytest.importorskip("transformers", reason="pip install 'kdzoo[transformers]'")
    pytest.importorskip("accelerate", reason="pip install 'kdzoo[transformers]'")
    for part in ("class Distilled", "def make_trainer", "class Logits"):
        exec(block("your-own-loop", part), given)
    return given


def test_the_trainer_of_hugging_face(hugging_face: dict[str, Any]) -> None:
    import transformers

    start_alike(hugging_face)

    def trained(folder: str, stop: int | None, resume: bool = False) -> kdzoo.Distiller:
        class Stop(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
            def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                control.should_training_stop = round(state.epoch) == stop

        trainer = hugging_face["make_trainer"](folder, 3)
        trainer.add_callback(Stop())
        trainer.train(resume_from_checkpoint=resume)
        assert not hugging_face["teacher"].training
        distiller: kdzoo.Distiller = trainer.model.distiller
        return distiller

    whole = trained("whole", None)
    assert len(whole.curves.history) == 3
    assert len(trained("part", 1).curves.history) == 1
    assert same_state(trained("part", None, resume=True), whole)


def test_a_model_of_transformers(hugging_face: dict[str, Any]) -> None:
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"image_size": 4, "patch_size": 2, "num_channels": 1, "num_labels": 4}
    config = ViTConfig(
        **sizes,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        hidden_dropout_prob=0.0,
    )
    models = [ViTForImageClassification(config) for _ in range(2)]
    wrapped = [kdzoo.Network(hugging_face["Logits"](model), [0.5], [0.5]) for model in models]
    hugging_face["teacher"], hugging_face["student"] = wrapped
    images, labels = hugging_face["images"], hugging_face["labels"]
    step = hugging_face["make_distiller"]()(images, labels)
    torch.testing.assert_close(step.student.logits, models[1](2 * images - 1).logits)
    step.total.backward()
    assert models[1].classifier.weight.grad.abs().sum() > 0
    assert models[0].classifier.weight.grad is None
