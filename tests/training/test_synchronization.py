"""Within an epoch nothing waits for the device: no number of a tensor comes to the host.

On a GPU each such wait idles it. Here everything is on the CPU, where what would wait can be seen:
it is asked for by name, or by an operation whose result depends on values.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import kdzoo
from kdzoo.training.loop import Trainer

ASKED = {"item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__"}
DEPENDS_ON_VALUES = {"_local_scalar_dense", "nonzero", "_unique2", "masked_select"}
INDEXES = {"index", "index_put", "index_put_", "_index_put_impl_"}  # by a mask they depend, too
# They look at numbers on the CPU alone, where nothing waits.
ON_THE_CPU_ALONE = {"_check_batch", "_check", "_one_hot"}


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


@pytest.mark.parametrize("loss", ["ce", "kd", "dkd", "fitnet", "crd"])
def test_an_epoch_looks_at_its_numbers_once(
    loss: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: Counter[str] = Counter()
    epoch = Trainer._epoch

    def watched(*arguments: Any) -> None:
        with Asked(waits), Dispatched(waits):
            epoch(*arguments)

    taught = loss != "ce"
    spec = {
        "name": "waits",
        "data": "digits",
        "teacher": {"use": "small-cnn", "train": {"epochs": 1}} if taught else None,
        "student": "small-cnn",
        "losses": ["ce", loss] if taught else ["ce"],
        "policy": {"use": "fixed", "classes": ["3"]} if taught else "all",
        "train": {"epochs": 1},
        "log_every": 1000,
        "observers": [],
    }
    kdzoo.run(spec, ["train.epochs=2"], runs=tmp_path)  # the teacher
    monkeypatch.setattr(Trainer, "_epoch", watched)
    kdzoo.run(spec, runs=tmp_path)
    assert waits == {"cpu": 1, "numpy": 1}


def test_what_waits_is_seen() -> None:
    waits: Counter[str] = Counter()
    with Asked(waits), Dispatched(waits):
        numbers = torch.arange(3)
        numbers[numbers > 1]  # the size of this depends on values
        float(numbers[0])
    assert waits["nonzero"]
    assert waits["__float__"]
