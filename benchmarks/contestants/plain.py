"""A plain PyTorch loop as the distillation literature writes it, with the published formulas.

Images pass through PIL in a loader, networks have torch's defaults and answer all their features,
losses are written with probabilities, and meters read every step's numbers. On a GPU the loader
pins its memory, batches are copied without waiting, and cuDNN looks for its fastest convolutions.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from contestants.job import (
    DECAY,
    MOMENTUM,
    RATE,
    TEMPERATURE,
    Job,
    NotOfferedError,
    Pictures,
    Watch,
    networks,
    penultimate,
    regressor,
    timed,
)


def soft_targets(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Hinton et al., 2015: T^2 KL of the softened probabilities, mean over the batch."""
    divergence = functional.kl_div(
        functional.log_softmax(student / temperature, dim=1),
        functional.softmax(teacher / temperature, dim=1),
        reduction="sum",
    )
    return divergence * temperature**2 / len(student)


def decoupled(
    student: Tensor,
    teacher: Tensor,
    targets: Tensor,
    alpha: float,
    beta: float,
    temperature: float,
) -> Tensor:
    """Zhao et al., CVPR 2022, equation 7, with probabilities and masks."""
    own = torch.zeros_like(student).scatter_(1, targets[:, None], 1)
    scale = temperature**2 / len(student)
    binary = []
    for logits in (student, teacher):
        probabilities = functional.softmax(logits / temperature, dim=1)
        in_target = (probabilities * own).sum(1, keepdim=True)
        elsewhere = (probabilities * (1 - own)).sum(1, keepdim=True)
        binary.append(torch.cat([in_target, elsewhere], 1))
    target_part = functional.kl_div(binary[0].log(), binary[1], reduction="sum") * scale
    hidden = 1000 * own  # takes the target class out of the softmax
    other_part = functional.kl_div(
        functional.log_softmax(student / temperature - hidden, dim=1),
        functional.softmax(teacher / temperature - hidden, dim=1),
        reduction="sum",
    )
    return alpha * target_part + beta * other_part * scale


class Embedding(nn.Module):
    """A feature (B, S) to an embedding (B, D) of length 1."""

    def __init__(self, size: int, dimensions: int) -> None:
        super().__init__()
        self.linear = nn.Linear(size, dimensions)

    def forward(self, feature: Tensor) -> Tensor:
        """See the class."""
        embedded = self.linear(feature.flatten(1))
        return embedded / embedded.pow(2).sum(1, keepdim=True).sqrt()


class Contrast(nn.Module):
    """Tian et al., ICLR 2020: all 1 + K vectors of both memories are gathered for each sample."""

    def __init__(
        self,
        student_size: int,
        teacher_size: int,
        samples: int,
        dimensions: int = 128,
        temperature: float = 0.07,
        momentum: float = 0.5,
    ) -> None:
        super().__init__()
        self.embed_student = Embedding(student_size, dimensions)
        self.embed_teacher = Embedding(teacher_size, dimensions)
        bound = math.sqrt(3 / dimensions)
        self.register_buffer(
            "memory_student", torch.empty(samples, dimensions).uniform_(-bound, bound)
        )
        self.register_buffer(
            "memory_teacher", torch.empty(samples, dimensions).uniform_(-bound, bound)
        )
        self.register_buffer("normalizers", torch.full((2,), -1.0))
        self.temperature = temperature
        self.momentum = momentum

    def forward(self, student: Tensor, teacher: Tensor, rows: Tensor, contrast: Tensor) -> Tensor:
        """The loss of a batch; ``rows`` (B,), ``contrast`` (B, 1 + K), the positive first."""
        student, teacher = self.embed_student(student), self.embed_teacher(teacher)
        sides = ((student, self.memory_teacher), (teacher, self.memory_student))
        scores = []
        for number, (embedded, memory) in enumerate(sides):
            gathered = memory.index_select(0, contrast.flatten())
            gathered = gathered.view(*contrast.shape, -1)
            score = torch.exp(torch.bmm(gathered, embedded[:, :, None]) / self.temperature)
            if self.normalizers[number].item() < 0:
                self.normalizers[number] = score.detach().mean() * len(memory)
            scores.append(score / self.normalizers[number].item())
        with torch.no_grad():
            for embedded, memory in (
                (student, self.memory_student),
                (teacher, self.memory_teacher),
            ):
                mixed = memory.index_select(0, rows) * self.momentum
                mixed = mixed + embedded * (1 - self.momentum)
                memory.index_copy_(0, rows, mixed / mixed.pow(2).sum(1, keepdim=True).sqrt())
        return sum((self._against_noise(score) for score in scores), student.new_zeros(()))

    def _against_noise(self, score: Tensor) -> Tensor:
        count = score.shape[1] - 1
        noise = count / len(self.memory_student)
        positive, negatives = score[:, 0], score[:, 1:]
        told = torch.log(positive / (positive + noise + 1e-7))
        refused = torch.log(torch.full_like(negatives, noise) / (negatives + noise + 1e-7))
        return -(told.sum() + refused.sum()) / len(score)


class Indexed(Dataset[Any]):
    """Images with their numbers; for crd also with the numbers of what they are contrasted with."""

    def __init__(self, job: Job) -> None:
        self.pictures = Pictures(job)
        self.negatives = job.negatives if job.method == "crd" else 0
        targets = np.array(self.pictures.targets)
        self.others = (
            [np.flatnonzero(targets != label) for label in range(job.classes)]
            if self.negatives
            else []
        )

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Any:
        image, target = self.pictures[index]
        if not self.negatives:
            return image, target, index
        others = self.others[target]
        drawn = np.random.choice(others, self.negatives, replace=self.negatives > len(others))
        return image, target, index, np.concatenate([[index], drawn])


class Meter:
    """The running mean of a number."""

    def __init__(self) -> None:
        self.sum = self.count = self.mean = 0.0

    def update(self, value: float, count: int = 1) -> None:
        """Another value, that of so many images."""
        self.sum += value * count
        self.count += count
        self.mean = self.sum / self.count


def accuracies(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Top-1 and top-5, in percent."""
    with torch.no_grad():
        best = logits.topk(min(5, logits.shape[1]), 1).indices
        right = (best == targets[:, None]).float()
        return right[:, 0].mean() * 100, right.sum(1).mean() * 100


def parts(model: nn.Module, wanted: set[str], prefix: str = "") -> Iterator[tuple[nn.Module, bool]]:
    """The modules that run one after the other, and whether each one's output is wanted; a sequence
    within the sequence is taken apart where something in it is."""
    if not isinstance(model, nn.Sequential):
        raise NotOfferedError("takes networks apart that are a sequence of their stages only")
    for name, module in model.named_children():
        path = prefix + name
        if any(other.startswith(f"{path}.") for other in wanted):
            yield from parts(module, wanted, f"{path}.")
        else:
            yield module, path in wanted


def all_features(modules: list[tuple[nn.Module, bool]], images: Tensor) -> Any:
    """The features of all stages, the pooled one last, and the logits."""
    features = []
    for module, wanted in modules:
        images = module(images)
        if wanted:
            features.append(images)
    return features, images


def loop(job: Job, workers: int) -> Iterator[None]:
    """The training loop; yields after each step."""
    gpu = job.device == "cuda"
    torch.backends.cudnn.benchmark = gpu
    teacher, student, teacher_layers, student_layers = networks(job)
    modules, teacher_modules = (
        list(parts(model, {*layers.stages, str(layers.penultimate)}))
        for model, layers in ((student, student_layers), (teacher, teacher_layers))
    )
    learning = nn.ModuleList([student])
    if job.method == "fitnet":
        regress, *_ = regressor(job)
        learning.append(regress)
    elif job.method == "crd":
        contrast = Contrast(
            penultimate(student, student_layers), penultimate(teacher, teacher_layers), job.samples
        )
        learning.append(contrast)
    teacher.to(job.device)
    learning.to(job.device)
    optimizer = torch.optim.SGD(
        learning.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=DECAY
    )
    criterion = nn.CrossEntropyLoss()
    loader = DataLoader(
        Indexed(job), batch_size=job.batch, shuffle=True, num_workers=workers, pin_memory=gpu
    )
    learning.train()
    while True:
        batch_time, data_time, losses, top1, top5 = (Meter() for _ in range(5))
        end = time.time()
        for data in loader:
            data_time.update(time.time() - end)
            images, targets, rows, *contrasted = (
                part.to(job.device, non_blocking=True) for part in data
            )
            if job.method == "ce":
                logits = student(images)
                loss = criterion(logits, targets)
            else:
                features, logits = all_features(modules, images)
                with torch.no_grad():
                    wanted, wanted_logits = all_features(teacher_modules, images)
                    wanted = [feature.detach() for feature in wanted]
                label = criterion(logits, targets)
                if job.method == "kd":
                    term = soft_targets(logits, wanted_logits, TEMPERATURE)
                    loss = 0.1 * label + 0.9 * term
                elif job.method == "fitnet":
                    term = functional.mse_loss(regress(features[2]), wanted[2])
                    loss = label + 100 * term
                elif job.method == "crd":
                    term = contrast(features[-1], wanted[-1], rows, *contrasted)
                    loss = label + 0.8 * term
                elif job.method == "dkd":
                    term = decoupled(logits, wanted_logits, targets, 1.0, 8.0, TEMPERATURE)
                    loss = label + 1 / 20 * term  # the weight rises over 20 epochs
                else:
                    raise NotOfferedError(f"has no {job.method}")
            first, five = accuracies(logits, targets)
            losses.update(loss.item(), len(images))
            top1.update(first.item(), len(images))
            top5.update(five.item(), len(images))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            batch_time.update(time.time() - end)
            end = time.time()
            yield


def run(job: Job, watch: Watch) -> None:
    """Train until the watch has seen enough."""
    timed(job, watch, loop)
