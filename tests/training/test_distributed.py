"""Several processes train what one alone would, and end together however one of them ends."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import safetensors.torch
import torch
from pictures import write_pictures
from ruamel.yaml import YAML
from torch import Tensor, distributed, nn
from warm import Command, Warm

import kdzoo
from kdzoo.extend.gathering import shared_as
from kdzoo.testing.processes import in_two_processes
from kdzoo.training.whole_batch import WholeBatch

METHODS: dict[str, list[Any]] = {
    "ce": ["ce"],
    "kd": ["ce", "kd"],
    "dkd": ["ce", "dkd"],
    "fitnet": ["ce", {"use": "fitnet", "layers": {"student": "3", "teacher": "3"}}],
    "crd": ["ce", {"use": "crd", "negatives": 20}],
    "crd-relax": ["ce", {"use": "crd", "negatives": 40, "mode": "relax"}],
}
ROWS = 40


def network(width: int) -> nn.Sequential:
    """Batch norm of two kinds, and dropout of two kinds."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, width, 3, stride=2),
        nn.Dropout2d(0.2),
        nn.Flatten(),
        nn.BatchNorm1d(9 * width, momentum=None, affine=False),
        nn.Dropout(0.3),
        nn.Linear(9 * width, 5),
    )


def trained(
    rank: int, method: str, size: int, processes: int, compiled: bool = False
) -> dict[str, Tensor]:
    """A student and its losses after some steps, all in double precision."""
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(0)
        images, targets = torch.rand(ROWS, 1, 8, 8), torch.arange(ROWS) % 5
        layers = kdzoo.Layers(penultimate="7")
        distiller = kdzoo.Distiller(
            network(6),
            network(4),
            kdzoo.terms(METHODS[method]),
            example=images[:2],
            classes=list("abcde"),
            num_samples=ROWS,
            targets=targets,
            teacher_layers=layers,
            student_layers=layers,
        ).train()
        if compiled:
            distiller._compiled = torch.compile(
                distiller._measure, fullgraph=True, backend="aot_eager"
            )
        optimizer = torch.optim.SGD(distiller.parameters(), lr=0.05, momentum=0.9)
        parts = [
            slice(size * r // processes, size * (r + 1) // processes) for r in range(processes)
        ]
        own, sizes = parts[rank], [part.stop - part.start for part in parts]
        for step in range(4):
            torch.manual_seed(step)
            rows = ((torch.arange(size) + 7 * step) % ROWS)[own]
            with contextlib.ExitStack() as stack:
                if processes > 1:
                    stack.enter_context(WholeBatch(own, size))
                if compiled or step % 2:  # else the processes tell each other
                    stack.enter_context(shared_as(sizes))
                total = distiller(images[rows], targets[rows], rows, 0.0).total
            optimizer.zero_grad()
            (len(rows) / size * total).backward()
            if processes > 1:
                for parameter in distiller.parameters():
                    distributed.all_reduce(parameter.grad)
            optimizer.step()
        state = distiller.state_dict()
        return {
            k: v for k, v in state.items() if isinstance(v, Tensor) and not k.startswith("curves.")
        }
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("method", METHODS)
def test_steps_in_two_processes_are_those_of_one(method: str) -> None:
    """To the last digits, whatever couples the samples of a batch; the parts differ in size."""
    alone = trained(0, method, 13, 1)
    for together in in_two_processes(trained, method, 13, 2):
        for name, value in alone.items():
            torch.testing.assert_close(together[name], value, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fitnet", "crd"])
def test_compiled_steps_in_two_processes_too(method: str) -> None:
    """As one graph each, with the exchanges in it."""
    alone = trained(0, method, 13, 1)
    for together in in_two_processes(trained, method, 13, 2, compiled=True):
        for name, value in alone.items():
            torch.testing.assert_close(together[name], value, rtol=1e-9, atol=1e-12, msg=name)


def sizes_that_are_compiled_for(rank: int) -> list[bool]:
    torch.compiler.reset()  # as a stage's beginning does
    torch.manual_seed(0)
    images, targets = torch.rand(8, 1, 8, 8), torch.arange(8) % 5
    distiller = kdzoo.Distiller(
        network(6),
        network(4),
        kdzoo.terms(["ce", "kd"]),
        example=images[:2],
        classes=list("abcde"),
        num_samples=8,
    ).train()
    distiller._compiled = torch.compile(distiller._measure, fullgraph=True, backend="aot_eager")
    compiled = []
    for parts in ((4, 4), (4, 3), (4, 4)):
        own = slice(0, 4) if rank == 0 else slice(4, sum(parts))
        with shared_as(parts), WholeBatch(own, sum(parts)):
            step = distiller(images[own], targets[own])
        compiled.append(not step.student.logits.requires_grad)
    return compiled


@pytest.mark.slow
def test_all_processes_compute_a_short_batch_in_one_way() -> None:
    """Also the one that has as many images of it as of a whole batch."""
    assert in_two_processes(sizes_that_are_compiled_for) == [[True, False, True]] * 2


def normalized(rank: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    values = torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(0)) + 1000
    norm = nn.BatchNorm1d(3)
    own = slice(0, 2) if rank == 0 else slice(2, 6)
    with WholeBatch(own, 6), torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
        answer = norm(values[own].to(dtype))
    assert norm.running_var is not None
    return answer.detach(), norm.running_var


def test_batch_norm_over_processes_keeps_its_precision() -> None:
    """Values far from 0 and close together, where a mean of squares would lose all digits."""
    values = torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(0)) + 1000
    norm = nn.BatchNorm1d(3)
    wanted = norm(values).detach()
    parts = in_two_processes(normalized, torch.float32)
    got = torch.cat([part for part, _ in parts])
    torch.testing.assert_close(got, wanted, rtol=0, atol=2e-4)
    for _, variance in parts:
        torch.testing.assert_close(variance, norm.running_var, rtol=1e-5, atol=0)
    half = in_two_processes(normalized, torch.bfloat16)
    assert all(part.dtype == torch.bfloat16 for part, _ in half)


def write(tmp_path: Path, spec: dict[str, Any]) -> Path:
    file = tmp_path / "tiny.yaml"
    with open(file, "w") as stream:
        YAML(typ="safe", pure=True).dump(spec, stream)
    return file


Start = Callable[..., Command]


@pytest.fixture
def start(tmp_path: Path, warm: Warm) -> Start:
    """``torchrun --nproc-per-node=2 -m kdzoo run``, in a session of its own."""

    def started(spec: dict[str, Any], *arguments: str, torchrun: Sequence[str] = ()) -> Command:
        command = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", *torchrun]
        run = ["-m", "kdzoo", "run", str(write(tmp_path, spec)), *arguments]
        return warm.start(*command, *run, cwd=tmp_path)

    return started


def ours(said: str) -> list[str]:
    """What kdzoo says of an end, without what torchrun says."""
    return [line for line in said.splitlines() if line.startswith("kdzoo: ")]


def by_rank(process: Command) -> list[psutil.Process]:
    children = psutil.Process(process.pid).children()
    return sorted(children, key=lambda child: int(child.environ()["RANK"]))


def checkpointed(tmp_path: Path, process: Command, pattern: str) -> None:
    """Wait until a run has a checkpoint."""
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(f"runs/{pattern}/checkpoint.pt")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def weights(directory: Path) -> dict[str, Tensor]:
    return safetensors.torch.load_file(directory / "student.safetensors")


def assert_same_student(one: Path, other: Path) -> None:
    wanted = weights(one)
    for name, value in weights(other).items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.slow
def test_a_run_outlives_torchrun(tmp_path: Path, rich: dict[str, Any], start: Start) -> None:
    process = start({**rich, "baseline": False, "train": {**rich["train"], "epochs": 30}})
    checkpointed(tmp_path, process, "tiny-??????????")
    workers = by_rank(process)
    process.kill()
    psutil.wait_procs(workers, timeout=240)
    output, said = process.communicate(timeout=10)
    assert output.count("Run directory:") == 1, said
    (message,) = ours(said)  # of the other, which can only know that somebody is gone
    assert "or torchrun" in message
    assert list(tmp_path.glob("runs/tiny-??????????/report.json"))


@pytest.mark.slow
def test_torchrun_starts_lost_processes_again(
    tmp_path: Path, rich: dict[str, Any], start: Start
) -> None:
    spec = {**rich, "baseline": False, "train": {**rich["train"], "epochs": 60}}
    process = start(spec, torchrun=["--max-restarts=1"])
    checkpointed(tmp_path, process, "tiny-??????????")
    by_rank(process)[1].kill()
    output, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert "student: continued after epoch" in said
    assert output.count("Run directory:") == 1


@pytest.mark.slow
def test_two_agents_start_lost_processes_again(
    tmp_path: Path, rich: dict[str, Any], warm: Warm
) -> None:
    """Each counts for itself how often it did that; and one keeps a store in which all that was
    said before still stands."""
    spec = {**rich, "baseline": False, "train": {**rich["train"], "epochs": 60}}
    with socket.socket() as free:
        free.bind(("localhost", 0))
        place = f"--rdzv-endpoint=localhost:{free.getsockname()[1]}"
    agent = ["torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--max-restarts=2"]
    run = ["-m", "kdzoo", "run", str(write(tmp_path, spec))]
    agents = [
        warm.start(*agent, "--rdzv-id=1", "--rdzv-backend=c10d", place, *run, cwd=tmp_path)
        for _ in range(2)
    ]
    checkpointed(tmp_path, agents[0], "tiny-??????????")
    workers = [worker for one in agents for worker in by_rank(one)]
    max(workers, key=lambda worker: int(worker.environ()["RANK"])).kill()
    said = [one.communicate(timeout=240) for one in agents]
    assert [one.returncode for one in agents] == [0, 0], said
    assert sum("student: continued after epoch" in text for _, text in said) == 1
    assert sum(text.count("Run directory:") for text, _ in said) == 1


@pytest.fixture
def rich(tiny: dict[str, Any]) -> dict[str, Any]:
    """Teacher, baseline and student with batch norm and dropout, a loss that draws, a policy."""
    losses = [*tiny["losses"], {"use": "crd", "negatives": 30}]
    return {**tiny, "student": "sample-dropout", "losses": losses, "policy": "sample-alternating"}


def assert_same_curves(one: Path, other: Path) -> None:
    """Value by value; of a hundred, rounding may have turned the one that hangs on an answer."""
    tables = [list(csv.DictReader((run / "classes.csv").open())) for run in (one, other)]
    assert tables[0]
    known, apart = 0, []
    for wanted, got in zip(*tables, strict=True):
        assert wanted.keys() == got.keys()
        for key, value in wanted.items():
            if key in ("epoch", "class", "state") or not value:
                assert got[key] == value, (key, wanted)
                continue
            known += 1
            if float(got[key]) != pytest.approx(float(value), rel=1e-3, abs=1e-4):
                apart.append((wanted["epoch"], wanted["class"], key, value, got[key]))
    assert len(apart) <= known / 100, apart


LOOKING = {  # its policy compares features on validation images, of which it wants 50 a class
    "data": {"use": "planted", "per_class": 100, "validation": 0.5},
    "policy": {
        **{"use": "tllm", "signal": "cka", "source": "validation", "balance": False},
        **{"start_epoch": 1, "patience": 1, "window": 1, "margin": 0, "false_discoveries": 0.9},
    },
}


@pytest.mark.parametrize("change", [{}, pytest.param(LOOKING, marks=pytest.mark.slow)])
def test_a_run_in_two_processes_is_that_of_one(
    tmp_path: Path, rich: dict[str, Any], start: Start, change: dict[str, Any]
) -> None:
    rich = {**rich, **change}
    process = start(rich)
    alone = kdzoo.run(rich, runs=tmp_path / "alone")
    output, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert output.count("Run directory:") == 1
    (directory,) = tmp_path.glob("runs/tiny-??????????")
    assert directory.name == alone.directory.name
    assert_same_student(alone.directory, directory)
    for role, other in alone.report.directories.items():
        assert_same_student(Path(other), tmp_path / "runs" / Path(other).name)
        assert (tmp_path / "runs" / Path(other).name / "report.json").exists(), role
    assert json.loads((directory / "environment.json").read_text())["processes"] == 2
    pairs = [
        [json.loads(line) for line in (run / "metrics.jsonl").open()]
        for run in (alone.directory, directory)
    ]
    for one, other in zip(*pairs, strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            wanted = value if key == "untaught" else pytest.approx(value, rel=1e-3, abs=0.02)
            assert other[key] == wanted, key
    assert_same_curves(alone.directory, directory)


@pytest.mark.slow
def test_what_one_process_began_goes_on_in_two(
    tmp_path: Path, rich: dict[str, Any], start: Start
) -> None:
    spec = {**rich, "baseline": False}
    whole = kdzoo.run(spec, runs=tmp_path / "whole")
    cut = kdzoo.run({**spec, "stop_epoch": 2}, runs=tmp_path / "runs").directory
    directory = cut.rename(cut.with_name(whole.directory.name))
    (directory / "report.json").unlink()
    process = start(spec)
    _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert "student: continued after epoch 2" in said
    assert "processes was 1 when this run began and is 2 now" in " ".join(said.split())
    assert_same_student(whole.directory, directory)
    assert_same_curves(whole.directory, directory)


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_lost_process_ends_the_run_which_then_goes_on_alone(
    tmp_path: Path, rich: dict[str, Any], start: Start, rank: int
) -> None:
    spec = {**rich, "baseline": False, "train": {**rich["train"], "epochs": 300}}
    process = start(spec)
    checkpointed(tmp_path, process, "tiny-??????????")
    by_rank(process)[rank].kill()
    _, said = process.communicate(timeout=60)
    assert process.returncode != 0
    (message,) = ours(said)
    assert "one of the 2 processes was lost, or torchrun" in message
    assert "the same command goes on from the last finished epoch" in message
    (directory,) = tmp_path.glob("runs/tiny-??????????")
    done = torch.load(directory / "checkpoint.pt", weights_only=True)["epoch"]
    assert 0 < done < 300
    part = {**spec, "stop_epoch": done + 1}
    whole = kdzoo.run(part, runs=tmp_path / "whole")
    (stopped,) = {whole.directory.name}
    directory.rename(directory.with_name(stopped))
    gone_on = kdzoo.run(part, runs=tmp_path / "runs")
    assert gone_on.report.epochs == done + 1
    assert_same_student(whole.directory, gone_on.directory)


@pytest.mark.slow
def test_streamed_images_in_two_processes(
    tmp_path: Path, tiny: dict[str, Any], start: Start
) -> None:
    """Each reads its own part of a batch, and no crop depends on who reads it."""
    root = write_pictures(tmp_path / "pictures")
    data = {"use": "image-folder", "root": str(root), "size": 12, "memory_gb": 0, "workers": 1}
    losses = [*tiny["losses"], {"use": "crd", "negatives": 8}]
    spec = {**tiny, "data": {**data, "validation": 0.25}, "losses": losses, "policy": "all"}
    process = start(spec)
    _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    alone = kdzoo.run({**spec, "data": {**spec["data"], "workers": 0}}, runs=tmp_path / "alone")
    (directory,) = tmp_path.glob("runs/tiny-??????????")
    assert directory.name == alone.directory.name
    assert_same_student(alone.directory, directory)


FAILS = '''
import kdzoo

class Fails(kdzoo.Loss):
    """Fails at one image in the second epoch: in one of the processes."""
    name = "fails"
    guidance = "label"
    needs_indices = True
    def forward(self, student, teacher, batch):
        if batch.progress >= 1 and bool((batch.indices == 5).any()):
            raise IndexError("index 7 is out of range")
        return student.logits.float().square().mean(1)

@kdzoo.hookimpl
def kdzoo_losses():
    return [Fails]
'''


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"student": "no-such"}, 'unknown model "no-such"'),
        ({"losses": ["ce", "fails"]}, 'loss "fails" failed: IndexError: index 7 is out of range'),
        ({"losses": [{"use": "sample-explodes", "after": 1.5}]}, "became nan in step"),
    ],
)
def test_what_ends_a_run_is_said_once(
    tmp_path: Path, tiny: dict[str, Any], start: Start, change: dict[str, Any], message: str
) -> None:
    plugin = tmp_path / "fails.py"
    plugin.write_text(FAILS)
    alone = {"teacher": None, "baseline": False, "losses": ["ce"], "policy": "all"}
    process = start({**tiny, **alone, **change}, "--plugin", str(plugin))
    _, said = process.communicate(timeout=120)
    assert str(Path(kdzoo.__file__).parent) not in said  # a traceback of ours
    assert process.returncode != 0
    (line,) = ours(said)
    assert message in line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "whom"), [(signal.SIGINT, "group"), (signal.SIGTERM, "torchrun")]
)
def test_interrupted_from_outside(
    tmp_path: Path, tiny: dict[str, Any], start: Start, number: signal.Signals, whom: str
) -> None:
    train = {**tiny["train"], "epochs": 2000}
    spec = {**tiny, "baseline": False, "policy": "all", "train": train}
    process = start(spec)
    checkpointed(tmp_path, process, "tiny-??????????")
    send: Callable[[int, int], None] = os.kill if whom == "torchrun" else os.killpg
    send(process.pid, number)
    _, said = process.communicate(timeout=60)
    assert process.returncode != 0
    assert ours(said) == [
        "kdzoo: interrupted; the same command goes on from the last finished epoch"
    ]


PRESSED = """
import os
import signal
import sys

import kdzoo
from torch import distributed

def again(frame, event, argument):
    "A second signal, just when the others are to be told of the first."
    if frame.f_code.co_name == "_claim":
        sys.setprofile(None)
        os.kill(os.getpid(), signal.SIGTERM)

class Pressed(kdzoo.Loss):
    "Interrupts one of the processes, which the other waits for in torch."
    name = "pressed"
    guidance = "label"
    def forward(self, student, teacher, batch):
        if batch.progress >= 1 and os.environ["RANK"] == "1":
            group = distributed.group.WORLD  # as a frame of torch's all_reduce has it
            sys.setprofile(again)
            os.kill(os.getpid(), signal.SIGINT)
        return student.logits.float().square().mean(1)

@kdzoo.hookimpl
def kdzoo_losses():
    return [Pressed]
"""


def test_interrupted_in_one_process_alone(
    tmp_path: Path, tiny: dict[str, Any], start: Start
) -> None:
    plugin = tmp_path / "pressed.py"
    plugin.write_text(PRESSED)
    spec = {**tiny, "teacher": None, "baseline": False, "losses": ["ce", "pressed"]}
    process = start({**spec, "policy": "all"}, "--plugin", str(plugin))
    _, said = process.communicate(timeout=60)
    assert process.returncode != 0
    assert ours(said) == [
        "kdzoo: interrupted; the same command goes on from the last finished epoch"
    ]


@pytest.mark.slow
def test_a_finished_run_is_found_and_a_study_is_led(
    tmp_path: Path, tiny: dict[str, Any], start: Start
) -> None:
    spec = {k: v for k, v in tiny.items() if k != "seed"}
    for again in (False, True):
        process = start({**spec, "seeds": [0, 1], "baseline": False, "policy": "all"})
        output, said = process.communicate(timeout=240)
        assert process.returncode == 0, said
        assert output.count("Report:") == 1
        assert ("student: finished before" in said) == again


def test_a_failed_run_of_a_study_is_left_out(
    tmp_path: Path, tiny: dict[str, Any], start: Start
) -> None:
    """In every process, and the others of the study go on."""
    alone = {"teacher": None, "baseline": False, "losses": ["ce"], "policy": "all", "seed": 3}
    sweep = {"train.optimizer.lr": [1.0e20, 0.05, 0.06]}
    process = start({**tiny, **alone, "sweep": sweep})
    output, said = process.communicate(timeout=240)
    assert re.findall(r"run \d of 3.*", said) == [
        "run 1 of 3: lr=1e+20",
        *re.findall(r"run 1 of 3 failed: .*", said),
        "run 2 of 3: lr=0.05",
        "run 3 of 3: lr=0.06",
    ]
    assert "lr=0.05" in output
    assert "lr=0.06" in output
    assert re.search(r"1 run failed, and is in no table:\s+lr=1e\+20: .*step", said), said
    assert process.returncode == 1


def test_too_many_processes_are_refused(
    tmp_path: Path, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is trained: a batch that has no row for somebody."""
    from kdzoo.training.distributed import Processes

    monkeypatch.setattr(Processes, "count", 15)
    with pytest.raises(kdzoo.SpecError, match=r"leaves \d+ images for a step .* 15 processes"):
        kdzoo.run({**tiny, "train": {"epochs": 1, "batch_size": 14}}, runs=tmp_path)


def test_a_teacher_of_a_gpu_travels_by_the_cpu() -> None:
    """Or it would come out on the first one's GPU in every process; the GPU is a simulated one."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from kdzoo.training.distributed import _Several

    class Seen(_Several):
        def __init__(self) -> None:
            self.value: Any = None

        def shared(self, value: Any) -> Any:
            self.value = value
            return value

    with FakeTensorMode():
        teacher = nn.BatchNorm1d(3, device="cuda")
        seen = Seen()
        seen.same(teacher)
    assert {tensor.device.type for tensor in seen.value.values()} == {"cpu"}
    assert {tensor.device.type for tensor in teacher.state_dict().values()} == {"cuda"}
