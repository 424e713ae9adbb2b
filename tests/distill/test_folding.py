"""A folded teacher answers as before, its taps see what they saw, and what cannot be is left."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kdzoo
from kdzoo.distill.network import Network


def trained(module: nn.Module, shape: tuple[int, ...] = (1, 8, 8)) -> nn.Module:
    """With running statistics and affine parameters that an identity would not reproduce."""
    torch.manual_seed(0)
    for norm in module.modules():
        if isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)):
            if norm.affine:
                nn.init.uniform_(norm.weight, 0.5, 2)
                nn.init.normal_(norm.bias)
            if norm.running_mean is not None:
                nn.init.normal_(norm.running_mean)
                nn.init.uniform_(norm.running_var, 0.2, 3)
    return module


def distiller(teacher: nn.Module, *layers: Any) -> kdzoo.Distiller:
    student = nn.Sequential(nn.Flatten(), nn.Linear(64, 4)).to(next(teacher.parameters()).dtype)
    entries: list[Any] = ["kd"]
    for number, layer in enumerate(layers):
        pair = {"student": "0", "teacher": layer}
        entry = {"use": "sample-feature", "id": f"f{number}", "layers": pair}
        entries.append(entry)
    return kdzoo.Distiller(
        teacher,
        student,
        kdzoo.terms(entries),
        example=torch.rand(2, 1, 8, 8, dtype=next(teacher.parameters()).dtype),
        classes=list("abcd"),
        num_samples=10,
    )


class Block(nn.Module):
    """A residual block; ``leaky`` reads a convolution's output beside its batch norm."""

    def __init__(self, channels: int, leaky: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.leaky = leaky

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        z = self.bn(y)
        return torch.relu(x + z + y) if self.leaky else torch.relu(x + z)


def network(**blocks: nn.Module) -> nn.Sequential:
    made = nn.Sequential()
    made.add_module("stem", nn.Conv2d(1, 6, 3))
    made.add_module("norm", nn.BatchNorm2d(6, affine=False))
    for name, block in blocks.items():
        made.add_module(name, block)
    made.add_module("flat", nn.Flatten())
    made.add_module("hidden", nn.Linear(216, 12, bias=False))
    made.add_module("hidden_norm", nn.BatchNorm1d(12))
    made.add_module("head", nn.Linear(12, 4))
    return trained(made)


def paths(module: nn.Module) -> list[str]:
    return [name for name, _ in module.named_modules()]


def test_every_pair_is_folded_and_the_answers_stay() -> None:
    teacher = network(one=Block(6), two=Block(6)).double()
    made = distiller(teacher)
    images = torch.rand(16, 1, 8, 8, dtype=torch.float64)
    before, tree = teacher(images), paths(teacher)
    assert made.fold_teacher(images[:4]) == 4
    assert paths(teacher) == tree
    assert isinstance(teacher.norm, nn.Identity)
    torch.testing.assert_close(teacher(images), before, rtol=1e-12, atol=1e-12)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_a_tapped_layer_is_left_alone_and_sees_what_it_saw() -> None:
    teacher = network(one=Block(6), two=Block(6))
    tapped = ("stem", "one.conv", "two.bn", "hidden_norm", "two")
    made = distiller(teacher, *tapped)
    images = torch.rand(4, 1, 8, 8)
    assert made.fold_teacher(images) == 0
    teacher = network(one=Block(6), two=Block(6))
    made = distiller(teacher, "two.bn")
    before = made.teach(images).features["two.bn"].clone()
    assert made.fold_teacher(images) == 3
    torch.testing.assert_close(made.teach(images).features["two.bn"], before)


def test_somebody_elses_hooks_see_what_they_saw() -> None:
    teacher = network(one=Block(6))
    made = distiller(teacher)
    seen: list[Tensor] = []
    teacher.one.conv.register_forward_hook(lambda module, inputs, output: seen.append(output))
    teacher.norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    images = torch.rand(4, 1, 8, 8)
    teacher(images)
    before = [value.clone() for value in seen]
    assert made.fold_teacher(images) == 1
    teacher(images)
    torch.testing.assert_close(seen[-2:], before)


class ChangedInPlace(nn.Module):
    """What enters the batch norm is no longer what the convolution answered."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y += torch.relu(x - 1e3)  # nothing, on any image that is tried
        return self.bn(y)


class ReadElsewhere(nn.Module):
    """A little of it, under a large constant that all answers share."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.bn(y) + 0.01 * y


def test_a_teacher_in_train_mode_is_folded_in_eval_mode() -> None:
    teacher = network(one=Block(6))
    made = distiller(teacher)
    teacher.train()
    mean = teacher.norm.running_mean.clone()
    norm = teacher.norm
    assert made.fold_teacher(torch.rand(4, 1, 8, 8)) == 3
    assert torch.equal(norm.running_mean, mean)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 1)
        self.bn = nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(self.bn(self.conv(x))))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)
        self.b.weight = self.a.weight
        self.bn = nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.bn(self.a(x)))


class AsksItsNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)) * self.bn.weight[:, None, None]


@pytest.mark.parametrize(
    "odd",
    [
        Block(6, leaky=True),
        Twice(),
        Tied(),
        AsksItsNorm(),
        ChangedInPlace(),
        ReadElsewhere(),
        nn.Sequential(nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6, track_running_stats=False)),
        nn.Sequential(nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 1)),
        nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(6, 6, 1)), nn.BatchNorm2d(6)),
    ],
    ids=[
        "read-elsewhere",
        "twice",
        "tied",
        "asks",
        "changed",
        "read-a-little",
        "no-statistics",
        "norm-first",
        "parametrized",
    ],
)
def test_what_cannot_be_folded_is_left_and_the_rest_is_folded(odd: nn.Module) -> None:
    teacher = network(odd=copy.deepcopy(odd), two=Block(6))
    made = distiller(teacher)
    images = torch.rand(8, 1, 8, 8)
    before = teacher(images)
    assert made.fold_teacher(images[:4]) == 3
    torch.testing.assert_close(teacher(images), before, rtol=1e-4, atol=1e-4)
    assert any(isinstance(module, nn.BatchNorm2d) for module in teacher.modules())
    for name, module in teacher.odd.named_modules():
        assert type(module) is type(dict(odd.named_modules())[name])


class TakesApart(nn.Module):
    """As much published code does it; ``view`` knows one memory layout only."""

    def __init__(self, in_training_only: bool = False) -> None:
        super().__init__()
        self.in_training_only = in_training_only
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4 * 36, 5)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.conv(x)
        if self.in_training_only and not self.training:
            return self.head(features.flatten(1))
        return self.head(features.view(features.size(0), -1))


@pytest.mark.parametrize(
    ("model", "able"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 5)), True),
        (TakesApart(), False),
        (TakesApart(in_training_only=True), False),
    ],
    ids=["able", "view", "view-in-training"],
)
def test_channels_are_last_in_memory_where_the_model_can(model: nn.Module, able: bool) -> None:
    model.append(nn.BatchNorm1d(5).eval()) if isinstance(model, nn.Sequential) else None
    made = Network(model, (0.5,) * 3, (0.2,) * 3)
    modes = [module.training for module in made.modules()]
    images = torch.rand(4, 3, 8, 8)
    before = made(images)
    made.prefer_channels_last(images)
    assert made.channels_last is able
    assert [module.training for module in made.modules()] == modes
    seen: list[Tensor] = []
    next(m for m in made.modules() if isinstance(m, nn.Conv2d)).register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0])
    )
    for layout in (torch.contiguous_format, torch.channels_last):
        answer = made(images.contiguous(memory_format=layout))
        torch.testing.assert_close(answer, before, rtol=1e-4, atol=1e-5)
        answer.sum().backward()
    for entered in seen:
        assert entered.is_contiguous(memory_format=torch.channels_last) is able
        assert entered.is_contiguous() is not able
