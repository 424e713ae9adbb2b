"""Random numbers as a pure function of integers: the same on every device, in every order.

An integer hash of (seed, epoch, index, draw) replaces a generator's state wherever a draw must
not depend on what was drawn before: augmentation, the validation split.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["hashed", "hashed_below"]

_MASK = 0xFFFFFFFF


def hashed(seed: int, indices: Tensor, *keys: int) -> Tensor:
    """Uniform 32-bit numbers, one an index.

    Args:
        seed: any integer >= 0, up to 64 bits.
        indices: (N,), int64.
        keys: further integers >= 0 that tell the draws apart.

    Returns:
        (N,), int64 in [0, 2**32).
    """
    state = _mix(torch.full_like(indices, seed & _MASK))
    state = _mix(state ^ ((seed >> 32) & _MASK))
    for key in keys:
        state = _mix(state ^ (key & _MASK))
    return _mix(state ^ _mix(indices & _MASK) ^ _mix((indices >> 32) + 0x9E3779B9))


def hashed_below(bound: int, seed: int, indices: Tensor, *keys: int) -> Tensor:
    """Uniform integers in [0, bound), one an index; ``bound`` up to 2**31."""
    return (hashed(seed, indices, *keys) * bound) >> 32


def _mix(x: Tensor) -> Tensor:
    """A 32-bit avalanche (the finalizer of MurmurHash3) in the low half of int64."""
    x = (x + 0x6D2B79F5) & _MASK
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & _MASK
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & _MASK
    return x ^ (x >> 16)
