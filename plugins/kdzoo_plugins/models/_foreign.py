"""What the sources of other people's models have in common."""

from __future__ import annotations

from typing import Any

from torch import nn

__all__ = ["ENTRANCE", "mark_entrance"]

ENTRANCE = "entrance"


def mark_entrance(head: nn.Module) -> None:
    """Make what enters the classifier the output of a module: ``ENTRANCE``, inside the classifier.

    These models flatten and pool in functions, which cannot be tapped. The module has no
    parameters: the state dict stays as it was published.
    """
    head.add_module(ENTRANCE, nn.Identity())
    head.register_forward_pre_hook(_through_entrance)


def _through_entrance(head: nn.Module, inputs: tuple[Any, ...]) -> Any:
    return head.get_submodule(ENTRANCE)(*inputs)
