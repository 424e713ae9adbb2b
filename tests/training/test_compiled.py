"""Compiled and in half precision a step is what it is without, within what is stated here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.backends.debugging import aot_eager

import kdzoo

HINT = {"use": "fitnet", "layers": {"student": "3", "teacher": "3"}}
METHODS: dict[str, list[Any]] = {
    "ce": ["ce"],
    "kd": ["ce", "kd"],
    "dkd": ["ce", "dkd"],  # warms up: the total's factors change every epoch
    "fitnet": ["ce", HINT],
    "hint alone": [HINT],  # nothing reaches what lies behind the hint
    "crd": ["ce", {"use": "crd", "negatives": 20}],
    "crd-relax": ["ce", {"use": "crd", "negatives": 40, "mode": "relax"}],
}


class Dropping(kdzoo.ClassPolicy):
    """Teaches one class less after every epoch."""

    name = "dropping"

    def update(self, curves: kdzoo.TeachingCurves) -> kdzoo.ClassWeights:
        weights = np.ones(5)
        weights[: len(curves.student)] = 0
        return kdzoo.ClassWeights(teacher=weights, label=2 - weights)


def network(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, width, 3, stride=2),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(9 * width, 5),
    )


def trained(method: str, *, compiled: bool, bf16: bool = False) -> tuple[list[float], Any]:
    """The totals of two epochs, each with a short last step, and the distiller after them."""
    torch.manual_seed(0)
    images, targets = torch.rand(40, 1, 8, 8), torch.arange(40) % 5
    terms, policy = kdzoo.terms(METHODS[method]), Dropping()
    layers = kdzoo.Layers(penultimate="5")
    distiller = kdzoo.Distiller(
        network(6),
        network(4),
        terms,
        example=images[:2],
        classes=list("abcde"),
        num_samples=40,
        targets=targets,
        teacher_layers=layers,
        student_layers=layers,
    )
    distiller.begin_stage(terms, policy, compiled=compiled)
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.02, weight_decay=0.1)
    totals = []
    for epoch in range(2):
        distiller.train()
        for number, rows in enumerate(torch.arange(40).split(16)):
            torch.manual_seed(10 * epoch + number)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                step = distiller(images[rows], targets[rows], rows, epoch + number / 3)
            optimizer.zero_grad()
            step.total.backward()
            optimizer.step()
            totals.append(step.total.item())
        distiller.end_epoch()
    return totals, distiller


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The graphs that are compiled, by a backend that takes a second and not a minute."""
    made: list[Any] = []
    real = torch.compile

    def backend(graph: Any, inputs: Any) -> Callable[..., Any]:
        made.append(graph)
        answer: Callable[..., Any] = aot_eager(graph, inputs)
        return answer

    def compiled(function: Any, *, fullgraph: bool, options: Any) -> Any:
        return real(function, fullgraph=fullgraph, backend=backend)

    monkeypatch.setattr(torch, "compile", compiled)
    yield made
    torch.compiler.reset()


def state(distiller: nn.Module) -> dict[str, Tensor]:
    return {k: v for k, v in distiller.state_dict().items() if isinstance(v, Tensor)}


@pytest.mark.parametrize(
    "method",
    [pytest.param(m, marks=pytest.mark.slow if m in ("ce", "crd-relax") else ()) for m in METHODS],
)
def test_a_compiled_step_is_the_step(method: str, graphs: list[Any]) -> None:
    """One graph for each size of a batch, whatever the epoch and the policy; 1e-5 for rounding."""
    totals, plain = trained(method, compiled=False)
    assert not graphs
    others, other = trained(method, compiled=True)
    assert len(graphs) == 2
    assert others == pytest.approx(totals, rel=1e-5)
    for name, value in state(plain).items():
        torch.testing.assert_close(state(other)[name], value, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("method", METHODS)
def test_half_precision_is_single_precision_within_a_percent(method: str) -> None:
    totals, plain = trained(method, compiled=False)
    halves, half = trained(method, compiled=False, bf16=True)
    assert halves != totals
    assert halves == pytest.approx(totals, rel=0.01)
    assert all(value.dtype == state(plain)[name].dtype for name, value in state(half).items())


@pytest.mark.slow
def test_half_precision_compiled(graphs: list[Any]) -> None:
    totals, _ = trained("crd", compiled=False, bf16=True)
    others, _ = trained("crd", compiled=True, bf16=True)
    assert len(graphs) == 2
    assert others == pytest.approx(totals, rel=1e-2)


def test_runs_say_what_they_are_trained_with(
    tmp_path: Path, tiny: dict[str, Any], graphs: list[Any]
) -> None:
    """Precision makes another run; compilation changes rounding alone, and a run can change it."""
    alone = {**tiny, "teacher": None, "baseline": False, "losses": ["ce"], "policy": "all"}
    runs = {
        (precision, compiled): kdzoo.run(
            alone,
            [f"train.precision={precision}", f"train.compile={compiled}"],
            runs=tmp_path / f"{precision}-{compiled}",
        )
        for precision, compiled in (("fp32", False), ("fp32", True), ("bf16", False))
    }
    plain, compiled, half = runs.values()
    assert graphs
    assert plain.directory.name == compiled.directory.name
    assert plain.report.student.accuracy == pytest.approx(
        compiled.report.student.accuracy, abs=0.02
    )
    assert half.directory.name != plain.directory.name
    weights = [dict(kdzoo.load_student(run.directory).named_parameters()) for run in (plain, half)]
    for name, value in weights[0].items():
        assert weights[1][name].dtype == torch.float32
        assert 0 < (weights[1][name] - value).abs().max() < 0.1, name


def test_a_missing_compiler_is_said_before_anything_is_trained(
    tmp_path: Path, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    late = {**tiny, "train": {**tiny["train"], "compile": True}}
    with pytest.raises(kdzoo.RunError, match="needs a C\\+\\+ compiler, and there is no no-such-c"):
        kdzoo.run(late, runs=tmp_path)
    assert not list(tmp_path.glob("*/checkpoint.pt"))


@pytest.mark.slow
def test_the_real_compiler(tmp_path: Path) -> None:
    """Two stages, taps, a folded teacher; cut off in the second stage, and gone on with."""
    small = {"use": "small-cnn", "width": 4, "depth": 2}
    train = {"epochs": 1, "batch_size": 15, "optimizer": {"use": "sgd", "lr": 0.01}}
    hint = {"use": "fitnet", "layers": {"student": 0, "teacher": 0}}
    spec = {
        "name": "compiled",
        "data": "sample-odd",
        "teacher": {**small, "width": 8, "train": train},
        "student": small,
        "stages": [
            {"train": train, "losses": [hint], "learn": ["student.block0", "losses"]},
            {"train": {**train, "epochs": 2}, "losses": ["ce", "kd", {**hint, "weight": 1}]},
        ],
        "observers": ["jsonl"],
    }
    plain = kdzoo.run(spec, runs=tmp_path / "plain")
    fast = [{**stage, "train": {**stage["train"], "compile": True}} for stage in spec["stages"]]
    kdzoo.run({**spec, "stages": fast, "stop_epoch": 2}, runs=tmp_path / "fast")
    (cut,) = tmp_path.glob("fast/compiled-??????????")
    cut.rename(cut.with_name(plain.directory.name))
    (cut.with_name(plain.directory.name) / "report.json").unlink()
    other = kdzoo.run({**spec, "stages": fast}, runs=tmp_path / "fast")
    assert other.directory.name == plain.directory.name
    wanted = kdzoo.load_student(plain.directory).state_dict()
    for name, value in kdzoo.load_student(other.directory).state_dict().items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-4, atol=1e-5, msg=name)
