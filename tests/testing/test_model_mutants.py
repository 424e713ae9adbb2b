"""For each check of a model source a broken one that it catches, and where possible no other."""

from __future__ import annotations

import random
import threading
from typing import Any

import pytest
import torch
from proving import caught, quick
from torch import Tensor, nn

import kdzoo
from kdzoo.testing import run_checks
from kdzoo.testing.models import ModelChecks

QUICK = quick(ModelChecks, but=set())
SMALL: dict[str, Any] = {"input_shape": (3, 8, 8), "num_classes": 4}


class Network(nn.Module):
    """Two convolutions and a classifier."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 6, 3, padding=1)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(6, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.pool(self.second(self.norm(self.first(images)).relu())))


class Sound(kdzoo.ModelSource):
    """A small convolutional network."""

    name = "sound"
    network = Network

    def build(self, input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        return self.network(input_shape[0], num_classes)

    def layers(self) -> kdzoo.Layers:
        return kdzoo.Layers(stages=("first", "second"), penultimate="pool", head="head")


class Undescribed(Sound):
    """A parameter has no description."""

    class Params(kdzoo.Params):
        width: int = 4


class Squeezed(Sound):
    """A single image loses its dimension."""

    class network(Network):  # noqa: N801
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images).squeeze(0)


class LargeOnly(Sound):
    """Fails on images that it did not refuse."""

    class network(Network):  # noqa: N801
        def forward(self, images: Tensor) -> Tensor:
            if images.shape[2] != 8 or images.shape[1] != 3:
                raise RuntimeError("size mismatch")
            return super().forward(images)


class RefusesAsItLikes(Sound):
    """Does not refuse as one should."""

    def build(self, input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        if input_shape[0] != 3:
            raise ValueError("colour images only")
        return super().build(input_shape, num_classes)


class Spare(Sound):
    """Has a layer that is never used."""

    class network(Network):  # noqa: N801
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            self.spare = nn.Linear(2, 2)


class DrawsElsewhere(Sound):
    """Draws its first weights from a generator that the engine does not seed."""

    def build(self, *given: Any) -> nn.Module:
        model = super().build(*given)
        with torch.no_grad():
            model.head.weight.mul_(1 + random.random())
        return model


class Reseeds(Sound):
    """Has the same first weights under every seed."""

    def build(self, *given: Any) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return super().build(*given)


class NoSuchStage(Sound):
    """Names a layer that does not run."""

    class network(Network):  # noqa: N801
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            self.stem = nn.Sequential()

    def layers(self) -> kdzoo.Layers:
        return kdzoo.Layers(stages=("stem", "second"), penultimate="pool", head="head")


class Disordered(Sound):
    """Names its stages in another order than they run in."""

    def layers(self) -> kdzoo.Layers:
        return kdzoo.Layers(stages=("second", "first"), penultimate="pool", head="head")


class NotTheHead(Sound):
    """Changes what its classifier answers."""

    class network(Network):  # noqa: N801
        def forward(self, images: Tensor) -> Tensor:
            return 2 * super().forward(images)


class NotPenultimate(Sound):
    """Changes what comes out of the layer that it calls penultimate."""

    def layers(self) -> kdzoo.Layers:
        return kdzoo.Layers(stages=("first", "second"), penultimate="second", head="head")


class Centres(Sound):
    """Centres over the batch in eval mode too."""

    class network(Network):  # noqa: N801
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images - images.mean(0) if len(images) > 1 else images)


class DropsInEvaluation(Sound):
    """Its dropout knows no eval mode."""

    class network(Network):  # noqa: N801
        def forward(self, images: Tensor) -> Tensor:
            seed = torch.initial_seed()
            return super().forward(images * (1 + 0.5 * (seed % 3 == 2)))


class CountsEvaluation(Sound):
    """Counts its calls in eval mode too."""

    class network(Network):  # noqa: N801
        def forward(self, images: Tensor) -> Tensor:
            self.norm.num_batches_tracked.add_(1)
            return super().forward(images)


class InPlace(Sound):
    """Scales its images where they lie, in train mode."""

    class network(Network):  # noqa: N801
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images.mul_(2) if self.training else images)


class NotOnlyTensors(Sound):
    """Its state dict holds more than tensors."""

    class network(Network):  # noqa: N801
        def get_extra_state(self) -> Any:
            return {"version": 1}

        def set_extra_state(self, state: Any) -> None:
            pass


class AnotherOne(Sound):
    """Leaves its classifier away where weights follow."""

    def build(self, *given: Any) -> nn.Module:
        model = super().build(*given)
        if self.weights_follow:
            model.head = nn.Identity()
        return model


class Uncopyable(Sound):
    """Holds what cannot be copied."""

    class network(Network):  # noqa: N801
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            self.lock = threading.Lock()


class FlatNormalization(Sound):
    """Divides by 0."""

    def normalization(self) -> kdzoo.Normalization:
        return kdzoo.Normalization((0.5, 0.5, 0.5), (0.0, 0.0, 0.0))


class OverflowsInHalf(Sound):
    """Leaves the range of float16."""

    class network(Network):  # noqa: N801
        def forward(self, images: Tensor) -> Tensor:
            features = self.norm(self.first(images) * 2.0**20 / 2.0**20).relu()
            return self.head(self.pool(self.second(features)))


class KnowsTwoTypes(Sound):
    """Has a constant for single and one for half precision."""

    class network(Network):  # noqa: N801
        def forward(self, images: Tensor) -> Tensor:
            features = self.pool(self.second(self.norm(self.first(images)).relu()))
            small = {torch.float32: 0.0, torch.float16: 0.0}[features.dtype]
            return self.head(features + small)


class Tunes(Sound):
    """Lets cuDNN try its algorithms, in everybody's convolutions."""

    def layers(self) -> kdzoo.Layers:
        torch.backends.cudnn.benchmark = True
        return super().layers()


class OtherWhenCompiled(Sound):
    """Is another network when it is compiled."""

    class network(Network):  # noqa: N801
        def forward(self, images: Tensor) -> Tensor:
            logits = super().forward(images)
            return 2 * logits if torch.compiler.is_compiling() else logits


class OtherGradientWhenCompiled(Sound):
    """Answers the same when it is compiled, and learns twice as fast."""

    class network(Network):  # noqa: N801
        def forward(self, images: Tensor) -> Tensor:
            logits = super().forward(images)
            return 2 * logits - logits.detach() if torch.compiler.is_compiling() else logits


class BreaksTheGraph(Sound):
    """Looks at a file in each step."""

    class network(Network):  # noqa: N801
        def forward(self, images: Tensor) -> Tensor:
            open(__file__).close()
            return super().forward(images)


class LearnsAsATeacher(Sound):
    """Its weights move in each step, also where it learns nothing."""

    class network(Network):  # noqa: N801
        def forward(self, images: Tensor) -> Tensor:
            if not self.head.weight.requires_grad:
                self.head.weight.data.mul_(0.9)
            return super().forward(images)


EXACTLY: list[tuple[type[kdzoo.ModelSource], str]] = [
    (Undescribed, "contract"),
    (Tunes, "leaves_torch_alone"),
    (Squeezed, "logits"),
    (LargeOnly, "other_images"),
    (RefusesAsItLikes, "other_images"),
    (Spare, "gradients"),
    (DrawsElsewhere, "seed"),
    (Reseeds, "seed"),
    (Disordered, "declared_layers"),
    (NotTheHead, "classifier"),
    (NotPenultimate, "classifier"),
    (Centres, "images_alone"),
    (DropsInEvaluation, "evaluation"),
    (InPlace, "leaves_its_images_alone"),
    (NotOnlyTensors, "state_dict"),
    (AnotherOne, "weights_follow"),
    (Uncopyable, "copies"),
    (FlatNormalization, "its_normalization"),
    (OverflowsInHalf, "half_precision"),
    (KnowsTwoTypes, "bfloat16"),
    (LearnsAsATeacher, "as_student_and_teacher"),
]


def test_what_is_sound_passes_every_check() -> None:
    assert caught(Sound, checks=[*QUICK, "compiled"], **SMALL) == set()


@pytest.mark.parametrize(("mutant", "check"), EXACTLY)
def test_one_check_alone_catches_it(mutant: type[kdzoo.ModelSource], check: str) -> None:
    assert caught(mutant, **SMALL) == {check}


@pytest.mark.parametrize("mutant", [OtherWhenCompiled, OtherGradientWhenCompiled, BreaksTheGraph])
def test_a_compiled_model_catches_it(mutant: type[kdzoo.ModelSource]) -> None:
    assert caught(mutant, checks=[*QUICK, "compiled"], **SMALL) == {"compiled"}
    expected = {"compiled": "by design"}
    assert caught(mutant, checks=["compiled"], expected_failures=expected, **SMALL) == set()


@pytest.mark.slow
@pytest.mark.parametrize("mutant", [mutant for mutant, _ in EXACTLY])
def test_compiling_catches_no_other(mutant: type[kdzoo.ModelSource]) -> None:
    # No graph asks for the seed, as this one does.
    also = {"compiled"} if mutant is DropsInEvaluation else set()
    assert caught(mutant, checks=["compiled"], **SMALL) == also


def test_a_teacher_that_counts_its_calls_changes_too() -> None:
    assert caught(CountsEvaluation, **SMALL) == {"evaluation", "as_student_and_teacher"}


def test_a_layer_that_does_not_run_cannot_be_read() -> None:
    assert caught(NoSuchStage, **SMALL) == {"declared_layers", "as_student_and_teacher"}


class NoSuchLayer(Sound):
    """Names a layer that is not there."""

    def layers(self) -> kdzoo.Layers:
        return kdzoo.Layers(stages=("frist", "second"), penultimate="pool", head="head")


class AnswersATuple(Sound):
    """Answers its features, too."""

    class network(Network):  # noqa: N801
        def forward(self, images: Tensor) -> Any:
            return super().forward(images), images


@pytest.mark.parametrize(
    ("mutant", "said"),
    [
        (
            NoSuchLayer,
            'no layer "frist", which its model declares as stage 0; did you mean "first"',
        ),
        (AnswersATuple, "it answered tuple for"),
    ],
)
def test_what_is_said_is_meant_for_people(mutant: type[kdzoo.ModelSource], said: str) -> None:
    checks = {NoSuchLayer: ["declared_layers", "as_student_and_teacher"]}.get(
        mutant, ["logits", "gradients", "images_alone", "evaluation", "state_dict", "bfloat16"]
    )
    reasons = [result.reason for result in run_checks(mutant, checks=checks, **SMALL)]
    assert all(said in reason or "says nothing while" in reason for reason in reasons), reasons


def test_every_check_is_proved() -> None:
    assert {check for _, check in EXACTLY} == set(QUICK)
