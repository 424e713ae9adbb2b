"""A batch that several processes share is one batch: for batch norm, and for what is drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn import functional
from torch.overrides import TorchFunctionMode

__all__ = ["WholeBatch"]

_OF_A_SIZE = frozenset({torch.rand, torch.randn})
_LIKE_A_TENSOR = frozenset(
    {
        torch.bernoulli,
        torch.multinomial,
        torch.rand_like,
        torch.randn_like,
        Tensor.bernoulli,
        Tensor.multinomial,
        functional.alpha_dropout,
        functional.dropout,
        functional.dropout1d,
        functional.dropout2d,
        functional.dropout3d,
        functional.feature_alpha_dropout,
        torch.dropout,
    }
)
_IN_PLACE = frozenset({Tensor.bernoulli_, Tensor.exponential_, Tensor.normal_, Tensor.uniform_})


class WholeBatch(TorchFunctionMode):
    """While it is entered, this process's rows are seen as a part of the whole batch.

    Batch norm in train mode takes its statistics from the rows of all processes. What is drawn for
    each row, as dropout does, is drawn for all rows of the batch, and a process keeps its own:
    under one seed all processes together draw what one alone would. Any model is covered, whatever
    its modules are called, since the functions of torch are caught and not the modules; attention
    that drops out within torch's fused kernel is not.

    Args:
        own: the rows of the batch that this process has.
        size: how many rows the batch has.
    """

    def __init__(self, own: slice, size: int) -> None:
        super().__init__()
        self.own = own
        self.rows = own.stop - own.start
        self.size = size

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.batch_norm:
            return _batch_norm(*args, **kwargs)
        if func in _LIKE_A_TENSOR and self._has_rows(args):
            return func(self._whole(args[0]), *args[1:], **kwargs)[self.own]
        if func in _IN_PLACE and self._has_rows(args):
            return args[0].copy_(func(self._whole(args[0]), *args[1:], **kwargs)[self.own])
        if func in _OF_A_SIZE and args:
            shape = args[0] if isinstance(args[0], Sequence) else args
            if len(shape) and shape[0] == self.rows:
                return func((self.size, *shape[1:]), **kwargs)[self.own]
        return func(*args, **kwargs)

    def _has_rows(self, args: Sequence[Any]) -> bool:
        given = args[0] if args else None
        return isinstance(given, Tensor) and given.ndim > 0 and len(given) == self.rows

    def _whole(self, rows: Tensor) -> Tensor:
        """Our rows at their place in a batch whose other rows do not matter."""
        before, after = self.own.start, self.size - self.own.stop
        others = [rows.new_ones(n, *rows.shape[1:]) for n in (before, after)]
        whole = torch.cat([others[0], rows, others[1]])
        # The numbers are drawn in the order of the memory.
        if rows.ndim == 4 and rows.is_contiguous(memory_format=torch.channels_last):
            return whole.contiguous(memory_format=torch.channels_last)
        return whole


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """As :func:`torch.nn.functional.batch_norm`; over all processes in train mode."""
    if not training:
        return functional.batch_norm(
            input, running_mean, running_var, weight, bias, training, momentum, eps
        )
    answer: Tensor
    answer, mean, variance, count = _Normalized.apply(input, weight, bias, eps)
    with torch.no_grad():
        if running_mean is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        if running_var is not None:
            unbiased = variance * (count / (count - 1))
            running_var.lerp_(unbiased.to(running_var.dtype), momentum)
    return answer


class _Normalized(torch.autograd.Function):
    """(B, channels, ...) with mean 0 and variance 1 in each channel, over all processes; then
    times the weight, plus the bias.

    torch's own SyncBatchNorm works on GPUs only, and in modules that it puts where others were.
    Its fused passes over the batch are torch's; what they have seen is exchanged between them.
    """

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Normalize; also answers each channel's mean and variance, and the count they are of."""
        wide = input.dtype if input.dtype == torch.float64 else torch.float32
        # Each process subtracts its own mean; the sums are exact enough to be put together.
        mean, variance = torch.batch_norm_update_stats(input.to(wide), None, None, 0.0)
        mean, variance = mean.double(), variance.double()
        count = mean.new_full((1,), input.numel() // input.shape[1])
        own = [mean * count, (variance + mean.square()) * count, count]
        sums = _over_processes(torch.cat(own))
        count = sums[-1]
        mean, squares = (sums[:-1] / count).chunk(2)
        variance = (squares - mean.square()).clamp(min=0)
        about = mean.to(wide), variance.to(wide)
        answer = functional.batch_norm(input, *about, weight, bias, eps=eps)
        ctx.save_for_backward(input, weight, *about, count)
        ctx.eps, ctx.biased = eps, bias is not None
        ctx.mark_non_differentiable(mean, variance, count)
        return answer, mean, variance, count

    @staticmethod
    def backward(
        ctx: Any, slope: Tensor, *_: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        """With s for the slope and n for what is normalized, the input's gradient is
        (s - mean of s - n * mean of s n) * weight / deviation, with means over all processes; the
        weight's is this process's part of the sum of s n, the bias's of the sum of s."""
        input, weight, mean, variance, count = ctx.saved_tensors
        scale = (variance + ctx.eps).rsqrt()
        _, along, plain = torch.ops.aten.native_batch_norm_backward(
            slope, input, weight, mean, variance, mean, scale, False, ctx.eps, [False, True, True]
        )
        sums = _over_processes(torch.cat([plain, along]).double())
        factor = scale if weight is None else scale * weight
        plainly, alongside = (sums / count).to(mean.dtype).chunk(2)
        shape = (1, -1, *[1] * (slope.ndim - 2))
        # (slope - plainly) * factor - (input - mean) * scale * alongside * factor
        lean = (-factor * scale * alongside).view(shape)
        gradient = torch.addcmul((-factor * plainly).view(shape), slope, factor.view(shape))
        gradient = gradient.addcmul_(input - mean.view(shape), lean).to(input.dtype)
        return gradient, None if weight is None else along, plain if ctx.biased else None, None


def _over_processes(own: Tensor) -> Tensor:
    """The sums over all processes of a few numbers.

    Each sends its own to all. These are so few that the time is that of messages that wait for each
    other, of which gloo's all_reduce has several times as many.
    """
    received = own.new_empty(distributed.get_world_size(), len(own))
    distributed.all_to_all_single(received, own.expand_as(received).contiguous())
    return received.sum(0)
