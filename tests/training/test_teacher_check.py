"""A loaded teacher is measured class by class: a set may be uneven."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import kdzoo
from kdzoo.data.images import Split
from kdzoo.data.load import load_images
from kdzoo.training.teacher_check import measure_teacher

TARGETS = torch.tensor([0] * 600 + [1] * 200)


class Answers(nn.Module):
    """Reads the class from the first pixel, and answers some logits of each class."""

    def __init__(self, logits: list[list[float]]) -> None:
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, images: Tensor) -> Tensor:
        return self.logits[(images[:, 0, 0, 0] * 255).round().long()]


@pytest.fixture
def split(tmp_path: Path) -> Split:
    images = TARGETS.to(torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2).contiguous()
    data = kdzoo.ImageData(images, TARGETS, images, TARGETS, ("a", "b"), (0.0,), (1.0,))
    at_once = load_images("uneven", data, torch.device("cpu"), cache=tmp_path)
    return at_once.prepare(validation=0, split_seed=0, augment_seed=0).test


def measured(split: Split, logits: list[list[float]]) -> float:
    return measure_teacher(Answers(logits), split, "test", ("a", "b"), "the teacher (t.pth)")


def test_one_answer_to_everything_is_chance_however_many_it_is_right_on(split: Split) -> None:
    with pytest.raises(kdzoo.CheckpointError, match=r"the teacher \(t.pth\) gets 50.00 % of a cla"):
        measured(split, [[1.0, 0.0], [1.0, 0.0]])
    assert measured(split, [[1.0, 0.0], [0.0, 1.0]]) == 1.0


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_no_number_is_no_answer_even_if_it_counts_as_right(split: Split, bad: float) -> None:
    with pytest.raises(kdzoo.CheckpointError, match=r"the teacher \(t.pth\) answers NaN or inf"):
        measured(split, [[bad, bad], [bad, bad]])
    with pytest.raises(kdzoo.CheckpointError, match="answers NaN or infinity to test images"):
        measured(split, [[1.0, 0.0], [bad, 1.0]])
