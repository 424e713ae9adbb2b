"""How alike two networks see a class: linear CKA of the features that enter their classifiers.

With the usual (biased) estimate of HSIC independent features look alike as soon as there are more
of them than samples. So this is the debiased one: HSIC_1 of Song, Smola, Gretton, Bedo &
Borgwardt, "Feature Selection via Dependence Maximization" (JMLR 2012), equation 5, in the CKA of
Kornblith, Norouzi, Lee & Hinton, "Similarity of Neural Network Representations Revisited" (ICML
2019). It is about 0 for independent features, may be below, and is 1 for equal ones.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["ClassSimilarity"]

_DIMENSIONS = 64
_FEWEST = 4  # samples, without which the estimate does not exist


class ClassSimilarity(nn.Module):
    """Collects features class by class, batch after batch, and gives each class's CKA.

    Features wider than 64 go through a fixed random projection to 64 dimensions. With linear
    kernels HSIC_1 is a function of sums over samples alone, so none is kept, and the batches do not
    matter. Sums are in float64: the mean of the features may be large beside their spread.

    Args:
        num_classes: C.
        student: how wide the student's features are, taken flat.
        teacher: how wide the teacher's are.
    """

    sums: Tensor
    student_projection: Tensor | None
    teacher_projection: Tensor | None

    def __init__(self, num_classes: int, student: int, teacher: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        for name, width in (("student", student), ("teacher", teacher)):
            self.register_buffer(f"{name}_projection", _projection(width), persistent=False)
        self.widths = min(student, _DIMENSIONS), min(teacher, _DIMENSIONS)
        sums = torch.zeros(num_classes, sum(self._sizes()), dtype=torch.float64)
        self.register_buffer("sums", sums, persistent=False)

    @torch.no_grad()
    def record(self, targets: Tensor, student: Tensor, teacher: Tensor) -> None:
        """Add one batch: ``targets`` (B,), features (B, ...) of the student and of the teacher."""
        x = _flat(student, self.student_projection)
        y = _flat(teacher, self.teacher_projection)
        a, b = x.square().sum(1, keepdim=True), y.square().sum(1, keepdim=True)
        columns = [torch.ones_like(a), a, b, a * a, b * b, a * b]
        columns += [x, y, a * x, b * y, b * x, a * y]
        columns += [
            (one[:, :, None] * other[:, None, :]).flatten(1)
            for one, other in ((x, x), (y, y), (x, y))
        ]
        rows = torch.cat(columns, 1)
        if rows.is_cuda:  # where index_add_ adds up in another order each time
            self.sums += functional.one_hot(targets, self.num_classes).double().T @ rows
        else:
            self.sums.index_add_(0, targets, rows)

    def take(self) -> Tensor:
        """(C,), the CKA of each class since the last call, NaN below four samples."""
        p, q = self.widths
        n, a, b, aa, bb, ab, *rest = torch.split(self.sums, self._sizes(), 1)
        x, y, ax, by, bx, ay, xx, yy, xy = rest
        both = _hsic(n, (a, x), (b, y), ab, (bx, ay), xy.view(-1, p, q))
        ones = _hsic(n, (a, x), (a, x), aa, (ax, ax), xx.view(-1, p, p))
        others = _hsic(n, (b, y), (b, y), bb, (by, by), yy.view(-1, q, q))
        known = (n[:, 0] >= _FEWEST) & (ones > 0) & (others > 0)
        similarity = torch.where(known, both / (ones * others).clamp_min(1e-300).sqrt(), math.nan)
        self.sums.zero_()
        return similarity

    def get_extra_state(self) -> Tensor | None:
        """The sums, for the state dict; ``None`` at the end of an epoch, when all of them are 0: of
        a thousand classes they take 100 MB."""
        return self.sums if bool(self.sums.any()) else None

    def set_extra_state(self, state: Tensor | None) -> None:
        """Take back what :meth:`get_extra_state` gave."""
        self.sums.zero_()
        if state is not None:
            self.sums += state.to(self.sums.device)

    def _sizes(self) -> list[int]:
        p, q = self.widths
        return [1] * 6 + [p, q, p, q, p, q, p * p, q * q, p * q]


def _hsic(
    n: Tensor,
    one: tuple[Tensor, Tensor],
    other: tuple[Tensor, Tensor],
    norms: Tensor,
    mixed: tuple[Tensor, Tensor],
    product: Tensor,
) -> Tensor:
    """(C,), HSIC_1 of linear kernels of x and y out of sums over each class's samples.

    Args:
        n: (C, 1), how many samples.
        one: the sums of |x|^2 (C, 1) and of x (C, p).
        other: the same of y (C, q).
        norms: (C, 1), the sum of |x|^2 |y|^2.
        mixed: the sums of |y|^2 x (C, p) and of |x|^2 y (C, q).
        product: (C, p, q), the sum of x y^T.
    """
    (a, x), (b, y) = one, other
    trace = product.square().sum((1, 2)) - norms[:, 0]
    totals = (x.square().sum(1) - a[:, 0]) * (y.square().sum(1) - b[:, 0])
    rows = (
        torch.einsum("cp,cpq,cq->c", x, product, y)
        - (x * mixed[0]).sum(1)
        - (y * mixed[1]).sum(1)
        + norms[:, 0]
    )
    m = n[:, 0].clamp_min(_FEWEST)
    return (trace + totals / ((m - 1) * (m - 2)) - 2 / (m - 2) * rows) / (m * (m - 3))


def _projection(width: int) -> Tensor | None:
    if width <= _DIMENSIONS:
        return None
    generator = torch.Generator().manual_seed(width)
    drawn = torch.randn(width, _DIMENSIONS, generator=generator, dtype=torch.float64)
    scaled: Tensor = drawn / _DIMENSIONS**0.5
    return scaled


def _flat(features: Tensor, projection: Tensor | None) -> Tensor:
    rows = features.flatten(1).double()
    return rows if projection is None else rows @ projection
