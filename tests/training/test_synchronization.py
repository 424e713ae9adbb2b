"""Within an epoch nothing waits for the device: no number of a tensor comes to the host.

On a GPU each such wait idles it. Here everything is on the CPU, where what would wait can be seen:
it is asked for by name, or by an operation whose result depends on values.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kdzoo_plugins.losses.crd import CRD
from kdzoo_plugins.policies.tllm import TLLM
from pictures import CLASSES, write_pictures
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import kdzoo
from kdzoo.data.augment import Augmentation
from kdzoo.data.images import View
from kdzoo.data.memory import MemorySet
from kdzoo.extend.gathering import shared_as
from kdzoo.extend.registry import registry
from kdzoo.testing.modules import on_a_gpu
from kdzoo.testing.processes import in_two_processes
from kdzoo.training import looks
from kdzoo.training.loop import Trainer

# `to` stands for a copy to a device that the host waits for; the CPU is the only device here.
ASKED = {"item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__"}
DEPENDS_ON_VALUES = {"_local_scalar_dense", "nonzero", "_unique2", "masked_select"}
INDEXES = {"index", "index_put", "index_put_", "_index_put_impl_"}  # by a mask they depend, too
# They look at numbers on the CPU alone, where nothing waits.
ON_THE_CPU_ALONE = {"_check_batch", "_check", "_one_hot", "_lists"}
# Of a loader: what reads images, in processes of its own unless `workers` is 0; and its own seed.
ON_THE_CPU_ALONE |= {"__getitem__", "_get_iterator"}


class Asked(TorchFunctionMode):
    """Counts what is asked of tensors by name."""

    def __init__(self, waits: Counter[str]) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is functional.one_hot:
            return _one_hot(*args, **(kwargs or {}))
        copied = function is torch.Tensor.to and isinstance(args[1], torch.device)
        if copied and not (kwargs or {}).get("non_blocking"):
            self.waits["to"] += 1
        _count(self.waits, function.__name__, ASKED)
        return function(*args, **(kwargs or {}))


def _one_hot(*arguments: Any, **more: Any) -> torch.Tensor:
    """torch looks whether the classes are in range, unless they are on a GPU."""
    return functional.one_hot(*arguments, **more)


class Dispatched(TorchDispatchMode):
    """Counts the operations whose results depend on values."""

    def __init__(self, waits: Counter[str]) -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = operation.overloadpacket.__name__
        if name in INDEXES and any(i is not None and i.dtype == torch.bool for i in args[1]):
            name = "nonzero"
        _count(self.waits, name, DEPENDS_ON_VALUES)
        return operation(*args, **(kwargs or {}))


def _count(waits: Counter[str], name: str, waiting: set[str]) -> None:
    if name not in waiting:
        return
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name in ON_THE_CPU_ALONE:
            return
        frame = frame.f_back
    waits[name] += 1


def waits_of_an_epoch(
    spec: dict[str, Any], runs: Path, monkeypatch: pytest.MonkeyPatch
) -> Counter[str]:
    """What a student's only epoch waits for."""
    waits: Counter[str] = Counter()
    epoch = Trainer._epoch

    def watched(*arguments: Any) -> None:
        with Asked(waits), Dispatched(waits):
            epoch(*arguments)

    kdzoo.run(spec, ["train.epochs=2"], runs=runs)  # the teacher
    monkeypatch.setattr(Trainer, "_epoch", watched)
    kdzoo.run(spec, runs=runs)
    return waits


def digits(*losses: Any, policy: Any = "all") -> dict[str, Any]:
    """18 steps."""
    taught = bool(losses)
    return {
        "name": "waits",
        "data": "digits",
        "teacher": {"use": "small-cnn", "train": {"epochs": 1}} if taught else None,
        "student": "small-cnn",
        "losses": ["ce", *losses],
        "policy": policy,
        "train": {"epochs": 1},
        "observers": [],
    }


FIXED = {"use": "fixed", "classes": ["3"]}


@pytest.mark.parametrize(
    "spec",
    [
        digits(),
        digits("kd", policy=FIXED),
        digits("dkd", policy=FIXED),
        digits("fitnet", policy=FIXED),
        digits("crd", policy=FIXED),
        digits({"use": "crd", "mode": "relax"}, {"use": "crd", "id": "few", "negatives": 50}),
        digits("kd", policy={**FIXED, "scope": "column"}),
        digits("dkd", policy={**FIXED, "scope": "column"}),
        digits("kd", policy={"use": "tllm", "signal": "cka"}),
    ],
    ids=["ce", "kd", "dkd", "fitnet", "crd", "crd-relax", "kd-column", "dkd-column", "cka"],
)
def test_an_epoch_looks_at_its_numbers_every_ten_steps(
    spec: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And at nothing else."""
    waits = waits_of_an_epoch(spec, tmp_path, monkeypatch)
    assert waits == {"cpu": 2, "numpy": 2}


@pytest.mark.parametrize("every", [1000, 7])
def test_how_often_it_looks_is_the_specs(
    every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = {**digits("kd"), "log_every": every}
    waits = waits_of_an_epoch(spec, tmp_path, monkeypatch)
    assert waits["cpu"] == waits["numpy"] == (3 if every == 7 else 1)


def test_streamed_images_wait_for_nothing_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which images are read is brought to the host once, before the first step."""
    root = write_pictures(tmp_path / "pictures")
    data = {"use": "image-folder", "root": str(root), "size": 12, "memory_gb": 0, "workers": 0}
    train = {"epochs": 1, "batch_size": 2}
    spec = {**digits("kd"), "data": {**data, "validation": 0}, "train": train}
    waits = waits_of_an_epoch(spec, tmp_path / "runs", monkeypatch)
    steps = 8 * len(CLASSES) // 2
    looks = -(-steps // 10)
    assert waits == {"cpu": looks + 1, "numpy": looks, "to": 1}


def crd_step(rank: int, told: bool) -> dict[str, int]:
    """What a step of crd in one of two processes waits for."""
    waits: Counter[str] = Counter()
    targets = torch.arange(40) % 4
    loss = CRD(CRD.Params(negatives=6, dimensions=4))
    loss.targets = targets
    shapes = kdzoo.Shapes((4,), {"penultimate": (5,)})
    loss.setup(shapes, shapes, num_classes=4, num_samples=40)
    rows = torch.arange(2) if rank == 0 else torch.arange(2, 5)
    said = kdzoo.Outputs(torch.zeros(len(rows), 4), {"penultimate": torch.rand(len(rows), 5)})
    batch = kdzoo.Batch(torch.zeros(len(rows)), targets[rows], rows, torch.ones(len(rows)), 0.0)
    with shared_as([2, 3]) if told else contextlib.nullcontext(), Asked(waits), Dispatched(waits):
        loss(said, said, batch)
    return dict(waits)


def test_several_processes_know_each_others_part_of_a_batch() -> None:
    assert in_two_processes(crd_step, True) == [{}, {}]
    assert all(waits["__int__"] == 2 for waits in in_two_processes(crd_step, False))


class FailsLate(kdzoo.Loss):
    """Fails in the 22nd step of an epoch of 34."""

    name = "fails-late"
    guidance = "label"

    def forward(
        self, student: kdzoo.Outputs, teacher: kdzoo.Outputs, batch: kdzoo.Batch
    ) -> torch.Tensor:
        if batch.progress > 0.6:
            raise IndexError("index 7 is out of range")
        return student.logits.square().mean(1)


@pytest.mark.parametrize(
    ("loss", "error", "steps"),
    [
        ("ce", "", 68),
        ({"use": "sample-explodes", "after": 0.6}, "became nan in step 22 (epoch 1)", 20),
        ("fails-late", "IndexError", 20),
    ],
    ids=["whole", "explodes", "fails"],
)
def test_what_travels_is_shown_as_if_it_were_there_at_once(
    loss: Any, error: str, steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU a look is shown one look later: the same numbers in the same order, each once,
    however the epoch ends, and before its end is told."""
    monkeypatch.setitem(registry()._components["loss"], "fails-late", FailsLate)
    recorder: Any = registry().find(kdzoo.Observer.kind, "sample-recorder")
    train = {"epochs": 2, "batch_size": 32}
    spec = {**digits(), "losses": [loss], "observers": ["sample-recorder"], "train": train}
    told = []
    for late in (False, True):
        recorder.calls.clear()
        monkeypatch.setattr(looks, "_takes_time", lambda rows, late=late: late)
        with pytest.raises(kdzoo.KdzooError) if error else contextlib.nullcontext() as caught:
            kdzoo.run(spec, runs=tmp_path / str(late))
        if caught is not None:
            assert error in str(caught.value)
        told.append(
            [
                (call[0], call[2].epoch)
                if call[0] == "epoch"
                else (call[2], call[3]["loss/total"].tolist())
                for call in recorder.calls
                if call[0] in ("steps", "epoch")
            ]
        )
    assert str(told[0]) == str(told[1])
    assert sum(len(values) for first, values in told[0] if first != "epoch") == steps


class Crossings(TorchDispatchMode):
    """Names the operations that lead from one device to another."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        answer = operation(*args, **(kwargs or {}))
        given, answered = (
            {leaf.device.type for leaf in tree_leaves(part) if isinstance(leaf, torch.Tensor)}
            for part in ((args, kwargs), answer)
        )
        if given and answered - given:
            self.found.append(operation.overloadpacket.__name__)
        return answer


class Steps(nn.Module):
    """The steps of an epoch, on views that it is given; they count what crosses."""

    def __init__(self, distiller: kdzoo.Distiller) -> None:
        super().__init__()
        self.distiller = distiller
        self.teacher = distiller.teacher  # so that its weights are on the device too
        self.crossed: list[str] = []

    def forward(self, views: Iterator[View]) -> torch.Tensor:
        with Crossings(self.crossed):
            for view in views:
                step = self.distiller(view.inputs, view.targets, view.indices, progress=0.0)
        return step.total


def test_images_views_and_curves_stay_on_the_device() -> None:
    """On a GPU that is simulated: where a number was looked at, there would be none."""
    targets = torch.arange(250) % 5
    networks = [
        nn.Sequential(nn.Flatten(), nn.Linear(64, 80), nn.ReLU(), nn.Linear(80, 5)) for _ in "ts"
    ]
    layers = kdzoo.Layers(penultimate="2")
    distiller = kdzoo.Distiller(
        *networks,
        kdzoo.terms(["ce", "kd"]),
        example=torch.rand(2, 1, 8, 8),
        classes=list("abcde"),
        num_samples=250,
        policy=TLLM(TLLM.Params(signal="cka", scope="column")),
        targets=targets,
        teacher_layers=layers,
        student_layers=layers,
    ).train()
    distiller.curves.keep_right_rows(250)
    distiller.curves.compare_right_rows(250, np.zeros((1, 32), np.uint8))
    steps = Steps(distiller)
    assert any("similarity" in name for name, _ in steps.named_buffers())

    def epoch(device: torch.device) -> tuple[Iterator[View]]:
        pixels = torch.empty(250, 8, 8, 1, dtype=torch.uint8, device=device)
        where = torch.empty(250, dtype=torch.int64)
        known = MemorySet(
            source="made",
            input_shape=(1, 8, 8),
            train_targets=where,
            test_targets=where,
            classes=tuple("abcde"),
            mean=(0.5,),
            std=(0.5,),
            crop=2,
            flip=True,
            fingerprint="",
            train_pixels=pixels,
            test_pixels=pixels,
        )
        split = known._train(where, Augmentation(seed=0, crop=2, flip=True))
        return (split.augmented(where, [120, 130], 0),)

    on_a_gpu(steps, epoch, "an epoch does not run")
    assert steps.crossed == ["_to_copy"]  # the order of the images, once


def test_what_waits_is_seen() -> None:
    waits: Counter[str] = Counter()
    with Asked(waits), Dispatched(waits):
        numbers = torch.arange(3)
        numbers[numbers > 1]  # the size of this depends on values
        float(numbers[0])
    assert waits["nonzero"]
    assert waits["__float__"]
