"""For each check of a loss a broken one that it catches, and where possible no other check does."""

from __future__ import annotations

import random
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from proving import by_columns, caught, quick
from torch import Tensor, distributed, nn

import kdzoo
from kdzoo.testing import processes, run_checks
from kdzoo.testing.losses import LossChecks

COSTLY = {"compiled", "two_processes"}  # of these only the mutants that are meant for them
QUICK = quick(LossChecks, but=COSTLY)


class Sound(kdzoo.Loss):
    """Squared differences of logits and of maps that a convolution has brought over."""

    name = "sound"
    default_layers = (kdzoo.LayerPair(student=1, teacher=1),)

    def setup(
        self,
        student_shapes: kdzoo.Shapes,
        teacher_shapes: kdzoo.Shapes,
        num_classes: int,
        num_samples: int,
    ) -> None:
        channels = [shapes.features[1][0] for shapes in (student_shapes, teacher_shapes)]
        self.map = nn.Conv2d(*channels, 1)
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, student: kdzoo.Outputs, teacher: kdzoo.Outputs, batch: kdzoo.Batch) -> Tensor:
        mapped = self.map(student.features[1]).float()
        maps = (mapped - teacher.features[1].float()).square().flatten(1).mean(1)
        return maps + (student.logits.float() - teacher.logits.float()).square().mean(1)


class Undescribed(Sound):
    """A parameter has no description."""

    class Params(kdzoo.Params):
        scale: float = 1.0


class Tunes(Sound):
    """Lets cuDNN try its algorithms, in everybody's convolutions."""

    def forward(self, *given: Any) -> Tensor:
        torch.backends.cudnn.benchmark = True
        return super().forward(*given)


class Squeezed(Sound):
    """A single sample loses its dimension."""

    def forward(self, *given: Any) -> Tensor:
        return super().forward(*given).squeeze()


class Mean(Sound):
    """Averages."""

    def forward(self, *given: Any) -> Tensor:
        return super().forward(*given).mean()


class MeanOfTheBatch(Sound):
    """Averages, and says the mean of each sample."""

    def forward(self, *given: Any) -> Tensor:
        rows = super().forward(*given)
        return rows.mean().expand(len(rows))


class AsksTheTeacher(Sound):
    """Wants a gradient of the teacher's logits."""

    def forward(self, student: kdzoo.Outputs, teacher: kdzoo.Outputs, batch: kdzoo.Batch) -> Tensor:
        teacher.logits.requires_grad_()
        return super().forward(student, teacher, batch)


class HalfDetached(Sound):
    """Detaches the map, and nothing but the logits has a gradient."""

    def forward(self, student: kdzoo.Outputs, teacher: kdzoo.Outputs, batch: kdzoo.Batch) -> Tensor:
        features = {layer: value.detach() for layer, value in student.features.items()}
        return super().forward(kdzoo.Outputs(student.logits, features), teacher, batch)


class NoSlopeAtZero(Sound):
    """Adds the distance of the logits, whose gradient is NaN where it is 0."""

    def forward(self, student: kdzoo.Outputs, teacher: kdzoo.Outputs, batch: kdzoo.Batch) -> Tensor:
        apart = (student.logits.float() - teacher.logits.float()).square().sum(1)
        return super().forward(student, teacher, batch) + apart.sqrt()


class NoSlopeForDeadFeatures(Sound):
    """Adds the length of the map, whose gradient is NaN where it is 0."""

    def forward(self, student: kdzoo.Outputs, *given: Any) -> Tensor:
        length = student.features[1].float().flatten(1).square().sum(1).sqrt()
        return super().forward(student, *given) + length


class Spare(Sound):
    """Has a layer that is never used."""

    def setup(self, *given: Any) -> None:
        super().setup(*given)
        self.spare = nn.Linear(2, 2)


class InAList(Sound):
    """Keeps its layer where torch does not look."""

    def setup(self, *given: Any) -> None:
        super().setup(*given)
        self.layers_ = [self.map]
        del self.map

    def forward(self, student: kdzoo.Outputs, teacher: kdzoo.Outputs, batch: kdzoo.Batch) -> Tensor:
        mapped = self.layers_[0](student.features[1]).float()
        return (mapped - teacher.features[1].float()).square().flatten(1).mean(1)


class Late(Sound):
    """Makes a layer in the first step, when the optimizer is there already."""

    def forward(self, student: kdzoo.Outputs, teacher: kdzoo.Outputs, batch: kdzoo.Batch) -> Tensor:
        if not hasattr(self, "late"):
            self.late = nn.Linear(1, 1)
        rows = super().forward(student, teacher, batch)
        return rows + self.late(rows[:, None])[:, 0]


class PlainTensor(Sound):
    """Keeps its last values in a tensor that is no buffer."""

    def forward(self, *given: Any) -> Tensor:
        rows = super().forward(*given)
        self.last = rows.detach()
        return rows


class PlainMean(Sound):
    """Subtracts a tensor that is no buffer."""

    def setup(self, *given: Any) -> None:
        super().setup(*given)
        self.plain = torch.zeros(1)

    def forward(self, *given: Any) -> Tensor:
        return super().forward(*given) - self.plain


class InPlace(Sound):
    """Centres the student's logits where they lie."""

    def forward(self, student: kdzoo.Outputs, *given: Any) -> Tensor:
        student.logits.sub_(student.logits.mean(1, keepdim=True))
        return super().forward(student, *given)


class InPlaceOnTheTeacher(Sound):
    """Centres the teacher's logits where they lie."""

    def forward(self, student: kdzoo.Outputs, teacher: kdzoo.Outputs, batch: kdzoo.Batch) -> Tensor:
        teacher.logits.sub_(teacher.logits.mean(1, keepdim=True))
        return super().forward(student, teacher, batch)


class NormalizesTheWeights(Sound):
    """Divides the weights by their sum, where they lie."""

    def forward(self, student: kdzoo.Outputs, teacher: kdzoo.Outputs, batch: kdzoo.Batch) -> Tensor:
        batch.weights.div_(batch.weights.sum())
        return super().forward(student, teacher, batch)


class TurnsTheImages(Sound):
    """Centres the images where they lie."""

    def forward(self, student: kdzoo.Outputs, teacher: kdzoo.Outputs, batch: kdzoo.Batch) -> Tensor:
        batch.inputs.sub_(0.5)
        return super().forward(student, teacher, batch)


class MovesTheIndices(Sound):
    """Counts the rows from 1, where their numbers lie."""

    def forward(self, student: kdzoo.Outputs, teacher: kdzoo.Outputs, batch: kdzoo.Batch) -> Tensor:
        batch.indices.add_(1)
        return super().forward(student, teacher, batch)


class RemembersEvaluation(Sound):
    """Keeps a mean of its values in eval mode too."""

    def forward(self, *given: Any) -> Tensor:
        rows = super().forward(*given)
        self.mean.mul_(0.9)
        self.mean.add_(1)
        return rows


class CountsEvaluation(Sound):
    """Counts its calls in eval mode in a number that is no part of its state."""

    calls = 0

    def forward(self, *given: Any) -> Tensor:
        self.calls += not self.training
        return super().forward(*given) * (1 + self.calls)


class CountsItsCalls(Sound):
    """The same in both modes."""

    calls = 0

    def forward(self, *given: Any) -> Tensor:
        self.calls += 1
        return super().forward(*given) * (1 + self.calls)


class ReadsIndices(Sound):
    """Reads the rows' numbers and does not say so."""

    def forward(self, student: kdzoo.Outputs, teacher: kdzoo.Outputs, batch: kdzoo.Batch) -> Tensor:
        return super().forward(student, teacher, batch) * (1 + batch.indices % 3)


class ReadsTargets(Sound):
    """Reads the classes of the training set and does not say so."""

    def setup(self, *given: Any) -> None:
        super().setup(*given)
        assert self.targets is not None
        self.samples = len(self.targets)


class Reseeds(Sound):
    """Seeds the generator that others draw from."""

    def forward(self, *given: Any) -> Tensor:
        torch.manual_seed(0)
        return super().forward(*given)


class DrawsElsewhere(Sound):
    """Draws from a generator that the engine does not seed."""

    def forward(self, *given: Any) -> Tensor:
        return super().forward(*given) * (1 + random.random())


class ObjectInState(Sound):
    """Its state holds more than data."""

    def get_extra_state(self) -> Any:
        return {"file": Path("banks")}

    def set_extra_state(self, state: Any) -> None:
        pass


class Uncopyable(Sound):
    """Holds what cannot be copied."""

    def setup(self, *given: Any) -> None:
        super().setup(*given)
        self.lock = threading.Lock()


class SharesWithItsCopy(Sound):
    """Its copy writes into its buffer."""

    def __deepcopy__(self, memo: Any) -> SharesWithItsCopy:
        copied = type(self)(self.params)
        copied.__dict__ = {**self.__dict__}
        return copied

    def forward(self, *given: Any) -> Tensor:
        if self.training:
            self.mean.add_(1)
        return super().forward(*given)


class Forgets(Sound):
    """Counts its steps in a number that is not saved."""

    steps = 0

    def forward(self, *given: Any) -> Tensor:
        if self.training:
            self.steps += 1
        return super().forward(*given) * (1 + 0.1 * self.steps if self.training else 1)


class WeightsItsRows(Sound):
    """Applies the policy's weights, which the engine then applies again."""

    def forward(self, student: kdzoo.Outputs, teacher: kdzoo.Outputs, batch: kdzoo.Batch) -> Tensor:
        return super().forward(student, teacher, batch) * batch.weights


class Pairs(kdzoo.Loss):
    """Compares the similarities of all pairs, and weights each partner."""

    name = "pairs"
    invariances = frozenset({"identity", "duplication", "permutation"})

    def forward(self, student: kdzoo.Outputs, teacher: kdzoo.Outputs, batch: kdzoo.Batch) -> Tensor:
        s, t = (outputs.logits.float() / 100 for outputs in (student, teacher))
        apart = ((s @ s.T) - (t @ t.T)).abs()
        return (apart * self.partners(batch.weights)).sum(1) / self.count(batch)

    def partners(self, weights: Tensor) -> Tensor:
        return weights

    def count(self, batch: kdzoo.Batch) -> Any:
        return len(batch.targets)


class ForgetsPartners(Pairs):
    """Does not weight them."""

    def partners(self, weights: Tensor) -> Tensor:
        return torch.ones_like(weights)


class AnotherDenominator(Pairs):
    """Divides by what the partners weigh together."""

    def count(self, batch: kdzoo.Batch) -> Any:
        return batch.weights.sum()


class OneFewer(Pairs):
    """Divides by the number of the other samples, and declares that it does not matter."""

    def count(self, batch: kdzoo.Batch) -> Any:
        return max(len(batch.targets) - 1, 1)


class Masked(kdzoo.Loss):
    """Squared differences of logits: of each class as much as its column leaves."""

    name = "masked"
    takes_columns = True
    invariances = frozenset({"identity", "duplication", "permutation"})

    def forward(self, student: kdzoo.Outputs, teacher: kdzoo.Outputs, batch: kdzoo.Batch) -> Tensor:
        apart = (student.logits.float() - teacher.logits.float()).square()
        if batch.columns is None:
            return apart.mean(1)
        return (apart * self.left(batch.columns, batch.targets)).mean(1)

    def left(self, columns: Tensor, targets: Tensor) -> Tensor:
        own = nn.functional.one_hot(targets, len(columns)).bool()
        return torch.where(own, torch.ones_like(columns), columns)


class IgnoresColumns(Masked):
    """Declares that it takes columns, and does not."""

    def left(self, columns: Tensor, targets: Tensor) -> Tensor:
        return torch.ones_like(columns)


class TakesItsOwn(Masked):
    """Takes a class's column out of its own samples, too."""

    def left(self, columns: Tensor, targets: Tensor) -> Tensor:
        return columns


class NeverWhole(Masked):
    """Is another loss as soon as there are columns."""

    def left(self, columns: Tensor, targets: Tensor) -> Tensor:
        return 0.9 * super().left(columns, targets)


class FillsTheColumns(Masked):
    """Writes into the columns."""

    def left(self, columns: Tensor, targets: Tensor) -> Tensor:
        left = super().left(columns.clone(), targets)
        columns.fill_(1)
        return left


class ColumnsOnTheCpu(Masked):
    """Makes a tensor where the columns need not be."""

    def left(self, columns: Tensor, targets: Tensor) -> Tensor:
        return super().left(columns, targets) * torch.ones(len(columns))


class OtherColumnsWhenCompiled(Masked):
    """Forgets the columns in a compiled step."""

    def left(self, columns: Tensor, targets: Tensor) -> Tensor:
        left = super().left(columns, targets)
        return torch.ones_like(left) if torch.compiler.is_compiling() else left


class Neighbours(kdzoo.Loss):
    """Compares each sample with the one after it, and declares that the order does not matter."""

    name = "neighbours"

    def forward(self, student: kdzoo.Outputs, teacher: kdzoo.Outputs, batch: kdzoo.Batch) -> Tensor:
        s, t = (outputs.logits.float() for outputs in (student, teacher))
        apart = ((s - s.roll(1, 0)) - (t - t.roll(1, 0))).square().mean(1)
        return apart * batch.weights.roll(1, 0)


class NotZero(Sound):
    """Declares that it is 0 for equal outputs, but its layer is not an adapter."""

    invariances = frozenset({"identity", "duplication", "permutation"})


class NotBlind(Sound):
    """Declares that a constant in a row of logits does not matter."""

    invariances = frozenset({"shift", "duplication", "permutation"})


class Views(Sound):
    """Takes maps apart with view."""

    def forward(self, student: kdzoo.Outputs, *given: Any) -> Tensor:
        feature = student.features[1]
        return super().forward(student, *given) + 0 * feature.view(len(feature), -1).mean(1)


class Exponentials(Sound):
    """Leaves the range of all numbers."""

    def forward(self, student: kdzoo.Outputs, *given: Any) -> Tensor:
        spread = student.logits.float().exp().sum(1)
        return super().forward(student, *given) + spread / (1 + spread)


class TenthPowers(Sound):
    """Takes only what comes in half precision to one where nothing overflows."""

    def forward(self, student: kdzoo.Outputs, teacher: kdzoo.Outputs, batch: kdzoo.Batch) -> Tensor:
        rows = super().forward(student, teacher, batch)
        difference = student.logits - teacher.logits
        if difference.dtype != torch.float32:
            difference = student.logits.double() - teacher.logits.double()
        norm = (difference.pow(10).mean(1) + 1e-6).pow(0.1)
        return rows + norm.to(rows.dtype)


class HalfSquares(Sound):
    """Squares before it goes to single precision."""

    def forward(self, student: kdzoo.Outputs, teacher: kdzoo.Outputs, batch: kdzoo.Batch) -> Tensor:
        rows = super().forward(student, teacher, batch)
        difference = student.logits - teacher.logits
        return rows + (difference * difference).float().mean(1)


class AnswersInHalf(Sound):
    """Answers in the precision of the logits."""

    def forward(self, student: kdzoo.Outputs, *given: Any) -> Tensor:
        return super().forward(student, *given).clamp(max=1e4).to(student.logits.dtype)


class KnowsTwoTypes(Sound):
    """Has a constant for single and one for half precision."""

    def forward(self, student: kdzoo.Outputs, *given: Any) -> Tensor:
        small = {torch.float32: 1e-7, torch.float16: 1e-3}[student.logits.dtype]
        return super().forward(student, *given) + small


class OnTheCpu(Sound):
    """Makes a tensor where the others need not be."""

    def forward(self, *given: Any) -> Tensor:
        rows = super().forward(*given)
        return rows + torch.zeros(len(rows), dtype=rows.dtype)


class Waits(Sound):
    """Reads a number back in each step."""

    def forward(self, *given: Any) -> Tensor:
        rows = super().forward(*given)
        return rows if rows.sum().item() > 0 else 2 * rows


class Explodes(Sound):
    """Is NaN in its second epoch."""

    def forward(self, student: kdzoo.Outputs, teacher: kdzoo.Outputs, batch: kdzoo.Batch) -> Tensor:
        rows = super().forward(student, teacher, batch)
        return rows * float("nan") if batch.progress == 1 else rows


class Peeks(Sound):
    """Calls itself a label loss, and reads the teacher."""

    guidance = "label"


class OtherWhenCompiled(Sound):
    """Is another function in a compiled step."""

    def forward(self, *given: Any) -> Tensor:
        rows = super().forward(*given)
        return 2 * rows if torch.compiler.is_compiling() else rows


class OverwritesWhatItReads(Sound):
    """The gradient needs what it has just remembered something else over. The copy that is right in
    a plain step is none in a compiled one; beside its large value the gradients look like rounding.
    """

    needs_indices = True

    def setup(self, *given: Any) -> None:
        super().setup(*given)
        self.register_buffer("bank", torch.randn(given[3], given[2]))

    def forward(self, student: kdzoo.Outputs, teacher: kdzoo.Outputs, batch: kdzoo.Batch) -> Tensor:
        scores = student.logits.float()[:, None] * self.bank.clone().float()
        if self.training:
            self.bank[batch.indices] = teacher.logits.float()
        return super().forward(student, teacher, batch) + scores.mean((1, 2)) + 1000


class SaysAnotherLayout(Sound):
    """Uses an operation that only a compiler of memory's layout takes at its word."""

    def forward(self, student: kdzoo.Outputs, teacher: kdzoo.Outputs, batch: kdzoo.Batch) -> Tensor:
        logits = by_columns(teacher.logits)
        return super().forward(student, kdzoo.Outputs(logits, teacher.features), batch)


class BreaksTheGraph(Sound):
    """Looks at a file in each step."""

    def forward(self, *given: Any) -> Tensor:
        open(__file__).close()
        return super().forward(*given)


class OwnBank(Sound):
    """Remembers a mean of this process's samples alone."""

    def forward(self, *given: Any) -> Tensor:
        rows = super().forward(*given)
        if self.training:
            self.mean.copy_(rows.detach().mean())
        return rows


class WaitsInVain(Sound):
    """The first process waits for what the second does not send."""

    def forward(self, *given: Any) -> Tensor:
        rows = super().forward(*given)
        if distributed.is_initialized() and distributed.get_rank() == 0:
            distributed.recv(torch.zeros(()), src=1)
        return rows


class Wide(Sound):
    """Answers in double precision, which is more than is asked."""

    def forward(self, student: kdzoo.Outputs, teacher: kdzoo.Outputs, batch: kdzoo.Batch) -> Tensor:
        apart = student.logits.double() - teacher.logits.double()
        return super().forward(student, teacher, batch).double() + apart.square().mean(1)


class Rises(Sound):
    """Is 0 at first, and rises with the epochs."""

    def forward(self, student: kdzoo.Outputs, teacher: kdzoo.Outputs, batch: kdzoo.Batch) -> Tensor:
        return super().forward(student, teacher, batch) * min(batch.progress / 5, 1.0)


class Hint(kdzoo.Loss):
    """Squared difference of an adapted map and one of another layer."""

    name = "hint"
    default_layers = (kdzoo.LayerPair(student=0, teacher="blocks.3"),)
    default_adapter = "conv1x1"
    invariances = frozenset({"identity", "duplication", "permutation"})

    def setup(
        self,
        student_shapes: kdzoo.Shapes,
        teacher_shapes: kdzoo.Shapes,
        num_classes: int,
        num_samples: int,
    ) -> None:
        (pair,) = self.layers
        shapes = student_shapes.features[pair.student], teacher_shapes.features[pair.teacher]
        self.adapter = self.new_adapter(*shapes)

    def forward(self, student: kdzoo.Outputs, teacher: kdzoo.Outputs, batch: kdzoo.Batch) -> Tensor:
        (pair,) = self.layers
        adapted = self.adapter(student.features[pair.student]).float()
        return (adapted - teacher.features[pair.teacher].float()).square().flatten(1).mean(1)


class Noisy(Hint):
    """Adds noise to what the teacher says."""

    invariances = frozenset()

    def forward(self, student: kdzoo.Outputs, teacher: kdzoo.Outputs, batch: kdzoo.Batch) -> Tensor:
        rows = super().forward(student, teacher, batch)
        return rows * (1 + torch.rand_like(rows))


EXACTLY: list[tuple[type[kdzoo.Loss], str]] = [
    (Undescribed, "contract"),
    (Tunes, "leaves_torch_alone"),
    (Squeezed, "one_value_a_sample"),
    (MeanOfTheBatch, "one_value_a_sample"),
    (Mean, "one_value_a_sample"),
    (AsksTheTeacher, "gradients"),
    (HalfDetached, "gradients"),
    (NoSlopeAtZero, "gradients"),
    (NoSlopeForDeadFeatures, "gradients"),
    (Spare, "parameters"),
    (PlainTensor, "buffers"),
    (InPlace, "leaves_its_inputs_alone"),
    (InPlaceOnTheTeacher, "leaves_its_inputs_alone"),
    (NormalizesTheWeights, "leaves_its_inputs_alone"),
    (TurnsTheImages, "leaves_its_inputs_alone"),
    (MovesTheIndices, "leaves_its_inputs_alone"),
    (FillsTheColumns, "leaves_its_inputs_alone"),
    (RemembersEvaluation, "evaluation"),
    (CountsEvaluation, "evaluation"),
    (ReadsIndices, "declared_needs"),
    (Reseeds, "deterministic"),
    (DrawsElsewhere, "deterministic"),
    (ObjectInState, "state_dict"),
    (Uncopyable, "copies"),
    (SharesWithItsCopy, "copies"),
    (Forgets, "resume"),
    (WeightsItsRows, "class_weights"),
    (ForgetsPartners, "class_weights"),
    (IgnoresColumns, "columns"),
    (TakesItsOwn, "columns"),
    (NeverWhole, "columns"),
    (OneFewer, "duplication"),
    (Neighbours, "permutation"),
    (NotZero, "identity"),
    (NotBlind, "shift"),
    (Views, "channels_last"),
    (TenthPowers, "single_precision"),
    (HalfSquares, "half_precision"),
    (KnowsTwoTypes, "bfloat16"),
    (OnTheCpu, "device"),
    (Waits, "device"),
    (ColumnsOnTheCpu, "device"),
    (Explodes, "alone"),
]
OF_TRAINING = {"alone", "resume", "state_dict", "copies"}  # these train in a Distiller
SEVERAL: list[tuple[type[kdzoo.Loss], set[str]]] = [
    (Exponentials, {"single_precision", "half_precision", "bfloat16"}),
    (AnswersInHalf, {"half_precision", "bfloat16"}),
    (AnotherDenominator, {"class_weights"}),
    (CountsItsCalls, {"evaluation", "state_dict", "resume"}),
    (ReadsTargets, {"declared_needs", *OF_TRAINING}),
    (Peeks, OF_TRAINING),
    (InAList, {"parameters", "state_dict", "resume", "device"}),
    (Late, {"parameters", "state_dict", "resume", "device", "half_precision"}),
]


@pytest.mark.parametrize("sound", [Sound, Pairs, Masked, Noisy, Wide, Rises])
def test_what_is_sound_passes_every_check(sound: type[kdzoo.Loss]) -> None:
    assert caught(sound) == set()


def test_what_rests_on_equal_answers_says_nothing_without_them() -> None:
    results = {result.check: result for result in run_checks(DrawsElsewhere, checks=QUICK)}
    resting = {"declared_needs", "state_dict", "copies", "resume", "class_weights"}
    for check in resting | {"duplication", "permutation", "channels_last"}:
        said = "its failure says nothing while deterministic fails"
        assert (results[check].status, results[check].reason) == ("not applicable", said)
    expected = {"deterministic": "by design"}
    assert caught(DrawsElsewhere, checks=["resume"], expected_failures=expected) == {"resume"}


class AnswersAList(Sound):
    """Answers no tensor."""

    def forward(self, *given: Any) -> Any:
        return super().forward(*given).tolist()


class Detached(Sound):
    """Nothing that it answers reaches the student."""

    def forward(self, *given: Any) -> Tensor:
        return super().forward(*given).detach()


class RaisesInItsFile(Sound):
    """Has a mistake in it."""

    def forward(self, *given: Any) -> Tensor:
        raise KeyError("layer3")


def test_where_there_is_no_value_a_sample_that_is_said_once() -> None:
    checks = ["one_value_a_sample", "gradients", "resume", "class_weights", "alone"]
    first, *others = run_checks(Mean, checks=checks)
    assert "it answered a tensor () for 6 samples" in first.reason
    said = "its failure says nothing while one_value_a_sample fails"
    assert {(other.status, other.reason) for other in others} == {("not applicable", said)}


def test_who_compares_nothing_is_not_told_of_partners() -> None:
    for mutant in (MeanOfTheBatch, HalfDetached):
        (result,) = run_checks(mutant, checks=["class_weights"])
        assert result.status != "failed"


@pytest.mark.parametrize(
    ("mutant", "said"),
    [
        (AnswersAList, "it answered list for 6 samples; it must be one value a sample, (6,)"),
        (MeanOfTheBatch, "every sample has the same value, and no two are alike; is it averaged"),
        (HalfDetached, "no gradient reaches the student's layer 1, which is one of its layers"),
        (NoSlopeAtZero, "its gradient is not finite where the student's outputs are the teacher's"),
        (NoSlopeForDeadFeatures, "gradient is not finite where the student's features are all 0"),
        (NormalizesTheWeights, "it changed batch.weights in place: other losses read it too"),
        (Detached, "its answer has no gradient: something detaches the student"),
        (RaisesInItsFile, "it raised KeyError: 'layer3' (test_loss_mutants.py:"),
        (Waits, "it waits for a number to come back"),
        (PlainMean, "a tensor that stayed on the CPU meets one on the GPU (aten."),
    ],
)
def test_what_is_said_is_meant_for_people(mutant: type[kdzoo.Loss], said: str) -> None:
    checks = ["one_value_a_sample", "gradients", "leaves_its_inputs_alone", "device"]
    failed = [result for result in run_checks(mutant, checks=checks) if result.status == "failed"]
    assert said in failed[0].reason


def test_layers_and_adapters_of_other_shapes() -> None:
    tokens: dict[str, Any] = {
        "entry": {"adapter": "linear", "layers": {"student": 7, "teacher": "penultimate"}},
        "shapes": {7: ((16, 8), (1,)), "penultimate": ((1,), (16, 12))},
    }
    assert caught(Hint, checks=QUICK) == set()
    assert caught(Hint, checks=QUICK, **tokens) == set()


@pytest.mark.parametrize(("mutant", "check"), EXACTLY)
def test_one_check_alone_catches_it(mutant: type[kdzoo.Loss], check: str) -> None:
    assert caught(mutant, checks=QUICK) == {check}


@pytest.mark.parametrize(("mutant", "checks"), SEVERAL)
def test_these_checks_catch_it(mutant: type[kdzoo.Loss], checks: set[str]) -> None:
    assert caught(mutant, checks=QUICK) == checks


COMPILED = [OtherWhenCompiled, OverwritesWhatItReads, BreaksTheGraph, OtherColumnsWhenCompiled]


@pytest.mark.parametrize("mutant", COMPILED)
def test_a_compiled_step_catches_it(mutant: type[kdzoo.Loss]) -> None:
    assert caught(mutant, checks=[*QUICK, "compiled"]) == {"compiled"}


ALSO: dict[type[kdzoo.Loss], set[str]] = {
    # No graph can hold these.
    AsksTheTeacher: {"compiled"},
    Waits: {"compiled"},
    OverwritesWhatItReads: {"two_processes"},  # nobody gathers its bank
    Spare: {"two_processes"},  # DDP waits for the gradient of each parameter
}


@pytest.mark.slow
@pytest.mark.parametrize("mutant", dict.fromkeys([*ALSO, *COMPILED, OwnBank]))
def test_the_costly_checks_catch_what_is_said(mutant: type[kdzoo.Loss]) -> None:
    theirs = {"compiled"} if mutant in COMPILED else set()
    theirs |= {"two_processes"} if mutant is OwnBank else set()
    assert caught(mutant, checks=COSTLY) == theirs | ALSO.get(mutant, set())


def test_two_processes_catch_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert caught(OwnBank, checks=[*QUICK, "two_processes"]) == {"two_processes"}
    with monkeypatch.context() as patch:
        patch.setattr(processes, "_ANSWERING", 2.0)
        (result,) = run_checks(WaitsInVain, checks=["two_processes"])
    assert "within 2 s. One may wait for what the other never sends" in result.reason
    assert caught(Sound, checks=["two_processes"]) == set()  # a new pair was started


def _widen(rank: int) -> None:
    torch.set_default_dtype(torch.float64)


def _width(rank: int) -> torch.dtype:
    return torch.get_default_dtype()


def test_what_one_changes_in_two_processes_is_put_back_for_the_next() -> None:
    processes.in_two_processes(_widen)
    assert processes.in_two_processes(_width) == [torch.float32] * 2


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_the_real_compiler_catches_it() -> None:
    assert caught(Noisy, checks=["compiled_for_real"]) == set()
    assert caught(OtherWhenCompiled, checks=["compiled_for_real"]) == {"compiled_for_real"}
    compilers = ["compiled", "compiled_for_real"]
    assert caught(SaysAnotherLayout, checks=[*QUICK, *compilers]) == {"compiled_for_real"}


def test_every_check_is_proved() -> None:
    assert {check for _, check in EXACTLY} == set(QUICK)
