"""What the checks ask of anything that computes with tensors: losses, adapters and models."""

from __future__ import annotations

import io
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from kdzoo.testing.checks import ContractError, NotApplicable, require
from kdzoo.training.checkpoint import load_tensors, refuse_more_than_data
from kdzoo.training.environment import missing_compiler

__all__ = [
    "close",
    "gradients",
    "need_compiler",
    "on_a_gpu",
    "refuse_another_when_compiled",
    "refuse_stray_tensors",
    "refuse_unregistered",
    "same",
    "seeded",
    "stored",
    "with_gradient",
]

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)


def seeded(seed: int, work: Callable[[], T]) -> T:
    """What ``work`` answers under a seed of torch's global generator, which is put back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return work()


def same(one: Any, other: Any) -> bool:
    """Whether two states are equal, bit by bit."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if one.dtype != other.dtype or one.shape != other.shape:
            return False
        unknown = (one != one) & (other != other)
        return bool(((one == other) | unknown).all())
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and (one == other or one != one)


def close(one: Tensor, other: Tensor, tolerance: float = 1e-4) -> bool:
    """Whether two tensors are equal but for rounding, on the scale of their largest number."""
    scale = max(float(one.detach().abs().max()), float(other.detach().abs().max()), 1e-3)
    return one.shape == other.shape and bool(
        torch.allclose(one.double(), other.double(), rtol=tolerance, atol=tolerance * scale)
    )


def with_gradient(answer: Tensor) -> Tensor:
    """The answer itself.

    Raises:
        ContractError: there is nothing to go back from.
    """
    require(answer.requires_grad, "its answer has no gradient: something detaches the student")
    return answer


def need_compiler() -> None:
    """Raise NotApplicable where torch's own compiler finds none for C++."""
    if missing_compiler() is not None:
        raise NotApplicable("there is no C++ compiler (g++, or what CXX names)")


def gradients(module: nn.Module) -> Tensor:
    """The gradients of all its parameters in one row, on whose scale some are rounding alone. A
    compiled step gives 0 to what has none."""
    values = [
        torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for parameter in module.parameters()
    ]
    return torch.cat([torch.zeros(1), *(value.flatten() for value in values)])


def refuse_another_when_compiled(
    make: Callable[[], M],
    measure: Callable[[Callable[..., Any], M], Mapping[str, Tensor]],
    backend: str,
    what: str,
    advice: str = "",
) -> None:
    """Hold a module that is compiled as one graph against the plain one.

    Args:
        make: a new module, the same each time.
        measure: from what is called, and the module that it is, to tensors by what they are.
        backend: torch.compile's.
        what: the module, for the message.
        advice: what is said where it differs.

    Raises:
        ContractError: it cannot be compiled as one graph, or is another function then.
    """
    plain, other = make(), make()
    wanted = measure(plain, plain)
    # Compiled, it draws the numbers that it would draw without.
    options: dict[str, Any] | None = {"fallback_random": True} if backend == "inductor" else None
    torch.compiler.reset()
    try:
        got = measure(torch.compile(other, fullgraph=True, backend=backend, options=options), other)
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise ContractError(
            f"{what} cannot be compiled as one graph: "
            f"{type(error).__name__}: {reason[0] if reason else ''}"
        ) from error
    finally:
        torch.compiler.reset()
    apart = [n for n, value in wanted.items() if n not in got or not close(got[n], value)]
    differ = f"compiled, {what} is another function: {', '.join(apart)} differ"
    require(not apart, f"{differ}. {advice}" if advice else differ)


def stored(what: str, state: Any) -> Any:
    """A state that was written to a file and read again, as a checkpoint is.

    Raises:
        PluginError: it holds more than data.
    """
    refuse_more_than_data(what, state)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "state.pt"
        buffer = io.BytesIO()
        torch.save(state, buffer)
        file.write_bytes(buffer.getvalue())
        return load_tensors(file)


def refuse_unregistered(module: nn.Module, answer: Tensor, given: Iterable[Tensor]) -> None:
    """Hold what an answer depends on against the module's registered parameters.

    Args:
        module: after a forward pass in train mode.
        answer: what it answered.
        given: what it was given.

    Raises:
        ContractError: a parameter is not registered, or is not used.
    """
    registered = {id(p): name for name, p in module.named_parameters() if p.requires_grad}
    allowed = {id(tensor) for tensor in given}
    reached = {id(leaf): leaf for leaf in _leaves(answer)}
    for key, leaf in reached.items():
        require(
            key in registered or key in allowed,
            f"its answer depends on a tensor {tuple(leaf.shape)} that requires a gradient and is "
            "no registered parameter: keep an nn.Parameter as an attribute, and modules in an "
            "nn.ModuleList rather than in a list",
        )
    for key, name in registered.items():
        require(key in reached, f"its parameter {name} is never used in the forward pass")


def refuse_stray_tensors(module: nn.Module, but: frozenset[str] = frozenset()) -> None:
    """Hold the tensors that a module and its parts keep against its registered ones.

    Args:
        module: after a forward pass.
        but: attributes of the module itself that may hold tensors.

    Raises:
        ContractError: a tensor is kept that ``.to(device)`` would leave behind.
    """
    for path, part in module.named_modules():
        for name, value in vars(part).items():
            if name in ("_parameters", "_buffers", "_modules") or (not path and name in but):
                continue
            for tensor in _tensors(value):
                where = f"{path}.{name}" if path else name
                raise ContractError(
                    f"{where} holds a tensor {tuple(tensor.shape)} that is no buffer, and so stays "
                    "behind when the rest moves to another device: use register_buffer"
                )


def on_a_gpu(
    module: nn.Module, call: Callable[[torch.device], tuple[Any, ...]], lead: str
) -> Tensor:
    """A module's answer on a simulated GPU: the shapes and devices are true, the numbers are not.

    Args:
        module: whose parameters and buffers are simulated too.
        call: from the device to the arguments of the module's forward pass.
        lead: the beginning of what is said if it fails.

    Raises:
        ContractError: tensors of two devices meet, or a number is waited for.
    """
    device = torch.device("cuda")
    with FakeTensorMode(), torch.no_grad():
        state = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
            for name, tensor in [*module.named_parameters(), *module.named_buffers()]
        }
        try:
            answer: Tensor = torch.func.functional_call(module, state, call(device))
        except Exception as error:  # torch has many of them for this
            raise ContractError(
                f"{lead} on a GPU (simulated): {_of_simulation(error)}\n"
                "    New tensors need a device=, what is kept must be a buffer, and .item(), "
                "bool() and selecting by a mask wait for the device in every step."
            ) from error
    require(isinstance(answer, Tensor), f"it answered {type(answer).__name__} and no tensor")
    require(
        answer.device.type == "cuda", f"its answer is on {answer.device} where its inputs are not"
    )
    return answer


def _of_simulation(error: Exception) -> str:
    """What a simulated GPU says, in the words of whoever does not know how it is simulated."""
    if isinstance(error, (DataDependentOutputException, DynamicOutputShapeException)):
        return f"it waits for a number to come back, or for how many there are ({error})"
    reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
    if "convert all Tensors to FakeTensors" in reason:
        return f"a tensor that stayed on the CPU meets one on the GPU{_operation(reason)}"
    return f"{type(error).__name__}: {reason}"


def _operation(reason: str) -> str:
    found = re.search(r"Found in ([\w.]+)", reason)
    return f" ({found.group(1)})" if found else ""


def _leaves(answer: Tensor) -> Iterator[Tensor]:
    """The tensors that would get a gradient from ``answer.backward()``."""
    seen = {answer.grad_fn}
    nodes = [answer.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None:
            continue
        variable = getattr(node, "variable", None)
        if variable is not None:
            yield variable
        following = [after for after, _ in node.next_functions if after not in seen]
        seen.update(following)
        nodes += following


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
