"""On a GPU: the same bits each time, and captured steps that are the plain ones.

Elsewhere these are skipped. The other tests of runs are worth a call there too, since
``device: auto`` takes the GPU: ``python -m pytest -n 8 tests/test_run.py tests/training``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import kdzoo
from kdzoo.training.loop import Trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

STEERED = {"use": "tllm", "signal": "cka", "start_epoch": 1, "patience": 1}
METHODS: dict[str, dict[str, Any]] = {
    "ce": {"losses": ["ce"], "teacher": None},
    "kd": {"losses": ["ce", "kd"]},
    "dkd": {"losses": ["ce", "dkd"], "policy": "tllm", "baseline": True},
    "fitnet": {"losses": ["ce", "fitnet"]},
    "crd": {"losses": ["ce", {"use": "crd", "negatives": 500}], "policy": STEERED},
    "dropout": {"losses": ["ce", "kd"], "student": "sample-dropout"},
}
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bf16": {"precision": "bf16"},
    "compiled": {"compile": True},
    "both": {"compile": True, "precision": "bf16"},
}


def spec(method: str, way: str) -> dict[str, Any]:
    """Convolutions that cuDNN has several ways for, some of them in no fixed order."""
    return {
        "name": "gpu",
        "data": "digits",
        "teacher": {"use": "resnet14", "train": {"epochs": 1}},
        "student": "resnet8",
        "device": "cuda",
        "policy": "all",
        "train": {"epochs": 3, "batch_size": 64, **WAYS[way]},
        "observers": [],
        **METHODS[method],
    }


def weights(run: kdzoo.Run) -> dict[str, Tensor]:
    return load_file(run.directory / "student.safetensors")


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize("way", ["plain", "bf16", "both"])
@pytest.mark.parametrize("method", METHODS)
def test_the_same_bits_again_and_after_a_cut(
    method: str, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = weights(kdzoo.run(spec(method, way), runs=tmp_path / "a"))
    assert_equal(weights(kdzoo.run(spec(method, way), runs=tmp_path / "b")), whole)

    class Cut(BaseException):
        pass

    original = Trainer._epoch

    def cut(self: Trainer, *arguments: Any) -> None:
        original(self, *arguments)
        if self.epoch == 1:
            raise Cut  # after the second epoch's steps, before its checkpoint

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_epoch", cut)
        with pytest.raises(Cut):
            kdzoo.run(spec(method, way), runs=tmp_path / "c")
    assert_equal(weights(kdzoo.run(spec(method, way), runs=tmp_path / "c")), whole)


@pytest.mark.parametrize("method", METHODS)
def test_a_captured_step_is_the_plain_one(method: str, tmp_path: Path) -> None:
    """Also where something is drawn anew in each. Nothing is learnt, since differences grow."""
    still = ["train.epochs=1", "train.optimizer={use: sgd, lr: 1.0e-9}", "log_every=1"]
    losses = []
    for way in ("plain", "compiled"):
        made = {**spec(method, way), "observers": ["jsonl"]}
        lines = (
            kdzoo.run(made, still, runs=tmp_path / way).directory / "metrics.jsonl"
        ).read_text()
        steps = [line for line in map(json.loads, lines.splitlines()) if "loss/total" in line]
        losses.append([[v for k, v in line.items() if k.startswith("loss/")] for line in steps])
    plain, captured = np.array(losses[0]), np.array(losses[1])
    assert len(plain) > 10
    np.testing.assert_allclose(captured, plain, rtol=2e-3)
    assert len(np.unique(captured[:, 0])) == len(captured)


def test_what_a_captured_step_says_outlives_the_next() -> None:
    """In somebody's own loop, which keeps the terms of all steps and reads them at the end."""
    torch.manual_seed(0)
    images = torch.rand(64, 3, 16, 16, device="cuda")
    targets = (torch.arange(64) % 5).cuda()
    nets = [torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 5)) for _ in range(2)]
    terms = kdzoo.terms(["ce", "kd"])
    distiller = kdzoo.Distiller(
        *nets, terms, example=images[:2].cpu(), classes=list("abcde"), num_samples=64
    )
    distiller.cuda().begin_stage(terms, None, backend="inductor")
    distiller.train()
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.1)
    kept, read = [], []
    for _ in range(6):
        step = distiller(images, targets)
        optimizer.zero_grad()
        step.total.backward()
        optimizer.step()
        kept.append((step.total.detach(), *(value.detach() for value in step.terms.values())))
        read.append([float(value) for value in kept[-1]])
    assert [[float(value) for value in step] for step in kept] == read
    assert len({step[0] for step in read}) == 6


@pytest.mark.parametrize("method", METHODS)
def test_no_step_waits(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Trainer._epoch

    def watched(self: Trainer, *arguments: Any) -> None:
        torch.cuda.set_sync_debug_mode("error")
        try:
            original(self, *arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Trainer, "_epoch", watched)
    kdzoo.run(spec(method, "plain"), runs=tmp_path)
