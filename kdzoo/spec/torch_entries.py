"""Optimizers and schedules: torch's own, by their own names, with their own arguments."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer, lr_scheduler

from kdzoo.errors import RunError, SpecError, did_you_mean
from kdzoo.spec.arguments import expected
from kdzoo.spec.models import TorchEntry

__all__ = [
    "ArgumentError",
    "argument_names",
    "make_optimizer",
    "make_schedule",
    "optimizer_names",
    "schedule_names",
    "try_optimizer",
    "try_schedule",
]

# These are stepped with a metric or once a step, or take code or other schedules as arguments.
_NO_SCHEDULES = {
    "ChainedScheduler",
    "CyclicLR",
    "LRScheduler",
    "LambdaLR",
    "MultiplicativeLR",
    "OneCycleLR",
    "ReduceLROnPlateau",
    "SequentialLR",
}
_NO_OPTIMIZERS = {"LBFGS", "Optimizer", "SparseAdam"}  # a closure a step, or sparse gradients only

_OPTIMIZERS: dict[str, type[Optimizer]] = {
    name.lower(): value
    for name, value in vars(torch.optim).items()
    if isinstance(value, type) and issubclass(value, Optimizer) and name not in _NO_OPTIMIZERS
}
_SCHEDULES: dict[str, type[lr_scheduler.LRScheduler]] = {
    name.removesuffix("LR").lower(): value
    for name, value in vars(lr_scheduler).items()
    if isinstance(value, type)
    and issubclass(value, lr_scheduler.LRScheduler)
    and not name.startswith("_")
    and name not in _NO_SCHEDULES
}


class ArgumentError(SpecError):
    """One argument is wrong: that of this key."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


def optimizer_names() -> list[str]:
    """The optimizers that a spec can name."""
    return sorted(_OPTIMIZERS)


def schedule_names() -> list[str]:
    """The schedules that a spec can name."""
    return sorted(_SCHEDULES)


def argument_names(kind: str, use: str) -> set[str]:
    """The arguments that an ``optimizer`` or a ``schedule`` takes; none where there is none."""
    found = (_OPTIMIZERS if kind == "optimizer" else _SCHEDULES).get(use)
    return set() if found is None else _arguments(found)


def make_optimizer(entry: TorchEntry, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """The optimizer of a spec's entry.

    Raises:
        SpecError: torch has no such optimizer, or it does not take these arguments.
    """
    cls = _OPTIMIZERS.get(entry.use)
    if cls is None:
        raise SpecError(f'unknown optimizer "{entry.use}"{did_you_mean(entry.use, _OPTIMIZERS)}')
    made: Optimizer = _called("optimizer", entry, cls, list(parameters), entry.params)
    return made


def make_schedule(
    entry: TorchEntry | None, optimizer: Optimizer, epochs: int
) -> lr_scheduler.LRScheduler:
    """The schedule of a spec's entry; a constant one for ``None``.

    A ``T_max`` that is not given is the number of epochs.

    Raises:
        SpecError: torch has no such schedule, or it does not take these arguments.
    """
    if entry is None:
        return lr_scheduler.ConstantLR(optimizer, factor=1.0)
    cls = _SCHEDULES.get(entry.use)
    if cls is None:
        raise SpecError(f'unknown schedule "{entry.use}"{did_you_mean(entry.use, _SCHEDULES)}')
    length = {"T_max": epochs} if "T_max" in inspect.signature(cls).parameters else {}
    params = {**length, **entry.params}
    made: lr_scheduler.LRScheduler = _called("schedule", entry, cls, optimizer, params)
    return made


def try_optimizer(entry: TorchEntry) -> Optimizer:
    """Make an optimizer for one parameter, and let it do two steps.

    Raises:
        SpecError: it cannot be made, or cannot work with these arguments.
    """
    parameter = nn.Parameter(torch.zeros(2, 2))
    optimizer = make_optimizer(entry, [parameter])
    parameter.grad = torch.full_like(parameter, 0.1)
    with _trying(f"optimizer {entry.use} cannot work with these arguments"):
        optimizer.step()
        optimizer.step()
    if not parameter.isfinite().all():
        raise SpecError(f"optimizer {entry.use} gives NaN or infinity with these arguments")
    return optimizer


def try_schedule(entry: TorchEntry | None, tried: Optimizer, epochs: int) -> None:
    """Step a schedule through all epochs.

    Args:
        entry: the spec's entry.
        tried: an optimizer that :func:`try_optimizer` made.
        epochs: how many.

    Raises:
        SpecError: it cannot work with these arguments, or a learning rate is no rate.
    """
    schedule = make_schedule(entry, tried, epochs)
    for epoch in range(1, epochs + 1):
        with _trying(f"schedule fails after epoch {epoch}"):
            rates = [float(group["lr"]) for group in tried.param_groups]
            tried.step()
            schedule.step()
        if not all(math.isfinite(rate) and rate >= 0 for rate in rates):
            raise SpecError(f"schedule gives a learning rate of {rates[0]} in epoch {epoch}")


def _arguments(cls: type[Any]) -> set[str]:
    return set(list(inspect.signature(cls).parameters)[1:]) - {"last_epoch", "verbose"}


def _called(
    kind: str, entry: TorchEntry, cls: type[Any], first: Any, params: dict[str, Any]
) -> Any:
    parameters = inspect.signature(cls).parameters
    known = _arguments(cls)
    for key in params:
        if key not in known:
            raise ArgumentError(
                key, f'unknown argument "{key}" of {kind} {entry.use}{did_you_mean(key, known)}'
            )
        if (wanted := expected(params[key], parameters[key])) is not None:
            said = f'argument "{key}" of {kind} {entry.use} must be {wanted}, not {params[key]!r}'
            raise ArgumentError(key, said)
    with _trying(f"{kind} {entry.use} does not take these arguments"):
        return cls(first, **params)


@contextlib.contextmanager
def _trying(failed: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:  # torch imports much of itself when it is first needed
        raise RunError(f"torch cannot import what it needs: {error}; install it again") from error
    except Exception as error:
        raise SpecError(f"{failed}: {error}") from error
