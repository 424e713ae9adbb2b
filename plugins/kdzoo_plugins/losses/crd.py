"""Contrastive representation distillation, with its memory banks."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

import kdzoo
from kdzoo_plugins.losses._precision import at_least_single

__all__ = ["CRD", "ContrastMemory"]

_EPSILON = 1e-7


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
        temperature: tau; divides the inner products.
        momentum: how much of a sample's old memory is kept when a new embedding enters.

    Attributes:
        embed_student: feature (B, S) to embedding (B, D), normalized afterwards.
        embed_teacher: the same for the teacher.
        memory_student: (N, D); constants in the gradient.
        memory_teacher: (N, D).
        normalizers: (2,), of the student's scores and of the teacher's: the mean of exp(score) in
            the first training step, times N, and constant from then on; 0 before.
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
        self.embed_student = nn.Linear(student_dimensions, dimensions)
        self.embed_teacher = nn.Linear(teacher_dimensions, dimensions)
        self.temperature = temperature
        self.momentum = momentum
        for name in ("memory_student", "memory_teacher"):
            bank = torch.rand(num_samples, dimensions) * 2 - 1  # of length 1 on average
            self.register_buffer(name, bank * math.sqrt(3 / dimensions))
        self.register_buffer("normalizers", torch.zeros(2))

    def forward(
        self, student_feature: Tensor, teacher_feature: Tensor, rows: Tensor, contrast: Tensor
    ) -> Tensor:
        """One value a sample, (B,); their mean is the published loss, both directions added.

        In train mode the memories take the batch in afterwards, and the first call sets the
        normalizers; in eval mode nothing changes.

        Args:
            student_feature: (B, S).
            teacher_feature: (B, T).
            rows: (B,), where the memories keep these samples, in [0, N).
            contrast: (B, 1 + K), the rows that each sample is compared with, the positive first.
        """
        # Under autocast the inner products would lose what the small temperature then magnifies.
        with torch.autocast(student_feature.device.type, enabled=False):
            student = _embedded(self.embed_student, student_feature)
            teacher = _embedded(self.embed_teacher, teacher_feature)
            # Each network's embedding against the other's memory.
            sides = ((student, self.memory_teacher), (teacher, self.memory_student))
            similarities = [self._similarities(*side, contrast) for side in sides]
            means = torch.stack([side.exp().mean(1) for side in similarities], 1)
            entering = [rows, student.detach(), teacher.detach(), means]
            if self.training:
                entering = _of_all_processes(entering)
            normalizers = self._normalizers(entering.pop())
            loss = sum(
                self._contrasted(*side, contrast, similarity, normalizer)
                for side, similarity, normalizer in zip(
                    sides, similarities, normalizers, strict=True
                )
            )
            if self.training:
                self._remember(*entering)
                self.normalizers.copy_(normalizers)
        assert isinstance(loss, Tensor)
        return loss

    @torch.no_grad()
    def _similarities(self, embedded: Tensor, memory: Tensor, contrast: Tensor) -> Tensor:
        """(B, 1 + K), the inner products over tau.

        One product with the whole bank, then picked from: gathering 1 + K vectors a sample would
        move far more memory for the same numbers.
        """
        return (embedded @ memory.T).gather(1, contrast) / self.temperature

    def _normalizers(self, means: Tensor) -> Tensor:
        """(2,), those of the first step, of which ``means`` (B, 2) are the mean exp(similarities);
        chosen on the device, so that nothing waits for it."""
        fresh = means.mean(0) * len(self.memory_student)
        return torch.where(self.normalizers > 0, self.normalizers, fresh)

    def _contrasted(
        self,
        embedded: Tensor,
        memory: Tensor,
        contrast: Tensor,
        similarities: Tensor,
        normalizer: Tensor,
    ) -> Tensor:
        """(B,), noise-contrastive estimation with K noise samples for each positive.

        With P = exp(similarity) / normalizer and the noise c = K / N, the positive costs
        -log(P / (P + c + eps)) and a negative -log(c / (P + c + eps)); here by the log-odds of P
        against the noise. The gradient is taken at once and hung onto the value: by the time of
        the backward pass the memory has changed, and keeping a copy of it would cost more.
        """
        noise = (contrast.shape[1] - 1) / len(memory)
        odds = similarities - (normalizer * (noise + _EPSILON)).log()
        against = odds[:, 1:]
        rows = -functional.logsigmoid(odds[:, 0]) - functional.logsigmoid(-against).sum(1)
        rows = rows + against.shape[1] * math.log1p(_EPSILON / noise)
        if not embedded.requires_grad:
            return rows
        slopes = odds.sigmoid()
        slopes[:, 0] -= 1
        of_bank = slopes.new_zeros(len(slopes), len(memory)).scatter_add_(1, contrast, slopes)
        gradient = of_bank @ memory / self.temperature
        return rows + ((embedded - embedded.detach()) * gradient).sum(1)

    @torch.no_grad()
    def _remember(self, rows: Tensor, student: Tensor, teacher: Tensor) -> None:
        """Mix new embeddings into the memories."""
        for memory, new in ((self.memory_student, student), (self.memory_teacher, teacher)):
            mixed = self.momentum * memory[rows] + (1 - self.momentum) * new
            memory[rows] = functional.normalize(mixed)


class CRD(kdzoo.Loss):
    """Contrast: the student's embedding of an image shall be near the teacher's of the same image,
    and far from the teacher's of images of other classes; and the other way round.

    Tian, Krishnan & Isola, "Contrastive Representation Distillation" (ICLR 2020), equations 9 to
    19. On CIFAR-100 the literature weights it 0.8 beside the whole cross entropy.

    Attributes:
        contrast: the embeddings, memories and normalizers.
        row: (num_samples,), where the memories keep each sample: class after class, so that a
            class's rows lie together; -1 for those that are not trained on.
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
        temperature: float = kdzoo.Field(
            0.07,
            ge=0.02,  # exp(1 / tau) must be a number in single precision
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
        self.most = int(count.max())
        fewest_others = total - self.most
        if not fewest_others:
            raise kdzoo.SpecError("needs images of two classes at least to contrast")
        self.plenty = fewest_others >= self.params.negatives
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
        rows = self.row[batch.indices]
        if (
            rows.device.type == "cpu"
            and not torch.compiler.is_compiling()
            and bool((rows < 0).any())
        ):
            raise ValueError("an image is shown that the targets say is not trained on")
        loss: Tensor = self.contrast(
            student.features[pair.student].flatten(1),
            teacher.features[pair.teacher].flatten(1),
            rows,
            torch.cat([self.positives(rows, batch.targets), self.negatives(batch.targets)], 1),
        )
        return loss

    def positives(self, rows: Tensor, targets: Tensor) -> Tensor:
        """(B, 1), the row of each sample's positive."""
        if self.params.mode == "exact":
            return rows[:, None]
        which = (torch.rand(len(targets), device=targets.device) * self.count[targets]).long()
        return (self.start[targets] + which)[:, None]

    def negatives(self, targets: Tensor) -> Tensor:
        """(B, K), rows of other classes; each once, where there are enough of them."""
        once = self._each_once(targets)
        if self.plenty:
            return once
        wanted = self.params.negatives
        count, start = self.count[targets, None], self.start[targets, None]
        others = len(self.contrast.memory_student) - count
        drawn = (torch.rand(len(targets), wanted, device=targets.device) * others).long()
        drawn += count * (drawn >= start)  # step over the class's own rows
        return torch.where(others >= wanted, once, drawn)

    def _each_once(self, targets: Tensor) -> Tensor:
        """(B, K): each sample's negatives are a random stretch of one random order of all rows,
        without those of its own class. Each draw alone is uniform, as if it had its own order."""
        wanted, total = self.params.negatives, len(self.contrast.memory_student)
        stretch = min(wanted + self.most, total)
        device = targets.device
        order = torch.randperm(total, device=device)
        begin = torch.randint(total, (len(targets),), device=device)
        drawn = torch.cat([order, order[: stretch - 1]]).unfold(0, stretch, 1)[begin]
        first = self.start[targets, None]
        own = (drawn >= first) & (drawn < first + self.count[targets, None])
        place = (~own).cumsum(1) - 1
        place = torch.where(own, wanted, place.clamp(max=wanted))  # the last place is thrown away
        kept = drawn.new_zeros(len(drawn), wanted + 1).scatter_(1, place, drawn)
        return kept[:, :wanted]


def _embedded(embed: nn.Module, feature: Tensor) -> Tensor:
    """(B, D), of length 1."""
    embedded: Tensor = embed(at_least_single(feature))
    return functional.normalize(embedded)


def _of_all_processes(parts: list[Tensor]) -> list[Tensor]:
    """The rows (B, ...) of all processes, one after the other; in one process those given."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return parts
    own = torch.tensor([len(parts[0])], device=parts[0].device)
    counts = [torch.zeros_like(own) for _ in range(distributed.get_world_size())]
    distributed.all_gather(counts, own)
    sizes = [int(count) for count in counts]  # the last batches may differ
    gathered = []
    for part in parts:
        padded = torch.cat([part, part.new_zeros(max(sizes) - len(part), *part.shape[1:])])
        others = [torch.zeros_like(padded) for _ in sizes]
        distributed.all_gather(others, padded)
        gathered.append(torch.cat([o[:size] for o, size in zip(others, sizes, strict=True)]))
    return gathered


@kdzoo.hookimpl
def kdzoo_losses() -> list[type[kdzoo.Loss]]:
    """See :mod:`kdzoo.extend.hookspecs`."""
    return [CRD]
