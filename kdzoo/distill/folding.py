"""Batch norm of a frozen network folded into the layer before it: half the memory traffic."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kdzoo.distill.taps import Tapped

__all__ = ["fold_batch_norm"]

# These exact classes: one that is derived, or parametrized, may compute something else.
_FOLDED = {nn.Conv2d: nn.BatchNorm2d, nn.Linear: nn.BatchNorm1d}


@dataclass(frozen=True)
class _Pair:
    """A layer whose output enters a batch norm, and where that stands in the module tree."""

    layer: nn.Conv2d | nn.Linear
    norm: nn.BatchNorm2d | nn.BatchNorm1d
    parent: nn.Module
    name: str
    weight: Tensor
    bias: Tensor | None

    def fold(self) -> None:
        """Let the layer answer what the norm would have, and put an identity in its place."""
        norm = self.norm
        assert norm.running_var is not None
        assert norm.running_mean is not None
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * norm.weight.double()
        shift = -norm.running_mean.double()
        if self.bias is not None:
            shift = shift + self.bias.double()
        shift = shift * scale
        if norm.bias is not None:
            shift = shift + norm.bias.double()
        columns = scale.view(-1, *[1] * (self.weight.ndim - 1))
        self.layer.weight = _frozen(self.weight.double() * columns, self.weight)
        self.layer.bias = _frozen(shift, self.weight)
        setattr(self.parent, self.name, nn.Identity())

    def unfold(self) -> None:
        """Put everything back."""
        self.layer.weight, self.layer.bias = self.weight, self.bias
        setattr(self.parent, self.name, self.norm)


@torch.no_grad()
def fold_batch_norm(tapped: Tapped, example: Tensor) -> int:
    """Fold each batch norm of a network in eval mode into the convolution or linear layer before.

    The module tree keeps its paths. Layers with hooks (taps are hooks) are left alone, as are those
    that run more than once or share their weights. What the network answers is compared before and
    after; a pair that does not keep it within rounding is unfolded.

    Args:
        tapped: the network, frozen.
        example: (B, channels, height, width), a few images.

    Returns:
        How many were folded.
    """
    tapped.network.eval()
    example = torch.cat([example, 1 - example])  # their negatives reach other activations
    with torch.backends.cudnn.flags(allow_tf32=False):  # what is compared is the folding alone
        pairs = list(_pairs(tapped.network, example))
        return _fold(pairs, tapped, example)


def _fold(pairs: Sequence[_Pair], tapped: Tapped, example: Tensor) -> int:
    before = _answers(tapped, example)
    # All at once, as nearly every network allows; else one by one.
    if _folded(pairs, tapped, example, before):
        return len(pairs)
    return sum(_folded([pair], tapped, example, before) for pair in pairs)


def _folded(
    pairs: Sequence[_Pair], tapped: Tapped, example: Tensor, before: Sequence[Tensor]
) -> bool:
    for pair in pairs:
        pair.fold()
    try:
        after = _answers(tapped, example)
    except Exception:  # the model asks its batch norm for something that an identity has not
        after = []
    equal = len(after) == len(before) and all(map(_within_rounding, after, before))
    if not equal:
        for pair in pairs:
            pair.unfold()
    return equal


def _within_rounding(after: Tensor, before: Tensor) -> bool:
    spread = (before - before.mean()).abs().max()  # what all answers have in common says nothing
    return bool((after - before).abs().max() <= 1e-4 * spread)


def _answers(tapped: Tapped, example: Tensor) -> list[Tensor]:
    outputs = tapped(example)
    return [outputs.logits, *outputs.features.values()]


def _pairs(network: nn.Module, example: Tensor) -> Iterator[_Pair]:
    """What runs directly before each batch norm, found by looking at one forward pass."""
    modules = list(network.modules())
    owners = Counter(id(p) for module in modules for p in module.parameters(recurse=False))
    runs: Counter[nn.Module] = Counter()
    # By the tensor's id; the tensors are kept, since ids are used again, with their versions.
    made_by: dict[int, tuple[nn.Module, Tensor, int]] = {}
    found: dict[nn.Module, nn.Module] = {}

    def enters(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        runs[module] += 1
        layer, output, version = made_by.get(id(inputs[0]) if inputs else 0, (None, None, 0))
        if layer is None or output is None or output._version != version:
            return  # something else made it, or changed it since
        if type(module) is _FOLDED[type(layer)]:
            found[module] = layer

    def leaves(module: nn.Module, inputs: Any, output: Any) -> None:
        if type(module) in _FOLDED and (type(module) is nn.Conv2d or output.ndim == 2):
            made_by[id(output)] = (module, output, output._version)

    watched = [
        module
        for module in modules
        if type(module) in {*_FOLDED, *_FOLDED.values()}
        and not (module._forward_hooks or module._forward_pre_hooks)
    ]
    handles = [module.register_forward_pre_hook(enters) for module in watched]
    handles += [module.register_forward_hook(leaves) for module in watched]
    try:
        network(example)
    finally:
        for handle in handles:
            handle.remove()
    for parent in modules:
        for name, norm in parent.named_children():
            layer = found.get(norm)
            if (
                layer is not None
                and runs[norm] == runs[layer] == 1
                and all(owners[id(p)] == 1 for m in (layer, norm) for p in m.parameters())
                and norm.running_var is not None
            ):
                assert isinstance(layer, (nn.Conv2d, nn.Linear))
                assert isinstance(norm, (nn.BatchNorm2d, nn.BatchNorm1d))
                yield _Pair(layer, norm, parent, name, layer.weight, layer.bias)


def _frozen(values: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(values.to(like.dtype), requires_grad=False)
