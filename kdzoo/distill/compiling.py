"""A step as torch compiles it: one graph, or one message that says why not."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import distributed

from kdzoo.errors import RunError

__all__ = ["Backend", "as_one_graph"]

Backend = Literal["inductor", "eager"]
"""What torch compiles with; ``eager`` follows a function, and computes it as it is without."""

_LINE = re.compile(r'File "(.+)", line (\d+)')


def as_one_graph(
    function: Callable[..., Any], device: torch.device, backend: Backend
) -> Callable[..., Any]:
    """A function as torch compiles it; it draws the numbers that it would draw without.

    A GPU is told of all its kernels at once (CUDA graphs): one by one takes longer than to compute
    them. Several processes exchange something in between; there it is one by one.

    Returns:
        What raises a RunError where it cannot be compiled.
    """
    # All distillers share this function, and it may be compiled only so often.
    torch.compiler.reset()
    alone = not (distributed.is_available() and distributed.is_initialized())
    captured = device.type == "cuda" and alone
    options: dict[str, Any] = {"fallback_random": True, "triton.cudagraphs": captured}
    compiled = torch.compile(
        function,
        fullgraph=True,
        backend=backend,
        options=options if backend == "inductor" else None,
    )

    def call(*args: Any) -> Any:
        try:
            return compiled(*args)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise RunError(_why_not(error)) from error

    return call


def _why_not(error: Exception) -> str:
    """What torch says in a hundred lines: the reason, and the line of code that it could not
    follow."""
    reason, _, code = str(error).partition("from user code:")
    where = _LINE.findall(code)
    place = f" ({where[-1][0]}, line {where[-1][1]})" if where else ""
    return (
        f"the step cannot be compiled: {reason.strip().splitlines()[0].rstrip('.')}{place}; change "
        "what torch.compile cannot make one graph of, or say `compile: false`"
    )
