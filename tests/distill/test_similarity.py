"""The debiased CKA, against its definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kdzoo.distill.similarity import ClassSimilarity


def by_definition(x: Tensor, y: Tensor) -> float:
    """Song et al. (2012), equation 5, with whole Gram matrices."""

    def hsic(one: Tensor, other: Tensor) -> Tensor:
        n = len(one)
        k, l = (m @ m.T * (1 - torch.eye(n, dtype=m.dtype)) for m in (one, other))  # noqa: E741
        ones = torch.ones(n, dtype=k.dtype)
        trace = torch.trace(k @ l)
        totals = (ones @ k @ ones) * (ones @ l @ ones) / ((n - 1) * (n - 2))
        rows = 2 / (n - 2) * (ones @ k @ l @ ones)
        return (trace + totals - rows) / (n * (n - 3))

    return float(hsic(x, y) / (hsic(x, x) * hsic(y, y)).sqrt())


def test_it_is_the_published_estimate_however_the_batches_fall() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(150, 6, generator=draw, dtype=torch.float64) + 5
    y = x @ torch.randn(6, 9, generator=draw, dtype=torch.float64)
    y += torch.randn(150, 9, generator=draw, dtype=torch.float64)
    targets = torch.randint(3, (150,), generator=draw)
    similarity = ClassSimilarity(4, 6, 9)
    for rows in torch.split(torch.arange(150), 37):
        similarity.record(targets[rows], x[rows], y[rows])
    taken = similarity.take()
    for label in range(3):
        rows = targets == label
        assert float(taken[label]) == pytest.approx(by_definition(x[rows], y[rows]))
    assert taken[3].isnan()
    assert similarity.take().isnan().all()  # begun anew


def test_independent_features_are_not_alike_and_equal_ones_are() -> None:
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 2000, 100, generator=draw)
    targets = torch.arange(2000) % 40  # 50 a class, in 64 dimensions after the projection
    similarity = ClassSimilarity(40, 100, 100)
    similarity.record(targets, x, y)
    assert abs(float(similarity.take().mean())) < 0.03
    similarity.record(targets, x, x)
    torch.testing.assert_close(similarity.take(), torch.ones(40, dtype=torch.float64))
