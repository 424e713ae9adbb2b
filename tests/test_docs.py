"""What the pages say is what happens, and what is generated in them is as the code is."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fresh import Fresh
from torch import nn

import kdzoo
from kdzoo.extend.hookspecs import HOOKS
from kdzoo.spec.read import read_study

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(DOCS.glob("*.md"))


def blocks(page: str, language: str = "python") -> list[str]:
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_is_generated_is_as_the_code_is(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    renewed = runpy.run_path(str(DOCS / "generate.py"))["renewed"](text)
    assert text == renewed, "python docs/generate.py"


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


def test_the_first_spec_is_read(tmp_path: Path) -> None:
    (tmp_path / "digits.yaml").write_text(blocks("index", "yaml")[0])
    assert len(read_study(tmp_path / "digits.yaml", ())) == 1


@pytest.mark.parametrize(
    ("page", "name", "checks"),
    [
        ("policies", "BetterTeacher", ["contract", "state_dict"]),
        ("models", "TwoLayers", ["contract", "declared_layers"]),
    ],
)
def test_the_short_examples_keep_their_contracts(page: str, name: str, checks: list[str]) -> None:
    from kdzoo.testing import run_checks

    names: dict[str, Any] = {"__name__": "example"}
    (code,) = (code for code in blocks(page) if f"class {name}" in code)
    exec(code, names)
    results = run_checks(names[name], checks=checks)
    assert [(result.check, result.status) for result in results] == [
        (check, "passed") for check in checks
    ]


@pytest.mark.slow
def test_the_first_loss_works_as_shown(tmp_path: Path, fresh: Fresh) -> None:
    """The whole page: each block of code goes where it says, each command is given, in order."""
    text = (DOCS / "your-first-loss.md").read_text(encoding="utf-8")
    for language, block in re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL):
        if language == "sh":
            for line in block.splitlines():
                fresh(line, tmp_path)
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
    exec(blocks("your-own-loop")[0], names)
    return names


def network(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(16, width), nn.BatchNorm1d(width), nn.Linear(width, 4)
    )


def fresh(given: dict[str, Any]) -> kdzoo.Distiller:
    """The same start again: teacher and loss as they were, a student of the same weights."""
    torch.manual_seed(1)
    given["student"] = network(5)
    distiller: kdzoo.Distiller = given["make_distiller"]()
    return distiller


def same_state(one: kdzoo.Distiller, other: kdzoo.Distiller) -> bool:
    left, right = one.student.state_dict(), other.student.state_dict()
    curves = zip(one.curves.history, other.curves.history, strict=True)
    return all(torch.equal(left[key], right[key]) for key in left) and all(
        a.keys() == b.keys() and all(np.array_equal(a[key], b[key], equal_nan=True) for key in a)
        for a, b in curves
    )


def test_the_plain_loop(given: dict[str, Any]) -> None:
    before = given["teacher"][1].weight.clone()
    exec(blocks("your-own-loop")[1], given)
    assert len(given["distiller"].curves.history) == 2
    assert torch.equal(given["teacher"][1].weight, before)
    state, _ = torch.load("checkpoint.pt", weights_only=True)
    assert not [key for key in state if "teacher" in key and key != "teacher_weights"]


def test_lightning(given: dict[str, Any]) -> None:
    lightning = pytest.importorskip("lightning", reason="pip install 'kdzoo[lightning]'")
    exec(blocks("your-own-loop")[2], given)
    rows = torch.utils.data.TensorDataset(given["images"], given["labels"], torch.arange(32))
    loader = torch.utils.data.DataLoader(rows, batch_size=16)

    def fit(epochs: int, folder: str, resume: str | None = None) -> kdzoo.Distiller:
        module = given["Distillation"](fresh(given))
        trainer = lightning.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[lightning.pytorch.callbacks.ModelCheckpoint(folder, save_last=True)],
        )
        trainer.fit(module, loader, ckpt_path=resume)
        assert not given["teacher"].training
        distiller: kdzoo.Distiller = module.distiller
        return distiller

    whole = fit(3, "whole")
    assert len(whole.curves.history) == 3
    fit(1, "part")
    state = torch.load("part/last.ckpt", weights_only=True)["state_dict"]
    assert len(state["distiller.curves._extra_state"]["history"]) == 1
    assert same_state(fit(3, "rest", "part/last.ckpt"), whole)


def test_the_trainer_of_hugging_face(given: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers", reason="pip install 'kdzoo[transformers]'")
    pytest.importorskip("accelerate", reason="pip install 'kdzoo[transformers]'")
    exec(blocks("your-own-loop")[3], given)
    rows = [
        {"pixel_values": image, "labels": label, "indices": row}
        for row, (image, label) in enumerate(zip(given["images"], given["labels"], strict=True))
    ]

    def trained(folder: str, stop: int | None, resume: bool = False) -> kdzoo.Distiller:
        arguments = transformers.TrainingArguments(
            folder,
            num_train_epochs=3,
            per_device_train_batch_size=16,
            save_strategy="epoch",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        )

        class Stop(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
            def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                control.should_training_stop = round(state.epoch) == stop

        trainer = transformers.Trainer(
            given["Distilled"](fresh(given)),
            arguments,
            train_dataset=rows,
            callbacks=[given["EndEpoch"](), Stop()],
        )
        trainer.train(resume_from_checkpoint=resume)
        assert not given["teacher"].training
        distiller: kdzoo.Distiller = trainer.model.distiller
        return distiller

    whole = trained("whole", None)
    assert len(whole.curves.history) == 3
    assert len(trained("part", 1).curves.history) == 1
    assert same_state(trained("part", None, resume=True), whole)
