"""The Distiller and its traps: each of these tests fails without the mend it is about."""

from __future__ import annotations

import copy
import re
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import kdzoo
from kdzoo.distill.network import Network

CLASSES = tuple("abcde")


def convnet(width: int = 6, classes: int = 5) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(1, width, 3, padding=1),
            bn=nn.BatchNorm2d(width),
            relu=nn.ReLU(inplace=True),
            pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            head=nn.Linear(width, classes),
        )
    )


def batch(rows: int = 8, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.rand(rows, 1, 6, 6, generator=generator)
    return inputs, torch.arange(rows) % 5, torch.arange(rows)


def distiller(
    losses: list[Any] | None = None,
    teacher: nn.Module | None = None,
    student: nn.Module | None = None,
    **options: Any,
) -> kdzoo.Distiller:
    torch.manual_seed(0)
    terms = kdzoo.terms(losses or [{"use": "ce", "weight": 0.1}, {"use": "kd", "weight": 0.9}])
    options = {"example": batch(2)[0], "classes": CLASSES, "num_samples": 100, **options}
    return kdzoo.Distiller(teacher or convnet(9), student or convnet(), terms, **options)


def feature_loss(student: Any, teacher: Any, **more: Any) -> list[Any]:
    layers = {"student": student, "teacher": teacher}
    return ["ce", {"use": "sample-feature", "layers": layers, **more}]


class Spy(kdzoo.Loss):
    """Keeps what it was given."""

    name = "spy"

    def forward(self, student, teacher, batch):
        self.student, self.teacher, self.batch = student, teacher, batch
        return (student.logits - teacher.logits).square().mean(1)


def spying(*pairs: tuple[Any, Any], **options: Any) -> tuple[kdzoo.Distiller, Spy]:
    spy = Spy()
    spy.layers = tuple(kdzoo.LayerPair(*pair) for pair in pairs)
    torch.manual_seed(0)
    made = kdzoo.Distiller(
        options.pop("teacher", None) or convnet(9),
        options.pop("student", None) or convnet(),
        [kdzoo.Term("spy", spy)],
        example=batch(2)[0],
        classes=CLASSES,
        num_samples=100,
        **options,
    )
    return made, spy


def test_the_total_is_the_weighted_sum_of_the_terms() -> None:
    made = distiller().train()
    inputs, targets, _ = batch()
    step = made(inputs, targets)
    assert set(step.terms) == {"ce", "kd"}
    torch.testing.assert_close(step.total, 0.1 * step.terms["ce"] + 0.9 * step.terms["kd"])
    wanted = nn.functional.cross_entropy(step.student.logits, targets)
    torch.testing.assert_close(step.terms["ce"], wanted)


def test_gradients_reach_the_student_and_the_losses_and_never_the_teacher() -> None:
    made = distiller(feature_loss("conv", "conv")).train()
    inputs, targets, indices = batch()
    made(inputs, targets, indices).total.backward()
    assert all(p.grad is not None for p in made.parameters())
    assert {name.split(".")[0] for name, _ in made.named_parameters()} == {"student", "losses"}
    assert made.teacher is not None
    assert all(p.grad is None and not p.requires_grad for p in made.teacher.parameters())


def test_the_teachers_batch_norm_stays_still_whoever_calls_train() -> None:
    made = distiller()
    assert made.teacher is not None
    before = copy.deepcopy(made.teacher.state_dict())
    made.train()
    assert not made.teacher.training
    made(*batch()[:2])
    made.teacher.train()  # somebody else's loop does this
    made(*batch()[:2])
    after = made.teacher.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    student = made.student.get_submodule("bn")
    assert student.num_batches_tracked == 2


def test_the_teachers_outputs_can_be_saved_for_the_backward_pass() -> None:
    """Under inference_mode this raises: inference tensors cannot be saved for backward."""
    made, spy = spying(("conv", "conv"))
    made.train()
    made(*batch()[:2])
    for tensor in (spy.teacher.logits, spy.teacher.features["conv"]):
        assert not tensor.is_inference()
        assert not tensor.requires_grad
        weight = torch.ones_like(tensor, requires_grad=True)
        (weight * tensor).sum().backward()
        assert torch.equal(weight.grad, tensor)


class InPlaceLater(nn.Module):
    """Overwrites its convolution's output, in train mode by dropout only."""

    def __init__(self, only_in_training: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.head = nn.Linear(4, 5)
        self.only_in_training = only_in_training

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.training or not self.only_in_training:
            x = nn.functional.relu(x, inplace=True)
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("only_in_training", [False, True])
def test_a_tap_keeps_what_a_later_in_place_operation_overwrites(only_in_training: bool) -> None:
    student = InPlaceLater(only_in_training)
    made, spy = spying(("conv", "bn"), student=student)
    made.train()
    inputs, targets, _ = batch()
    made(inputs, targets)
    torch.testing.assert_close(spy.student.features["conv"], student.conv(inputs))
    assert (spy.student.features["conv"] < 0).any()
    assert made.teacher is not None
    teacher = made.teacher
    wanted = teacher.get_submodule("bn")(teacher.get_submodule("conv")(inputs))
    torch.testing.assert_close(spy.teacher.features["bn"], wanted)
    assert (wanted < 0).any()


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3)
        self.relu = nn.ReLU()
        self.spare = nn.Linear(4, 4)
        self.lstm = nn.LSTM(4, 4, batch_first=True)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.b(self.relu(self.a(x)))).mean((2, 3))
        return self.head(self.lstm(x[:, None])[0][:, 0])


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("relu", r'layer "relu" of the student runs 2 times in a forward pass \(a shared module\)'),
        ("spare", 'layer "spare" of the student does not run'),
        ("lstm", 'layer "lstm" of the student gives tuple, not one tensor'),
        ("rely", 'the student has no layer "rely"; did you mean "relu"?'),
        (0, "the student has no stage 0; its model declares none"),
    ],
)
def test_a_tap_that_would_lie_is_refused(layer: Any, message: str) -> None:
    with pytest.raises(kdzoo.SpecError, match=message):
        spying((layer, "conv"), student=Shared())


def test_a_name_is_no_term() -> None:
    with pytest.raises(kdzoo.SpecError, match=r"a term is 'ce'; .* kdzoo\.terms"):
        kdzoo.Distiller(
            None,
            convnet(),
            ["ce"],  # type: ignore[list-item]
            example=batch(2)[0],
            classes=CLASSES,
            num_samples=100,
        )


def test_layers_by_stage_by_role_and_by_path() -> None:
    layers = kdzoo.Layers(stages=("conv", "bn"), penultimate="flat", head="head")
    made, spy = spying(
        (1, 0), ("penultimate", "flat"), ("head", "head"), student_layers=layers,
        teacher_layers=layers,
    )  # fmt: skip
    made(*batch()[:2])
    assert set(spy.student.features) == {1, "penultimate", "head"}
    assert spy.student.features["penultimate"].shape == (8, 6)
    assert torch.equal(spy.student.features["head"], spy.student.logits)
    assert spy.teacher.features[0].shape == (8, 9, 6, 6)
    with pytest.raises(kdzoo.SpecError, match="no stage 2; its model declares 0 to 1"):
        spying((2, 0), student_layers=layers, teacher_layers=layers)


@pytest.mark.parametrize(
    ("layers", "layer", "message"),
    [
        (
            kdzoo.Layers(stages=("conv", "model.bn")),
            1,
            'no layer "model.bn", which its model declares as stage 1; inside kdzoo.Network it is '
            '"bn"',
        ),
        (
            kdzoo.Layers(stages=("conv", "relo")),
            1,
            'no layer "relo", which its model declares as stage 1; did you mean "relu"?',
        ),
        (
            kdzoo.Layers(penultimate="flatt"),
            "penultimate",
            'no layer "flatt", which its model declares as "penultimate"; did you mean "flat"?',
        ),
        (kdzoo.Layers(), "model.bn", 'no layer "model.bn"; inside kdzoo.Network it is "bn"'),
    ],
)
def test_a_declared_layer_that_is_not_there_is_named_with_the_one_that_is(
    layers: kdzoo.Layers, layer: Any, message: str
) -> None:
    teacher = Network(convnet(9), [0.5], [0.25])
    with pytest.raises(kdzoo.SpecError, match=re.escape(f'loss "spy": the teacher has {message}')):
        spying(("conv", layer), teacher=teacher, teacher_layers=layers)


def test_probing_leaves_no_trace() -> None:
    student = nn.Sequential(convnet(6, 8), nn.Dropout(), nn.Linear(8, 5))
    student[1].eval()
    before = copy.deepcopy(student.state_dict())
    torch.manual_seed(0)
    random_state = torch.get_rng_state()
    teacher = convnet(9)
    torch.manual_seed(0)
    loss = kdzoo.terms(["ce"])
    kdzoo.Distiller(teacher, student, loss, example=batch(1)[0], classes=CLASSES, num_samples=9)
    assert torch.equal(torch.get_rng_state(), random_state)
    after = student.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert student.training
    assert not student[1].training


def test_nothing_is_kept_between_steps_or_outside_of_them() -> None:
    made, _ = spying(("conv", "conv"))
    made.student(batch()[0])
    made(*batch()[:2])
    assert all(tap.value is None for tap in made._student._taps.values())


def test_the_state_dict_has_no_teacher_and_all_the_rest() -> None:
    made = distiller(feature_loss("conv", "conv")).train()
    names = made.state_dict().keys()
    assert {name.split(".")[0] for name in names} == {
        "student",
        "losses",
        "curves",
        "teacher_weights",
        "label_weights",
        "class_columns",
        "class_states",
        "_extra_state",
    }
    teacher = made.teacher
    assert teacher is not None
    for tensor in made.state_dict().values():
        if isinstance(tensor, Tensor):
            assert all(tensor.data_ptr() != t.data_ptr() for t in teacher.state_dict().values())


def test_a_policy_never_changes_shapes_and_leaves_other_gradients_as_they_were() -> None:
    """Dropping a class leaves a per-sample loss's gradients of the other samples bit for bit."""
    inputs, targets, _ = batch(10)
    gradients = []
    for dropped in ([], ["a", "c"], ["a", "b", "c"]):
        left = 0.0 if dropped else 1.0
        listed = dropped or ["a"]
        policy = _policy("fixed", classes=listed, teacher_weight=left, label_weight=left)
        torch.manual_seed(1)
        student = nn.Sequential(nn.Flatten(), nn.Linear(36, 5))  # without batch norm
        made = distiller(["ce", "kd"], student=student, policy=policy)
        step = made.train()(inputs, targets)
        step.student.logits.retain_grad()
        step.total.backward()
        assert step.student.logits.shape == (10, 5)
        gradients.append(step.student.logits.grad)
    kept = ~torch.isin(targets, torch.tensor([0, 2]))
    assert torch.equal(gradients[0][kept], gradients[1][kept])
    assert (gradients[0][~kept] != 0).any()
    assert (gradients[1][~kept] == 0).all()
    assert (gradients[2][targets < 3] == 0).all()


def _policy(use: str, **params: Any) -> kdzoo.ClassPolicy:
    from kdzoo.extend.bases import ClassPolicy
    from kdzoo.extend.registry import registry

    policy: kdzoo.ClassPolicy = registry().make(ClassPolicy.kind, use, params)
    return policy


def test_each_term_gets_the_policys_weights_for_its_guidance() -> None:
    policy = _policy("fixed", classes=["b"], teacher_weight=0.0, label_weight=3.0)
    made = distiller(["ce", "kd"], policy=policy).train()
    inputs, targets, _ = batch()
    step = made(inputs, targets)
    rows = nn.functional.cross_entropy(step.student.logits, targets, reduction="none")
    wanted = torch.where(targets == 1, 3.0, 1.0) * rows
    torch.testing.assert_close(step.terms["ce"], wanted.sum() / len(targets))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"teacher": np.ones(4)}, r"answered teacher weights of shape \(4,\); they must be \(5,\)"),
        (
            {"teacher": np.array([1, 1, -1, 1, 1.0])},
            "or infinite; they must be finite and at least 0",
        ),
        ({"label": np.array([1, 1, np.nan, 1, 1])}, "are negative, NaN or infinite"),
        ({"columns": np.array([1, 1, 1.5, 1, 1])}, "answered columns above 1; .* 0 to 1"),
        ({"columns": np.ones(5), "sets_columns": False}, "columns, and its sets_columns is False"),
        ({"states": np.array([1, 7, 1, 1, 1])}, r"none of kdzoo.ClassState: \[7.0\]"),
        ({"states": np.array([1, 1.5, 1, 1, 1])}, r"none of kdzoo.ClassState: \[1.5\]"),
    ],
)
def test_a_policy_that_answers_nonsense_is_named(wrong: dict[str, Any], message: str) -> None:
    wrong = dict(wrong)

    class Nonsense(kdzoo.ClassPolicy):
        """Answers nonsense."""

        name = "nonsense"
        sets_columns = wrong.pop("sets_columns", True)

        def update(self, curves):
            return kdzoo.ClassWeights(**{"teacher": np.ones(5), "label": np.ones(5), **wrong})

    made = distiller(policy=Nonsense()).train()
    made(*batch()[:2])
    with pytest.raises(kdzoo.PluginError, match=f'policy "nonsense" .*{message}'):
        made.end_epoch()


@pytest.mark.parametrize(
    "name", ["needs_baseline", "needs_validation", "needs_similarity", "sets_columns"]
)
def test_a_policy_that_declares_something_else_than_yes_or_no_is_named(name: str) -> None:
    def forgotten_property(self: kdzoo.ClassPolicy) -> bool:
        return False

    plain = type(_policy("sample-alternating"))
    policy = type("Unclear", (plain,), {"name": "unclear", name: forgotten_property})()
    with pytest.raises(kdzoo.PluginError, match=f'"unclear" .*{name} is .*must be True or False'):
        distiller(policy=policy)


def test_a_policy_that_answers_no_class_weights_is_named() -> None:
    class Pair(kdzoo.ClassPolicy):
        """Answers a pair."""

        name = "pair"

        def initial(self, num_classes):
            return np.ones(num_classes), np.ones(num_classes)

        def update(self, curves):
            return None

    with pytest.raises(kdzoo.PluginError, match=r'"pair" answered tuple; it must be kdzoo\.Class'):
        distiller(policy=Pair())


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("mean", r"must be one value per sample, \(8,\)"),
        ("raise", r"failed: IndexError: index 7 is out of range \(sample\.py:\d+\)$"),
        ("peek", 'guidance = "label" reads teacher.logits; there is no teacher'),
    ],
)
def test_a_loss_that_breaks_its_contract_is_named(how: str, message: str) -> None:
    torch.manual_seed(0)
    terms = kdzoo.terms([{"use": "sample-careless", "how": how}])
    made = kdzoo.Distiller(
        None, convnet(), terms, example=batch(2)[0], classes=CLASSES, num_samples=9
    )
    with pytest.raises(kdzoo.PluginError, match=message):
        made(*batch()[:2])


def test_what_does_not_fit_together_is_refused() -> None:
    many = "the teacher answers 7 classes, but the data has 5; give its last layer as many outputs"
    with pytest.raises(kdzoo.SpecError, match=many):
        distiller(teacher=convnet(9, 7))
    for policy in ({"use": "tllm"}, "tllm", type(_policy("tllm"))):
        with pytest.raises(kdzoo.SpecError, match=r"must be an instance of a class policy"):
            distiller(policy=policy)
    with pytest.raises(kdzoo.SpecError, match=r"must answer logits \(B, C\), not \(2, 1, 6, 6\)"):
        distiller(student=nn.Conv2d(1, 1, 1))
    alone = 'loss "kd" follows a teacher, and there is none; pass a teacher, or remove the loss'
    with pytest.raises(kdzoo.SpecError, match=alone):
        kdzoo.Distiller(
            None,
            convnet(),
            kdzoo.terms(["kd"]),
            example=batch(2)[0],
            classes=CLASSES,
            num_samples=9,
        )
    with pytest.raises(kdzoo.SpecError, match="remembers samples: pass their indices"):
        distiller(feature_loss("conv", "conv"))(*batch()[:2])
    with pytest.raises(kdzoo.SpecError, match='unknown parameter of loss "kd"'):
        kdzoo.terms([{"use": "kd", "temprature": 4}])


def test_warm_up_counts_epochs_from_one() -> None:
    made = distiller([{"use": "kd", "weight": 2.0, "warmup_epochs": 4}])
    for progress, factor in ((0.0, 0.25), (0.9, 0.25), (1.0, 0.5), (3.0, 1.0), (9.5, 1.0)):
        step = made(*batch()[:2], progress=progress)
        torch.testing.assert_close(step.total, 2.0 * factor * step.terms["kd"])


def test_without_progress_the_epochs_that_were_closed_count() -> None:
    made = distiller([{"use": "kd", "weight": 1.0, "warmup_epochs": 2}]).train()
    first = made(*batch()[:2])
    torch.testing.assert_close(first.total, 0.5 * first.terms["kd"])
    made.end_epoch()
    second = made(*batch()[:2])
    torch.testing.assert_close(second.total, second.terms["kd"])


def test_a_student_that_shares_the_teachers_parameters_is_refused() -> None:
    network = convnet()
    with pytest.raises(kdzoo.SpecError, match="teacher and student share parameters"):
        distiller(teacher=network, student=network)


def test_the_curves_are_what_was_seen() -> None:
    made = distiller().train()
    seen = []
    for seed in range(3):
        inputs, targets, _ = batch(7, seed)
        step = made(inputs, targets)
        assert made.teacher is not None
        seen.append((targets, step.student.logits.detach(), made.teacher(inputs).detach()))
    curves = made.end_epoch()
    targets, student, teacher = (torch.cat(parts) for parts in zip(*seen, strict=True))
    for label in range(5):
        rows = targets == label
        s, t = student[rows], teacher[rows]
        assert curves.samples[0, label] == rows.sum()
        assert curves.student[0, label] == pytest.approx((s.argmax(1) == label).double().mean())
        assert curves.teacher[0, label] == pytest.approx((t.argmax(1) == label).double().mean())
        same = (s.argmax(1) == t.argmax(1)).double().mean()
        assert curves.agreement[0, label] == pytest.approx(same)
        kl = nn.functional.kl_div(s.log_softmax(1), t.softmax(1), reduction="none").sum(1).mean()
        assert curves.divergence[0, label] == pytest.approx(kl.item(), rel=1e-5)
    made.eval()
    made(*batch()[:2])
    assert made.end_epoch().samples[1].sum() == 0  # evaluation leaves no mark


def test_two_runs_are_compared_image_by_image() -> None:
    rows = 40
    inputs, targets, _ = batch(rows)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(0))
    right: list[list[Tensor]] = [[], []]

    def train(made: kdzoo.Distiller, kept: list[Tensor]) -> kdzoo.TeachingCurves:
        for _ in range(2):
            made.train()
            seen = torch.zeros(rows, dtype=torch.bool)
            for part in order[:30].split(7):
                with torch.no_grad():
                    step = made(inputs[part], targets[part], part)
                seen[part] = step.student.logits.argmax(1) == targets[part]
                made.student.head.bias += torch.randn(5)
            made.eval()
            made.validate(inputs[order[30:]], targets[order[30:]], order[30:])
            seen[order[30:]] = made.student(inputs[order[30:]]).argmax(1) == targets[order[30:]]
            kept.append(seen)
            curves = made.end_epoch()
        return curves

    torch.manual_seed(1)
    one, two = (distiller(student=convnet(), num_samples=rows).requires_grad_(False) for _ in "ab")
    one.curves.keep_right_rows(rows)
    assert train(one, right[0]).both_right is None
    two.curves.compare_right_rows(rows, one.curves.right_rows())
    curves = train(two, right[1])
    for epoch in range(2):
        both = right[0][epoch] & right[1][epoch]
        for shown, part in ((curves, order[:30]), (curves.validation, order[30:])):
            assert shown is not None
            counts = torch.bincount(targets[part][both[part]], minlength=5)
            np.testing.assert_allclose(shown.both_right[epoch] * shown.samples[epoch], counts)


def test_a_distiller_goes_on_exactly_from_its_state_dict() -> None:
    def fresh() -> tuple[kdzoo.Distiller, torch.optim.Optimizer]:
        made = distiller(
            [*feature_loss("conv", "conv", noise=0.1), "kd"], policy=_policy("sample-alternating")
        ).train()
        return made, torch.optim.SGD(made.parameters(), lr=0.1, momentum=0.9)

    def epoch(made: kdzoo.Distiller, optimizer: torch.optim.Optimizer, number: int) -> None:
        torch.manual_seed(number)
        for seed in range(3):
            optimizer.zero_grad()
            made(*batch(7, seed)).total.backward()
            optimizer.step()
        made.end_epoch()

    whole, optimizer = fresh()
    for number in range(3):
        epoch(whole, optimizer, number)
        if number == 0:
            saved = copy.deepcopy((whole.state_dict(), optimizer.state_dict()))
    again, optimizer = fresh()
    again.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    for number in (1, 2):
        epoch(again, optimizer, number)
    for (name, one), other in zip(
        whole.state_dict().items(), again.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other) if isinstance(one, Tensor) else True, name
    assert whole.policy.state_dict() == again.policy.state_dict() == {"dropped": 3}
    for one, other in zip(whole.curves.history, again.curves.history, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            torch.testing.assert_close(one[name], other[name], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("source", ["training", "validation"])
def test_features_are_compared_where_the_policy_reads_them_and_kept_in_mid_epoch_alone(
    source: str,
) -> None:
    layers = kdzoo.Layers(penultimate="flat", head="head")

    def fresh() -> kdzoo.Distiller:
        policy = _policy("tllm", signal="cka", source=source)
        options: dict[str, Any] = {"teacher_layers": layers, "student_layers": layers}
        images = torch.arange(250) % 5  # as many as the policy asks for
        options |= {"num_samples": 250, "targets": images, "validation_targets": images}
        return distiller(policy=policy, **options).train()

    def show(made: kdzoo.Distiller, seed: int) -> None:
        with torch.no_grad():
            made(*batch(40, seed))
        made.validate(*batch(40, 10 + seed))

    def held(made: kdzoo.Distiller) -> int:
        state = made.curves.state_dict().values()
        return sum(value.numel() for value in state if isinstance(value, Tensor))

    whole = fresh()
    show(whole, 0)
    saved = copy.deepcopy(whole.state_dict())
    show(whole, 1)
    middle = held(whole)
    curves = whole.end_epoch()
    assert held(whole) == 2 * 5 * 8 < middle  # the counts alone, of both kinds of images
    again = fresh()
    again.load_state_dict(saved)
    show(again, 1)
    other = again.end_epoch()
    assert curves.validation is not None
    assert other.validation is not None
    for which, one, two in (
        ("training", curves.similarity, other.similarity),
        ("validation", curves.validation.similarity, other.validation.similarity),
    ):
        np.testing.assert_array_equal(one, two)
        assert np.isfinite(one).all() if which == source else np.isnan(one).all()


def test_a_deep_copy_is_independent() -> None:
    made = distiller(feature_loss("conv", "conv")).train()
    copied = copy.deepcopy(made)
    inputs, targets, indices = batch()
    one, other = made(inputs, targets, indices), copied(inputs, targets, indices)
    assert torch.equal(one.total, other.total)
    other.total.backward()
    assert all(parameter.grad is None for parameter in made.parameters())


def test_moving_the_distiller_moves_the_teacher() -> None:
    made = distiller().double().train()
    assert made.teacher is not None
    assert {p.dtype for p in made.teacher.parameters()} == {torch.float64}
    inputs, targets, _ = batch()
    made(inputs.double(), targets).total.backward()


def test_layers_of_a_network_are_named_as_in_its_bare_model() -> None:
    student = Network(convnet(), [0.5], [0.25])
    made, spy = spying(("conv", "conv"), student=student)
    inputs, targets, _ = batch()
    made(inputs, targets)
    wanted = student.model.get_submodule("conv")((inputs - 0.5) / 0.25)
    torch.testing.assert_close(spy.student.features["conv"], wanted)
    assert [name for name, _ in made.learnable()][0] == "student.conv.weight"  # noqa: RUF015
    assert "mean" not in student.state_dict()


def test_a_plain_training_loop() -> None:
    torch.manual_seed(0)
    inputs, targets, _ = batch(60)
    loader = [(inputs[i : i + 20], targets[i : i + 20]) for i in (0, 20, 40)]
    teacher, student = convnet(9), convnet()

    # The fifteen lines that anybody's loop needs.
    distiller = kdzoo.Distiller(
        teacher,
        student,
        kdzoo.terms([{"use": "ce", "weight": 0.1}, {"use": "kd", "weight": 0.9}]),
        example=inputs[:2],
        classes=CLASSES,
        num_samples=60,
    )
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.05, momentum=0.9)
    distiller.train()
    totals = []
    for _epoch in range(8):
        for images, labels in loader:
            step = distiller(images, labels)
            optimizer.zero_grad()
            step.total.backward()
            optimizer.step()
        distiller.end_epoch()
        totals.append(step.total.item())
    assert totals[-1] < totals[0]
    assert len(distiller.curves.history) == 8


def test_the_state_dict_knows_where_the_stage_began() -> None:
    """A warm-up goes on where it was, in a loop that gives no progress."""

    def fresh() -> kdzoo.Distiller:
        made = distiller([{"use": "ce"}, {"use": "kd", "warmup_epochs": 4}])
        made.begin_stage(made.terms, None)
        return made

    made, inputs = fresh(), batch()
    made.end_epoch()
    made.begin_stage(made.terms, None)  # the second stage
    made.end_epoch()
    again = fresh()
    again.load_state_dict(made.state_dict())
    assert torch.equal(again(*inputs).total, made(*inputs).total)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.tensor([0, 5]), "targets are 0 to 5; they must be 0 to 4"),
        (torch.tensor([-1, 2]), "targets are -1 to 2; they must be 0 to 4"),
        (
            torch.tensor([0.0, 1.0]),
            r"targets are torch.float32 of shape \(2,\); they must be int64",
        ),
        (torch.tensor([1]), r"of shape \(1,\); they must be int64 \(2,\), one per image"),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_targets_that_cannot_be_are_refused(targets: Tensor, message: str, training: bool) -> None:
    made = distiller().train(training)
    with pytest.raises(kdzoo.SpecError, match=message):
        made(batch(2)[0], targets)


@pytest.mark.parametrize("show", ["step", "validate"])
def test_images_that_cannot_be_are_refused(show: str) -> None:
    made, (inputs, targets, _) = distiller(), batch(2)
    shown = made if show == "step" else made.validate
    with pytest.raises(kdzoo.SpecError, match="the batch has no images; leave it out"):
        shown(inputs[:0], targets[:0])
    with pytest.raises(
        kdzoo.SpecError, match=r"images are torch\.uint8, and the example .* / 255`"
    ):
        shown(inputs.byte(), targets)


def test_a_model_may_take_bytes_and_what_cannot_is_told_of_them() -> None:
    class FromBytes(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.model(images.float() / 255)
            return logits

    inputs, targets, _ = batch(4)
    images = (inputs * 255).byte()
    made = distiller(
        student=FromBytes(convnet()), teacher=FromBytes(convnet(9)), example=images[:2]
    )
    assert made(images, targets).student.logits.shape == (4, 5)
    message = r"the student, on images \(2, 1, 6, 6\) of torch\.uint8 \(most models take floats"
    with pytest.raises(kdzoo.PluginError, match=message):
        distiller(example=images[:2])
    with pytest.raises(kdzoo.SpecError, match=r"torch\.uint8; they must be floats in \[0, 1\]"):
        distiller(student=Network(convnet(), [0.5], [0.25]), example=images[:2])


def test_a_layer_that_no_model_declares_and_a_single_class_are_refused() -> None:
    with pytest.raises(
        kdzoo.SpecError, match=r'loss "sample-feature": the student.s model declares'
    ):
        distiller(feature_loss("penultimate", "flat"))
    with pytest.raises(kdzoo.SpecError, match="`classes` has one name; at least 2 are needed"):
        distiller(classes=["a"], teacher=convnet(9, 1), student=convnet(6, 1))
    with pytest.raises(kdzoo.SpecError, match='two classes have the same name, "b"; give each its'):
        distiller(classes=["a", "b", "c", "b", "d"])
    with pytest.raises(
        kdzoo.SpecError, match="losses must be a list of names and mappings, not 'kd'"
    ):
        kdzoo.terms("kd")


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_chunked_teacher_says_the_same_in_any_batch(layout: torch.memory_format) -> None:
    made, spy = spying(("conv", "conv"), teacher=convnet(8))
    made.train()
    images = torch.rand(70, 1, 6, 6).contiguous(memory_format=layout)
    assert made.chunk_teacher(images[:16])
    targets = torch.arange(70) % 5
    made(images, targets)
    logits, feature = spy.teacher.logits, spy.teacher.features["conv"]
    assert logits.shape == (70, 5)
    for first, count in ((0, 16), (3, 1), (40, 30)):
        part = slice(first, first + count)
        made(images[part], targets[part])
        assert torch.equal(spy.teacher.logits, logits[part])
        assert torch.equal(spy.teacher.features["conv"], feature[part])
        assert spy.teacher.features["conv"].stride() == feature.stride()


class Products(kdzoo.Loss):
    """Compares samples with each other, as relational losses do."""

    name = "products"

    def forward(self, student, teacher, batch):
        x = student.logits.float()
        self.seen = student.logits.dtype, teacher.logits.dtype, (x @ x.T).dtype
        return (x @ x.T - teacher.logits @ teacher.logits.T).square().mean(1)


def test_losses_compute_in_single_precision_whatever_the_networks_compute_in() -> None:
    loss = Products()
    terms = [kdzoo.Term("products", loss)]
    options = {"example": batch(2)[0], "classes": CLASSES, "num_samples": 100}
    made = kdzoo.Distiller(convnet(9), convnet(), terms, **options).train()
    with torch.autocast("cpu", torch.bfloat16):
        step = made(*batch())
    assert step.student.logits.dtype == torch.bfloat16
    assert loss.seen == (torch.float32,) * 3
    step.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.student.parameters())


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("batch.weights", lambda s, t, b: b.weights.fill_(7)),
        ("batch.inputs", lambda s, t, b: b.inputs[0].zero_()),
        ("batch.targets", lambda s, t, b: b.targets.add_(1)),
        ("batch.indices", lambda s, t, b: b.indices.zero_()),
        ("student.logits", lambda s, t, b: s.logits.detach().float().zero_()),
        (r"teacher.features\['conv'\]", lambda s, t, b: t.features["conv"].relu_()),
    ],
)
def test_a_loss_that_changes_what_others_are_given_is_named(name: str, change: Any) -> None:
    class Changing(Spy):
        name = "changing"

        def forward(self, student, teacher, batch):
            change(student, teacher, batch)
            return (student.logits - teacher.logits).square().mean(1)

    loss = Changing()
    loss.layers = (kdzoo.LayerPair("conv", "conv"),)
    options = {"example": batch(2)[0], "classes": CLASSES, "num_samples": 100}
    terms = [kdzoo.Term("changing", loss)]
    made = kdzoo.Distiller(convnet(9), convnet(), terms, **options).train()
    with pytest.raises(kdzoo.PluginError, match=f'loss "changing" changes {name} in place'):
        made(*batch())


def test_known_outputs_of_the_teacher_are_not_computed_again() -> None:
    made, spy = spying(("conv", "conv"))
    inputs, targets, indices = batch()
    made.train()(inputs, targets, indices)
    known = spy.teacher
    made.teacher.forward = None  # it would fail if it were called
    made(inputs, targets, indices, taught=known)
    assert spy.teacher is known
    for wrong, said in (
        (kdzoo.Outputs(known.logits[:, 1:], known.features), "logits must be"),
        (kdzoo.Outputs(known.logits[1:], known.features), "logits must be"),
        (kdzoo.Outputs(known.logits), 'layer "conv" is missing'),
    ):
        with pytest.raises(kdzoo.SpecError, match=f"the teacher's outputs: {said}"):
            made(inputs, targets, indices, taught=wrong)
