"""Contrastive representation distillation, with its memory banks."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

import kdzoo
from kdzoo_plugins.losses._precision import at_least_single

__all__ = ["CRD", "ContrastMemory"]

_EPSILON = 1e-7
_LEAST_TEMPERATURE = 0.02
_LOTS = 1 << 32


@torch.library.custom_op(
    "kdzoo_crd::taken", mutates_args=(), schema="(Tensor memory, Tensor rows) -> Tensor"
)
def _taken(memory: Tensor, rows: Tensor) -> Tensor:
    """Rows of a memory. A compiled backward pass would look them up again rather than keep them,
    and the memory has changed by then; it cannot see into an operation of ours."""
    return memory.index_select(0, rows)


@_taken.register_fake
def _(memory: Tensor, rows: Tensor) -> Tensor:
    return memory.new_empty(len(rows), memory.shape[1])


class ContrastMemory(nn.Module):
    """Both networks' embeddings of all N training samples, and the loss that contrasts with them.

    Tian, Krishnan & Isola, "Contrastive Representation Distillation" (ICLR 2020), equations 9 to
    19, with the memory of Wu et al. (CVPR 2018). Whatever decides the answer can be set from
    outside.

    Args:
        student_dimensions: the size of the student's feature.
        teacher_dimensions: the size of the teacher's.
        num_samples: N.
        dimensions: D, the size of the embeddings.
        temperature: tau, finite and 0.02 at least; divides the inner products.
        momentum: how much of a sample's old memory is kept when a new embedding enters.

    Attributes:
        embed_student: feature (B, S) to embedding (B, D), normalized afterwards.
        embed_teacher: the same for the teacher.
        memory_student: (N, D); constants in the gradient.
        memory_teacher: (N, D).
        normalizers: (2,), of the student's scores and of the teacher's: the mean of exp(score) in
            the first training step, times N, and constant from then on; 0 before.

    Raises:
        ValueError: the temperature or the momentum is out of its range, or there are no samples.
    """

    memory_student: Tensor
    memory_teacher: Tensor
    normalizers: Tensor

    def __init__(
        self,
        student_dimensions: int,
        teacher_dimensions: int,
        num_samples: int,
        dimensions: int = 128,
        temperature: float = 0.07,
        momentum: float = 0.5,
    ) -> None:
        super().__init__()
        if not _LEAST_TEMPERATURE <= temperature < math.inf:
            raise ValueError(
                f"the temperature is {temperature}; it must be finite, and below "
                f"{_LEAST_TEMPERATURE} exp(1 / tau) is no number in single precision"
            )
        if not 0 <= momentum <= 1:
            raise ValueError(f"the momentum is {momentum}; it must be from 0 to 1")
        if num_samples < 1:
            raise ValueError(f"num_samples is {num_samples}; it must be 1 or more")
        self.embed_student = nn.Linear(student_dimensions, dimensions)
        self.embed_teacher = nn.Linear(teacher_dimensions, dimensions)
        self._sizes = student_dimensions, teacher_dimensions
        self.temperature = temperature
        self.momentum = momentum
        for name in ("memory_student", "memory_teacher"):
            # Of length 1 on average. In place: a copy of a large bank is a large one.
            bank = torch.rand(num_samples, dimensions).mul_(2).sub_(1)
            self.register_buffer(name, bank.mul_(math.sqrt(3 / dimensions)))
        self.register_buffer("normalizers", torch.zeros(2))

    def forward(
        self, student_feature: Tensor, teacher_feature: Tensor, rows: Tensor, contrast: Tensor
    ) -> Tensor:
        """One value per sample, (B,); their mean is the published loss, both directions added.

        In train mode the memories take the batch in afterwards, and the first call sets the
        normalizers; in eval mode nothing changes.

        Args:
            student_feature: (B, S).
            teacher_feature: (B, T).
            rows: (B,), where the memories keep these samples, in [0, N).
            contrast: (B, 1 + K), the rows that each sample is compared with, the positive first;
                K is 1 at least.

        Raises:
            ValueError: the shapes do not fit together; or rows, on the CPU, are not in [0, N).
        """
        self._check_rows(rows=rows, contrast=contrast)
        if contrast.ndim != 2 or contrast.shape[1] < 2:
            raise ValueError(
                f"contrast is {tuple(contrast.shape)}; it must be (B, 1 + K), K 1 at least"
            )
        block, place = torch.unique(contrast[:, 1:], return_inverse=True)
        counts = _counted(place, student_feature.new_zeros(len(contrast), len(block)))
        return self.contrasted(
            student_feature, teacher_feature, rows, contrast[:, 0], block, counts
        )

    def contrasted(
        self,
        student_feature: Tensor,
        teacher_feature: Tensor,
        rows: Tensor,
        positives: Tensor,
        block: Tensor,
        counts: Tensor,
    ) -> Tensor:
        """The same, for samples whose negatives lie in one block of rows: then one product gives
        all scores, and a negative's embedding is fetched once and not for each sample.

        Args:
            student_feature: (B, S).
            teacher_feature: (B, T).
            rows: (B,).
            positives: (B,), the row of each sample's positive.
            block: (M,), rows.
            counts: (B, M), how often each row of the block is a negative of each sample; K times
                in all, for every sample.

        Raises:
            ValueError: the shapes do not fit together.
        """
        batch = len(rows)
        for name, tensor, shape in (
            ("the student's feature", student_feature, (batch, self._sizes[0])),
            ("the teacher's feature", teacher_feature, (batch, self._sizes[1])),
            ("rows", rows, (batch,)),
            ("positives", positives, (batch,)),
            ("counts", counts, (batch, len(block))),
        ):
            if tensor.shape != shape:
                raise ValueError(f"{name} is {tuple(tensor.shape)}; it must be {shape}")
        # Used alone under autocast, its products would lose what the small temperature magnifies.
        with torch.autocast(student_feature.device.type, enabled=False):
            student = _embedded(self.embed_student, student_feature)
            teacher = _embedded(self.embed_teacher, teacher_feature)
            negatives = counts[0].sum()
            # Each network's embedding against the other's memory.
            sides = [
                self._similarities(embedded, memory, positives, block)
                for embedded, memory in (
                    (student, self.memory_teacher),
                    (teacher, self.memory_student),
                )
            ]
            with torch.no_grad():
                sums = [told.exp() + (counts * refused.exp()).sum(1) for told, refused in sides]
                means = torch.stack(sums, 1) / (1 + negatives)
            entering = [rows, student.detach(), teacher.detach(), means]
            if self.training:
                entering = kdzoo.gathered(entering)
            normalizers = self._normalizers(entering.pop())
            noise = negatives / len(self.memory_student)
            loss = sum(
                _against_noise(*side, counts, normalizer, noise)
                for side, normalizer in zip(sides, normalizers, strict=True)
            )
            if self.training:
                self._remember(*entering)
                self.normalizers.copy_(normalizers)
        assert isinstance(loss, Tensor)
        return loss

    def _check_rows(self, **rows: Tensor) -> None:
        """A negative one would be counted from the end without a word. No GPU is waited for."""
        for name, tensor in rows.items():
            if tensor.dtype != torch.int64:
                raise ValueError(f"{name} is {tensor.dtype}; it must be int64")
            if tensor.device.type != "cpu" or not tensor.numel() or torch.compiler.is_compiling():
                continue
            low, high = int(tensor.min()), int(tensor.max())
            if low < 0 or high >= len(self.memory_student):
                raise ValueError(
                    f"{name} has {low} to {high}; they must be rows of the memories, 0 to "
                    f"{len(self.memory_student) - 1}"
                )

    def _similarities(
        self, embedded: Tensor, memory: Tensor, positives: Tensor, block: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The inner products over tau, with the positives (B,) and with the block (B, M). The
        vectors are copies: the memory may change before the backward pass."""
        embedded = embedded / self.temperature
        return (embedded * _taken(memory, positives)).sum(1), embedded @ _taken(memory, block).T

    def _normalizers(self, means: Tensor) -> Tensor:
        """(2,), those of the first step, of which ``means`` (B, 2) are the mean exp(similarities);
        chosen on the device, so that nothing waits for it."""
        fresh = means.mean(0) * len(self.memory_student)
        return torch.where(self.normalizers > 0, self.normalizers, fresh)

    @torch.no_grad()
    def _remember(self, rows: Tensor, student: Tensor, teacher: Tensor) -> None:
        """Mix new embeddings into the memories."""
        for memory, new in ((self.memory_student, student), (self.memory_teacher, teacher)):
            mixed = self.momentum * memory[rows] + (1 - self.momentum) * new
            memory[rows] = functional.normalize(mixed)


class CRD(kdzoo.Loss):
    """Contrast: the student's embedding of an image shall be near the teacher's of the same image,
    and far from the teacher's of images of other classes; and the other way round.

    ``-log(P(u, v) / (P(u, v) + c)) - sum_k log(c / (P(u, v_k) + c))`` with
    ``P(u, v) = exp(u . v / tau) / Z`` and ``c = K / N``, for the student's embedding u of an image,
    the remembered embedding v of the teacher's for its positive and v_k for K negatives out of N
    images; added to it the same with the two networks exchanged. Embeddings have length 1. Z is N
    times the mean of exp(u . v / tau) over the first step.

    Tian, Krishnan & Isola, "Contrastive Representation Distillation" (ICLR 2020), equations 9 to
    19. On CIFAR-100 the literature weights it 0.8 beside the whole cross entropy.

    Attributes:
        contrast: the embeddings, memories and normalizers.
        row: (num_samples,), where the memories keep each sample: class after class, so that a
            class's rows lie together; -1 for those that are not trained on.
        label: (N,), the class of each row of the memories.
    """

    name = "crd"
    default_weight = 0.8
    default_layers = (kdzoo.LayerPair(student="penultimate", teacher="penultimate"),)
    needs_indices = True
    needs_targets = True
    invariances = frozenset({"duplication", "permutation"})

    class Params(kdzoo.Params):
        """What can be set."""

        dimensions: int = kdzoo.Field(128, ge=1, description="The size of the embeddings.")
        negatives: int = kdzoo.Field(
            16384, ge=1, description="K: images of other classes that each image is compared with."
        )
        temperature: Annotated[float, kdzoo.Range(low=0.03, high=0.3, log=True)] = kdzoo.Field(
            0.07,
            ge=_LEAST_TEMPERATURE,
            description="tau: divides the inner products of embeddings.",
        )
        momentum: float = kdzoo.Field(
            0.5, ge=0, lt=1, description="How much of a remembered embedding is kept each time."
        )
        mode: Literal["exact", "relax"] = kdzoo.Field(
            "exact",
            description="The positive: the image itself (exact), or a random one of its class "
            "(relax).",
        )

    row: Tensor
    label: Tensor
    start: Tensor
    count: Tensor

    def setup(
        self,
        student_shapes: kdzoo.Shapes,
        teacher_shapes: kdzoo.Shapes,
        num_classes: int,
        num_samples: int,
    ) -> None:
        """See :meth:`kdzoo.Loss.setup`."""
        if len(self.layers) != 1:
            raise kdzoo.SpecError(f"contrasts one pair of layers, not {len(self.layers)}")
        (pair,) = self.layers
        targets = self.targets
        assert targets is not None  # the engine refuses a loss whose needs it cannot meet
        order = targets.argsort(stable=True)[int((targets < 0).sum()) :]
        total = len(order)
        row = torch.full((num_samples,), -1).index_copy(0, order, torch.arange(total))
        count = targets[order].bincount(minlength=num_classes)
        # Derived from the data, and so no part of the state.
        for name, value in (("row", row), ("start", count.cumsum(0) - count), ("count", count)):
            self.register_buffer(name, value, persistent=False)
        self.register_buffer("label", targets[order], persistent=False)
        self.most = int(count.max())
        fewest_others = total - self.most
        if not fewest_others:
            raise kdzoo.SpecError("needs images of two classes at least to contrast")
        self.plenty = fewest_others >= self.params.negatives
        self.block_size = min(total, self.params.negatives + self.most)
        self.contrast = ContrastMemory(
            math.prod(student_shapes.features[pair.student]),
            math.prod(teacher_shapes.features[pair.teacher]),
            total,
            self.params.dimensions,
            self.params.temperature,
            self.params.momentum,
        )

    def forward(self, student: kdzoo.Outputs, teacher: kdzoo.Outputs, batch: kdzoo.Batch) -> Tensor:
        """See :meth:`kdzoo.Loss.forward`."""
        (pair,) = self.layers
        if batch.indices.device.type == "cpu" and not torch.compiler.is_compiling():
            self._check(batch)
        rows = self.row[batch.indices]
        return self.contrast.contrasted(
            student.features[pair.student].flatten(1),
            teacher.features[pair.teacher].flatten(1),
            rows,
            self.positives(rows, batch.targets),
            *self.negatives(batch.targets),
        )

    def _check(self, batch: kdzoo.Batch) -> None:
        """Rows that are not meant would be remembered without a word."""
        low, high = int(batch.indices.min()), int(batch.indices.max())
        if low < 0 or high >= len(self.row):
            raise kdzoo.SpecError(
                f"the indices are {low} to {high}; they must be rows of the training set, 0 to "
                f"{len(self.row) - 1}"
            )
        rows = self.row[batch.indices]
        if bool((rows < 0).any()):
            raise kdzoo.SpecError("an image is shown that the targets say is not trained on")
        if bool((self.label[rows] != batch.targets).any()):
            raise kdzoo.SpecError(
                "the batch's targets are not those of its rows: the indices must be rows of the "
                "training set whose `targets` were given"
            )

    def positives(self, rows: Tensor, targets: Tensor) -> Tensor:
        """(B,), the row of each sample's positive."""
        if self.params.mode == "exact":
            return rows
        # A function of the row, so that a sample's does not depend on its place in the batch.
        lots = _hashed(rows, torch.randint(_LOTS, (1,), device=targets.device))
        return self.start[targets] + lots * self.count[targets] // _LOTS

    def negatives(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """A random block of rows (M,), and how often each is a sample's negative (B, M).

        A sample's negatives are the first K rows of the block that are not of its class: drawn
        uniformly and each once, where there are so many; else any of them, several times. Samples
        of one class share them all: no value depends on a sample's place in the batch.
        """
        wanted = self.params.negatives
        block = _different(self.block_size, len(self.label), targets.device)
        others = self.label[block] != targets[:, None]
        once = others & (others.cumsum(1, dtype=torch.int32) <= wanted)
        counts = once.to(self.contrast.memory_student.dtype)
        if not self.plenty:
            known = others.sum(1, keepdim=True)
            lots = (torch.rand(wanted, device=targets.device) * known).long()
            again = torch.searchsorted(others.cumsum(1), 1 + lots)
            counts = torch.where(known >= wanted, counts, _counted(again, torch.zeros_like(counts)))
        return block, counts


def _different(count: int, total: int, device: torch.device) -> Tensor:
    """(count,), different rows below ``total`` in random order, without touching all of them where
    there are many.

    What comes first among independent draws, each row when it comes for the first time, is such an
    order. The number of draws is fixed, so that nothing waits for the device. With a probability
    below 1e-15 it is too small, and a row comes twice.
    """
    if total < 8 * count:  # measured: then an order of all is drawn as fast
        return torch.randperm(total, device=device)[:count]
    # Draws until so many are different: the mean, and ten standard deviations.
    share = count / total
    mean, variance = -math.log1p(-share), share / (1 - share) + math.log1p(-share)
    number = math.ceil(total * mean + 10 * math.sqrt(total * variance)) + 16
    draws = torch.randint(total, (number,), device=device)
    ordered, place = draws.sort(stable=True)
    fresh = functional.pad(ordered[1:] != ordered[:-1], (1, 0), value=True)
    first = torch.empty_like(fresh).scatter(0, place, fresh)
    rank = first.cumsum(0) - 1
    rank = torch.where(first & (rank < count), rank, count)  # all others at the end, cut off
    return draws[: count + 1].scatter(0, rank, draws)[:count]


def _hashed(rows: Tensor, key: Tensor) -> Tensor:
    """(B,), a number for each row, another one for each ``key`` (1,); keys and numbers are in
    [0, 2**32)."""
    return _mixed(_mixed(rows + 0x9E3779B9) ^ key)


def _mixed(x: Tensor) -> Tensor:
    """A 32-bit avalanche in the low half of int64, one to one."""
    for _ in range(2):
        x = ((x ^ (x >> 16)) * 0x45D9F3B) & (_LOTS - 1)
    return x ^ (x >> 16)


def _counted(places: Tensor, zeros: Tensor) -> Tensor:
    """(B, M): how often each of M places stands in a row of ``places`` (B, K)."""
    return zeros.scatter_add_(1, places, zeros.new_ones(()).expand_as(places))


def _against_noise(
    told: Tensor, refused: Tensor, counts: Tensor, normalizer: Tensor, noise: Tensor
) -> Tensor:
    """(B,), noise-contrastive estimation with K noise samples for each positive.

    With P = exp(similarity) / normalizer and the noise c = K / N, the positive costs
    -log(P / (P + c + eps)) and a negative -log(c / (P + c + eps)); here by the log-odds of P
    against the noise.

    Args:
        told: (B,), the similarities of the positives.
        refused: (B, M), those of the block.
        counts: (B, M), how often each is a negative.
        normalizer: that of the side.
        noise: c.
    """
    shift = (normalizer * (noise + _EPSILON)).log()
    softplus = functional.softplus
    costs = softplus(shift - told) + (counts * softplus(refused - shift)).sum(1)
    return costs + counts[0].sum() * (_EPSILON / noise).log1p()


def _embedded(embed: nn.Module, feature: Tensor) -> Tensor:
    """(B, D), of length 1."""
    embedded: Tensor = embed(at_least_single(feature))
    return functional.normalize(embedded)


@kdzoo.hookimpl
def kdzoo_losses() -> list[type[kdzoo.Loss]]:
    """See :mod:`kdzoo.extend.hookspecs`."""
    return [CRD]
