"""For each check of an adapter a broken one that it catches, and where possible no other does."""

from __future__ import annotations

import random
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from proving import by_columns, caught, quick
from torch import Tensor, nn

import kdzoo
from kdzoo.testing.adapters import AdapterChecks

Shape = tuple[int, ...]

QUICK = quick(AdapterChecks, but={"compiled"})


class Sound(kdzoo.Adapter):
    """A 1x1 convolution between maps of one size."""

    name = "sound"

    def setup(self, student_shape: Shape, teacher_shape: Shape) -> None:
        if len(student_shape) != 3 or student_shape[1:] != teacher_shape[1:]:
            raise kdzoo.SpecError("is for maps of one size")
        self.map = nn.Conv2d(student_shape[0], teacher_shape[0], 1)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, feature: Tensor) -> Tensor:
        return self.map(feature)


class Undescribed(Sound):
    """A parameter has no description."""

    class Params(kdzoo.Params):
        scale: float = 1.0


class Squeezed(Sound):
    """A single sample loses its dimension."""

    def forward(self, feature: Tensor) -> Tensor:
        return super().forward(feature).squeeze(0)


class RefusesAsItLikes(Sound):
    """Does not refuse as one should."""

    def setup(self, student_shape: Shape, teacher_shape: Shape) -> None:
        if len(student_shape) != 3:
            raise ValueError("maps only")
        super().setup(student_shape, teacher_shape)


class TakesAnything(Sound):
    """Takes shapes that it cannot bring together."""

    def setup(self, student_shape: Shape, teacher_shape: Shape) -> None:
        super().setup((student_shape[0], 1, 1), (teacher_shape[0], 1, 1))


class Spare(Sound):
    """Has a layer that is never used."""

    def setup(self, *shapes: Shape) -> None:
        super().setup(*shapes)
        self.spare = nn.Linear(2, 2)


class Detaches(Sound):
    """Lets no gradient through to the student."""

    def forward(self, feature: Tensor) -> Tensor:
        return super().forward(feature.detach())


class KeepsTheLast(Sound):
    """Keeps its last answer in a tensor that is no buffer."""

    def forward(self, feature: Tensor) -> Tensor:
        mapped = super().forward(feature)
        self.last = mapped.detach()
        return mapped


class InPlace(Sound):
    """Cuts the student's feature off where it lies."""

    def forward(self, feature: Tensor) -> Tensor:
        return super().forward(feature.clamp_(min=0))


class CountsEvaluation(Sound):
    """Counts its calls in eval mode too."""

    def forward(self, feature: Tensor) -> Tensor:
        self.calls.add_(1)
        return super().forward(feature)


class Centres(Sound):
    """Centres over the batch in eval mode too."""

    def forward(self, feature: Tensor) -> Tensor:
        return super().forward(feature - feature.mean(0) if len(feature) > 1 else feature)


class Views(Sound):
    """Takes maps apart with view."""

    def forward(self, feature: Tensor) -> Tensor:
        return super().forward(feature) + 0 * feature.view(-1).mean()


class DrawsElsewhere(Sound):
    """Draws its first weights from a generator that the engine does not seed."""

    def setup(self, *shapes: Shape) -> None:
        super().setup(*shapes)
        with torch.no_grad():
            self.map.weight.mul_(1 + random.random())


class ObjectInState(Sound):
    """Its state holds more than data."""

    def get_extra_state(self) -> Any:
        return {"file": Path("weights")}

    def set_extra_state(self, state: Any) -> None:
        pass


class Uncopyable(Sound):
    """Holds what cannot be copied."""

    def setup(self, *shapes: Shape) -> None:
        super().setup(*shapes)
        self.lock = threading.Lock()


class OverflowsInHalf(Sound):
    """Leaves the range of float16."""

    def forward(self, feature: Tensor) -> Tensor:
        return super().forward(feature * 1000 * 100 / 100000)


class KnowsTwoTypes(Sound):
    """Has a constant for single and one for half precision."""

    def forward(self, feature: Tensor) -> Tensor:
        small = {torch.float32: 1e-7, torch.float16: 1e-3}[feature.dtype]
        return super().forward(feature + small)


class OnTheCpu(Sound):
    """Makes a tensor where the others need not be."""

    def forward(self, feature: Tensor) -> Tensor:
        return super().forward(feature) + torch.zeros(len(feature), 1, 1, 1)


class Tunes(Sound):
    """Lets cuDNN try its algorithms, in everybody's convolutions."""

    def setup(self, *shapes: Shape) -> None:
        super().setup(*shapes)
        torch.backends.cudnn.benchmark = True


class OtherWhenCompiled(Sound):
    """Is another function when it is compiled."""

    def forward(self, feature: Tensor) -> Tensor:
        mapped = super().forward(feature)
        return 2 * mapped if torch.compiler.is_compiling() else mapped


class OtherWidthWhenCompiled(Sound):
    """Is another function when it is compiled, between widths that differ."""

    def forward(self, feature: Tensor) -> Tensor:
        mapped = super().forward(feature)
        other = mapped.shape[1] != feature.shape[1] and torch.compiler.is_compiling()
        return 2 * mapped if other else mapped


class OtherGradientWhenCompiled(Sound):
    """Answers the same when it is compiled, and learns twice as fast."""

    def forward(self, feature: Tensor) -> Tensor:
        mapped = super().forward(feature)
        return 2 * mapped - mapped.detach() if torch.compiler.is_compiling() else mapped


class SaysAnotherLayout(Sound):
    """Uses an operation that only a compiler of memory's layout takes at its word."""

    def forward(self, feature: Tensor) -> Tensor:
        means = by_columns(feature.detach().flatten(1)).mean(1)
        return super().forward(feature) - means[:, None, None, None]


EXACTLY: list[tuple[type[kdzoo.Adapter], str]] = [
    (Undescribed, "contract"),
    (Tunes, "leaves_torch_alone"),
    (Squeezed, "the_teachers_shape"),
    (RefusesAsItLikes, "refusals"),
    (Spare, "parameters"),
    (Detaches, "parameters"),
    (KeepsTheLast, "buffers"),
    (InPlace, "leaves_its_input_alone"),
    (CountsEvaluation, "evaluation"),
    (Centres, "samples_alone"),
    (Views, "channels_last"),
    (DrawsElsewhere, "deterministic"),
    (ObjectInState, "state_dict"),
    (Uncopyable, "copies"),
    (OverflowsInHalf, "half_precision"),
    (KnowsTwoTypes, "bfloat16"),
    (OnTheCpu, "device"),
]


def test_what_is_sound_passes_every_check() -> None:
    assert caught(Sound) == set()
    assert caught(Sound, shapes=[((2, 3, 3), (4, 3, 3))]) == set()


@pytest.mark.parametrize(("mutant", "check"), EXACTLY)
def test_one_check_alone_catches_it(mutant: type[kdzoo.Adapter], check: str) -> None:
    assert caught(mutant, checks=QUICK) == {check}


@pytest.mark.slow
@pytest.mark.parametrize("mutant", [mutant for mutant, _ in EXACTLY])
def test_a_compiled_step_catches_no_other(mutant: type[kdzoo.Adapter]) -> None:
    assert caught(mutant, checks=["compiled"]) == set()


def test_what_it_takes_it_must_bring_over() -> None:
    assert "refusals" in caught(TakesAnything, checks=QUICK)
    assert "the_teachers_shape" in caught(Sound, checks=QUICK, shapes=[((2, 3, 3), (4, 5, 5))])


@pytest.mark.parametrize(
    "mutant", [OtherWhenCompiled, OtherWidthWhenCompiled, OtherGradientWhenCompiled]
)
def test_a_compiled_step_catches_it(mutant: type[kdzoo.Adapter]) -> None:
    assert caught(mutant, checks=[*QUICK, "compiled"]) == {"compiled"}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_the_real_compiler_catches_it() -> None:
    assert caught(Sound, checks=["compiled_for_real"]) == set()
    assert caught(OtherWhenCompiled, checks=["compiled_for_real"]) == {"compiled_for_real"}
    compilers = ["compiled", "compiled_for_real"]
    assert caught(SaysAnotherLayout, checks=[*QUICK, *compilers]) == {"compiled_for_real"}


def test_every_check_is_proved() -> None:
    assert {check for _, check in EXACTLY} == set(QUICK)
