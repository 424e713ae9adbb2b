"""The adapters: what they compute, and what they say of shapes that they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import kdzoo
from kdzoo.extend.bases import Adapter
from kdzoo.extend.registry import registry

MAP, LARGER, HALF = (6, 8, 8), (6, 16, 16), (6, 4, 4)


def adapter(
    name: str, student: tuple[int, ...], teacher: tuple[int, ...], **params: Any
) -> Adapter:
    torch.manual_seed(0)
    made: Adapter = registry().make(Adapter.kind, name, params)
    made.setup(student, teacher)
    return made


@pytest.mark.parametrize(
    ("name", "student", "teacher", "message"),
    [
        ("identity", MAP, HALF, "changes nothing"),
        ("linear", MAP, MAP, 'use "conv1x1"'),
        ("linear", (5, 3), (6, 3), "of equal number"),
        ("pool", MAP, LARGER, "only makes maps smaller"),
        ("pool", LARGER, (7, 8, 8), "keeps the channels"),
        ("conv1x1", MAP, (9, 16, 16), 'use "regressor"'),
        ("conv1x1", (5,), (9,), 'use "linear"'),
        ("regressor", MAP, (9, 20, 20), "by a factor of 2"),
        ("regressor", MAP, (9, 16, 8), "by a factor of 2"),
        ("regressor", (16, 5), MAP, 'or "tokens"'),
        ("tokens", MAP, MAP, "tokens on one side"),
        ("tokens", (5,), (16, 5), 'use "linear"'),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(
    name: str, student: tuple[int, ...], teacher: tuple[int, ...], message: str
) -> None:
    with pytest.raises(kdzoo.SpecError, match=message) as refusal:
        adapter(name, student, teacher)
    assert str(student) in str(refusal.value)


def kinds(made: Adapter) -> list[str]:
    return [type(m).__name__ for m in made.modules() if not list(m.children())]


def test_the_regressor_is_the_published_one() -> None:
    """Its kernels as the literature chooses them by the sizes; batch norm; ReLU."""
    down, up, same, other = (adapter("regressor", MAP, (9, side, side)) for side in (4, 16, 8, 3))
    for made, kernel, stride, padding in (
        (down, (3, 3), (2, 2), (1, 1)),
        (up, (4, 4), (2, 2), (1, 1)),
        (same, (1, 1), (1, 1), (0, 0)),
        (other, (6, 6), (1, 1), (0, 0)),
    ):
        convolution: Any = made.layers[0]
        assert (convolution.kernel_size, convolution.stride) == (kernel, stride)
        assert convolution.padding == padding
        assert isinstance(convolution, nn.ConvTranspose2d) is (made is up)
        assert kinds(made)[1:] == ["BatchNorm2d", "ReLU"]
    assert (down(torch.randn(3, *MAP)) >= 0).all()
    assert (adapter("regressor", MAP, HALF, relu=False)(torch.randn(3, *MAP)) < 0).any()


def test_tokens_are_laid_out_as_the_patches_lie() -> None:
    made = adapter("tokens", (1 + 9, 2), (2, 3, 3))
    nn.init.eye_(made.linear.weight)
    nn.init.zeros_(made.linear.bias)
    feature = torch.randn(1, 10, 2)
    laid = made(feature)
    for row in range(3):
        for column in range(3):
            torch.testing.assert_close(laid[0, :, row, column], feature[0, 1 + 3 * row + column])
    back = adapter("tokens", (2, 3, 3), (1 + 9, 2))
    back.linear.load_state_dict(made.linear.state_dict())
    tokens = back(laid)
    torch.testing.assert_close(tokens[:, 1:], feature[:, 1:])
    torch.testing.assert_close(tokens[:, 0], feature[:, 1:].mean(1))


def test_an_adapter_is_chosen_in_the_spec_and_trained_with_the_student() -> None:
    (term,) = kdzoo.terms(
        [{"use": "fitnet", "adapter": "conv1x1", "layers": {"student": 0, "teacher": 0}}]
    )

    def network(width: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3)
        )

    layers = kdzoo.Layers(stages=("0",))
    distiller = kdzoo.Distiller(
        network(5),
        network(2),
        [term],
        example=torch.rand(2, 1, 8, 8),
        classes=["a", "b", "c"],
        num_samples=6,
        teacher_layers=layers,
        student_layers=layers,
    )
    assert kinds(distiller.losses["fitnet"]) == ["Conv2d", "BatchNorm2d"]
    learning = dict(distiller.named_parameters())
    assert any(name.startswith("losses.fitnet.adapters.0.") for name in learning)
    distiller(torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])).total.backward()
    assert all(
        parameter.grad is not None
        for name, parameter in learning.items()
        if name.startswith("losses.")
    )


def test_a_map_that_shrinks_is_averaged_and_one_that_grows_is_interpolated() -> None:
    feature = torch.randn(2, *MAP)
    averaged = nn.functional.avg_pool2d(feature, 2)
    torch.testing.assert_close(adapter("pool", MAP, HALF)(feature), averaged)
    convolution: Any = adapter("conv1x1", MAP, (9, 4, 4))
    assert convolution.layers[1].bias is None
    torch.testing.assert_close(convolution.layers[0](feature), averaged)
    for teacher, wanted in (
        ((16, 6), averaged),
        ((256, 6), nn.functional.interpolate(feature, (16, 16), mode="bilinear")),
    ):
        tokens = adapter("tokens", MAP, teacher)
        nn.init.eye_(tokens.linear.weight)
        nn.init.zeros_(tokens.linear.bias)
        torch.testing.assert_close(tokens(feature), wanted.flatten(2).transpose(1, 2))


def test_a_side_that_shrinks_is_averaged_whatever_becomes_of_the_other() -> None:
    feature = torch.randn(2, 6, 2, 8)
    for student, wanted in (
        (feature, (4, 4)),  # one side grows, the other shrinks
        (feature.mT, (4, 4)),
        (feature[..., :4], (4, 4)),  # one side grows, the other stays
        (feature.mT[..., :4, :], (4, 4)),
    ):
        tokens = adapter("tokens", tuple(student.shape[1:]), (16, 6))
        nn.init.eye_(tokens.linear.weight)
        nn.init.zeros_(tokens.linear.bias)
        height, width = student.shape[2:]
        small = nn.functional.avg_pool2d(student, (max(height // 4, 1), max(width // 4, 1)))
        resized = nn.functional.interpolate(small, wanted, mode="bilinear")
        torch.testing.assert_close(tokens(student), resized.flatten(2).transpose(1, 2))


def test_class_tokens_are_compared_with_class_tokens() -> None:
    tokens = adapter("tokens", (1 + 16, 6), (1 + 4, 6))
    nn.init.eye_(tokens.linear.weight)
    nn.init.zeros_(tokens.linear.bias)
    feature = torch.randn(2, 17, 6)
    torch.testing.assert_close(tokens(feature)[:, 0], feature[:, 0])
