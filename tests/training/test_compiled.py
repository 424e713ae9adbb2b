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
from kdzoo.extend.registry import BUNDLED, registry
from kdzoo.testing.scene import IMAGE, Net

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
# They look after the first epoch, and find the class that the baseline is far better at.
SOON = {"start_epoch": 1, "patience": 1, "window": 1, "margin": 0, "false_discoveries": 0.9}
# A factor that is steered would follow each answer that precision changes.
STEADY = {"balance": False}
POLICIES: dict[str, tuple[str, dict[str, Any]]] = {
    "all": ("all", {}),
    "fixed": ("fixed", {"classes": ["b"], **STEADY}),
    "tllm": ("tllm", {"signal": "baseline", **SOON, **STEADY}),
    "tllm column": ("tllm", {"scope": "column", **SOON, **STEADY}),
    "tllm cka": ("tllm", {"signal": "cka", **SOON, **STEADY}),
}
ADAPTERS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {  # the student's and the teacher's
    "identity": ((4, 3, 3), (4, 3, 3)),
    "conv1x1": ((4, 8, 8), (6, 4, 4)),
    "linear": ((4,), (6,)),
    "pool": ((4, 8, 8), (4, 4, 4)),
    "regressor strided": ((4, 8, 8), (6, 4, 4)),
    "regressor transposed": ((4, 4, 4), (6, 8, 8)),
    "regressor wide": ((4, 8, 8), (6, 5, 5)),
    "tokens": ((17, 4), (6, 8, 8)),
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


def trained(
    losses: list[Any],
    *,
    compiled: bool = False,
    bf16: bool = False,
    policy: str | None = None,
    shapes: tuple[tuple[int, ...], tuple[int, ...]] | None = None,
    count: int = 40,
) -> tuple[list[float], Any]:
    """The totals of two epochs, each with a short last step, and the distiller after them."""
    torch.manual_seed(0)
    targets, terms = torch.arange(count) % 5, kdzoo.terms(losses)
    decides = Dropping() if policy is None else registry().make("policy", *POLICIES[policy])
    # The baseline run was right on all of class a but one image, and on one image of each other.
    right = (targets == 0).numpy() != (np.arange(count) < 5)
    baseline = [float(right[c::5].mean()) for c in range(5)]
    if shapes is None:
        student, teacher = network(4), network(6)
        layers = student_layers = kdzoo.Layers(penultimate="5")
        images = torch.rand(count, 1, 8, 8)
    else:
        student, teacher = Net({0: shapes[0]}), Net({0: shapes[1]})
        student_layers, layers = student.layers, teacher.layers
        images = torch.rand(count, *IMAGE)
    distiller = kdzoo.Distiller(
        teacher,
        student,
        terms,
        example=images[:2],
        classes=list("abcde"),
        num_samples=count,
        targets=targets,
        policy=decides,
        baseline=None if policy is None else np.array(2 * [baseline]),
        teacher_layers=layers,
        student_layers=student_layers,
    )
    if policy is not None:
        distiller.curves.compare_right_rows(count, np.packbits(np.stack([right, right]), axis=1))
    distiller.begin_stage(terms, decides, backend="inductor" if compiled else None)
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.02, weight_decay=0.1)
    totals = []
    for epoch in range(2):
        distiller.train()
        for number, rows in enumerate(torch.arange(count).split(16)):
            torch.manual_seed(10 * epoch + number)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                step = distiller(images[rows], targets[rows], rows, epoch + 16 * number / count)
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

    def quick(graph: Any, inputs: Any) -> Callable[..., Any]:
        made.append(graph)
        answer: Callable[..., Any] = aot_eager(graph, inputs)
        return answer

    def compiled(function: Any, *, fullgraph: bool, backend: str, options: Any) -> Any:
        return real(
            function, fullgraph=fullgraph, backend=quick if backend == "inductor" else backend
        )

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
    """One graph, whatever the epoch and the policy, and none for the short last batch; 1e-5 for
    rounding."""
    assert_compiled_is_plain(METHODS[method], graphs)


def assert_compiled_is_plain(losses: list[Any], graphs: list[Any], **given: Any) -> None:
    totals, plain = trained(losses, **given)
    assert not graphs
    others, other = trained(losses, compiled=True, **given)
    assert len(graphs) == 1
    assert others == pytest.approx(totals, rel=1e-5)
    for name, value in state(plain).items():
        torch.testing.assert_close(state(other)[name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_batches_of_another_size_than_the_first_are_not_compiled_for(graphs: list[Any]) -> None:
    """An epoch's last batch is short, or has one image more: batch norm needs two."""
    _, distiller = trained(["ce", "kd"], compiled=True)
    steps = [
        distiller(torch.rand(n, 1, 8, 8), torch.arange(n) % 5, torch.arange(n))
        for n in (16, 17, 16, 8, 16)
    ]
    passing = [step.student.logits.requires_grad for step in steps]  # not where it is compiled
    assert passing == [False, True, False, True, False]
    assert len(graphs) == 1


@pytest.mark.parametrize("method", METHODS)
def test_half_precision_is_single_precision_within_a_percent(method: str) -> None:
    assert_half_is_single(METHODS[method])


def assert_half_is_single(losses: list[Any], **given: Any) -> None:
    totals, plain = trained(losses, **given)
    halves, half = trained(losses, bf16=True, **given)
    assert halves != totals
    assert halves == pytest.approx(totals, rel=0.01)
    assert all(value.dtype == state(plain)[name].dtype for name, value in state(half).items())


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_half_precision_compiled(method: str, graphs: list[Any]) -> None:
    assert_compiled_is_plain_in_half(METHODS[method], graphs)


def assert_compiled_is_plain_in_half(losses: list[Any], graphs: list[Any], **given: Any) -> None:
    totals, _ = trained(losses, bf16=True, **given)
    others, _ = trained(losses, bf16=True, compiled=True, **given)
    assert len(graphs) == 1
    assert others == pytest.approx(totals, rel=1e-3)


def under(policy: str) -> dict[str, Any]:
    """Where features are compared each class has 50 images."""
    return {"policy": policy, "count": 250 if policy == "tllm cka" else 100}


@pytest.mark.parametrize(
    "policy",
    [pytest.param(p, marks=() if p == "tllm column" else pytest.mark.slow) for p in POLICIES],
)
def test_a_compiled_step_under_every_policy(policy: str, graphs: list[Any]) -> None:
    """Also where a class is given up between the epochs."""
    assert_compiled_is_plain(["ce", "kd"], graphs, **under(policy))


@pytest.mark.parametrize("policy", POLICIES)
def test_half_precision_under_every_policy(policy: str) -> None:
    assert_half_is_single(["ce", "kd"], **under(policy))


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["tllm", "tllm column", "tllm cka"])
def test_half_precision_compiled_under_every_policy(policy: str, graphs: list[Any]) -> None:
    assert_compiled_is_plain_in_half(["ce", "kd"], graphs, **under(policy))


@pytest.mark.parametrize(
    ("policy", "given_up", "masked"),
    [("fixed", [1], []), ("tllm", [0], []), ("tllm column", [0], [0])],
)
def test_these_policies_decide_something_here(
    policy: str, given_up: list[int], masked: list[int]
) -> None:
    """Or the tests above would compare steps of which the policy is no part."""
    _, distiller = trained(["ce", "kd"], **under(policy))
    assert (distiller.teacher_weights == 0).nonzero().flatten().tolist() == given_up
    assert (distiller.class_columns == 0).nonzero().flatten().tolist() == masked


def adapted(adapter: str) -> dict[str, Any]:
    hint = {"use": "fitnet", "layers": {"student": 0, "teacher": 0}, "weight": 1}
    hint["adapter"] = adapter.split()[0]
    return {"losses": ["ce", hint], "shapes": ADAPTERS[adapter]}


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_half_precision_with_every_adapter(adapter: str) -> None:
    assert_half_is_single(**adapted(adapter))


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_half_precision_compiled_with_every_adapter(adapter: str, graphs: list[Any]) -> None:
    """In single precision the conformance kit compiles each, for all of its shapes."""
    assert_compiled_is_plain_in_half(graphs=graphs, **adapted(adapter))


def test_nothing_bundled_is_left_out() -> None:
    entries = {
        "loss": [entry for losses in METHODS.values() for entry in losses],
        # These give a step what `fixed` does: other classes, found in another way.
        "policy": [name for name, _ in POLICIES.values()]
        + ["hardest", "label-only", "oracle", "random"],
        "adapter": [name.split()[0] for name in ADAPTERS],
    }
    for kind, named in entries.items():
        names = {entry if isinstance(entry, str) else entry["use"] for entry in named}
        for name in registry().names(kind):
            owner = registry().owner(registry().find(kind, name))
            assert name in names or owner.distribution != BUNDLED, f"{kind} {name}"


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


class Branching(kdzoo.ModelSource):
    """A network that goes another way for other images."""

    name = "branching"

    def build(self, input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        class Network(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear = nn.Linear(torch.Size(input_shape).numel(), num_classes)

            def forward(self, images: Tensor) -> Tensor:
                logits: Tensor = self.linear(images.flatten(1))
                if images.sum() > 1e6:
                    return -logits
                return logits

        return Network()


def test_a_step_that_cannot_be_compiled_is_said_before_anything_is_trained(
    tmp_path: Path, tiny: dict[str, Any]
) -> None:
    spec = {**tiny, "student": "branching", "baseline": False, "policy": "all"}
    late = {**spec, "train": {**tiny["train"], "compile": True}}
    with registry().lent(Branching):
        with pytest.raises(kdzoo.RunError) as failed:
            kdzoo.run(late, runs=tmp_path)
        assert not list(tmp_path.glob("*/checkpoint.pt"))
        kdzoo.run(spec, runs=tmp_path)
    line = Path(__file__).read_text().splitlines().index("                if images.sum() > 1e6:")
    said = f"branching ({__file__}, line {line + 1}); change what torch.compile cannot make one"
    assert said in str(failed.value)
    assert str(failed.value).endswith("or say `compile: false`")
    assert "\n" not in str(failed.value)


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
