"""The checks of model sources."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdzoo.distill.distiller import Distiller
from kdzoo.distill.terms import Term
from kdzoo.errors import SpecError
from kdzoo.extend.bases import Loss, ModelSource
from kdzoo.extend.contracts import Batch, Layer, LayerPair, Layers, Normalization, Outputs
from kdzoo.testing.checks import (
    Checks,
    ContractError,
    NotApplicable,
    after,
    require,
    slow,
    sometimes,
)
from kdzoo.testing.modules import close, gradients, refuse_another_when_compiled, same, seeded
from kdzoo.testing.scene import Labels

__all__ = ["ModelChecks"]

_OTHER_SHAPES = ((1, 8, 8), (3, 12, 16))

ImageShape = tuple[int, int, int]


class ModelChecks(Checks[ModelSource]):
    """What is asked of a model source.

    Args:
        component: the class that is checked.
        entry: what a spec says of it beside ``use``.
        folder: an empty directory.
        input_shape: (channels, height, width) of images that it must take.
        num_classes: how many classes it is built for.
    """

    base = ModelSource

    def __init__(
        self,
        component: type[ModelSource],
        entry: Mapping[str, Any] | Callable[[Path], Mapping[str, Any]],
        folder: Path,
        *,
        input_shape: ImageShape = (3, 32, 32),
        num_classes: int = 7,
    ) -> None:
        super().__init__(component, entry, folder)
        self.input_shape = input_shape
        self.num_classes = num_classes

    def logits(self) -> None:
        """It answers (B, C) floats, in train and eval mode, and for a single image too."""
        model = self._build()[1]
        for training, count in ((True, 2), (False, 2), (False, 1)):
            self._require_logits(model.train(training), count, self.input_shape)

    def other_images(self) -> None:
        """Images of other sizes are classified, or refused with a SpecError."""
        for shape in _OTHER_SHAPES:
            try:
                model = self._build(shape=shape)[1]
            except SpecError:
                continue
            except Exception as error:
                raise ContractError(
                    f"build({shape}, {self.num_classes}) raised {type(error).__name__}: {error}; "
                    "refuse with a kdzoo.SpecError"
                ) from error
            try:
                for training in (True, False):
                    self._require_logits(model.train(training), 2, shape)
            except Exception as error:
                raise ContractError(
                    f"it was built for images {shape}, and then fails: {error}; refuse with a "
                    "kdzoo.SpecError in build"
                ) from error

    def gradients(self) -> None:
        """Every weight has a finite gradient."""
        model = self._build()[1].train()
        logits = _logits(model, self._images(4))
        weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
        torch.autograd.backward((logits * weights).sum())
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                gradient = parameter.grad
                require(gradient is not None, f"its weight {name} has no gradient: it is not used")
                finite = gradient is not None and bool(gradient.isfinite().all())
                require(finite, f"the gradient of its weight {name} is not finite")

    def seed(self) -> None:
        """The seed of torch's global generator decides the weights, and nothing else does."""
        one, again, other = (self._build(seed=seed)[1].state_dict() for seed in (1, 1, 2))
        require(
            same(one, again),
            "the weights differ under the same seed: draw from torch's global generator alone",
        )
        if not self._make().pretrained():
            require(
                not same(one, other),
                "the weights are the same under every seed: draw from torch's global generator, "
                "and never seed it",
            )

    @sometimes
    def declared_layers(self) -> None:
        """The layers that it names run once and give one tensor each, the stages in order."""
        source, model = self._build()
        layers = source.layers()
        wanted = _declared(layers)
        if not wanted:
            raise NotApplicable("it names no layers")
        try:
            distiller = self._distiller(model, layers, wanted)
        except SpecError as error:
            raise ContractError(f"its layers() are not right: {error}") from error
        order: list[str] = []
        for path in layers.stages:
            model.get_submodule(path).register_forward_hook(
                lambda module, inputs, output, path=path: order.append(path)
            )
        with torch.no_grad():
            distiller.eval()(self._images(2), torch.arange(2))
        require(order == list(layers.stages), f"its stages run in the order {', '.join(order)}")

    @sometimes
    def classifier(self) -> None:
        """What the head answers are the logits, and the penultimate layer's output enters it."""
        source, model = self._build()
        layers = source.layers()
        if layers.head is None:
            raise NotApplicable("it names no head")
        seen: dict[str, Tensor] = {}

        def note(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
                seen[name] = output
                seen[f"before {name}"] = inputs[0]

            return hook

        for name, path in (("head", layers.head), ("penultimate", layers.penultimate)):
            if path is not None:
                model.get_submodule(path).register_forward_hook(note(name))
        with torch.no_grad():
            logits = _logits(model.eval(), self._images(2))
        answered = seen["head"].reshape(logits.shape) if "head" in seen else None
        require(
            answered is not None and torch.equal(answered, logits),
            f'what its head "{layers.head}" answers is not the logits',
        )
        if "penultimate" in seen:
            entering, given = seen["before head"], seen["penultimate"]
            require(
                entering.numel() == given.numel()
                and torch.equal(entering.reshape(-1), given.reshape(-1)),
                f'what its penultimate layer "{layers.penultimate}" answers does not enter the '
                "head",
            )

    def evaluation(self) -> None:
        """In eval mode it changes nothing of its own, and draws nothing."""
        model = self._build()[1].eval()
        before = copy.deepcopy(model.state_dict())
        with torch.no_grad():
            one, other = (seeded(seed, lambda: _logits(model, self._images(2))) for seed in (1, 2))
        require(same(before, model.state_dict()), "its state changed in eval mode")
        require(torch.equal(one, other), "its logits are drawn at random in eval mode")

    @after("evaluation")
    def images_alone(self) -> None:
        """In eval mode an image is classified without regard to the others."""
        model = self._build()[1].eval()
        images, order = self._images(4), torch.tensor([2, 0, 3])
        with torch.no_grad():
            whole, part = _logits(model, images.clone()), _logits(model, images[order])
        require(
            close(whole[order], part, 1e-3), "an image's logits depend on the others in eval mode"
        )

    def leaves_its_images_alone(self) -> None:
        """It changes nothing of the images, which the other network sees too."""
        model, images = self._build()[1].train(), self._images(2)
        given = images.clone()
        model(given)
        require(torch.equal(given, images), "it changed its images in place")

    @after("evaluation")
    def state_dict(self) -> None:
        """Its weights are plain tensors, and give another build the same logits."""
        model = self._build()[1]
        _logits(model.train(), self._images(4))  # the statistics of batch norm have moved
        state = model.state_dict()
        for name, value in state.items():
            require(isinstance(value, Tensor), f"{name} in its state dict is no tensor")
        fresh = self._build(seed=7)[1]
        try:
            fresh.load_state_dict(state)
        except RuntimeError as error:
            raise ContractError(f"another build cannot take its weights: {error}") from error
        with torch.no_grad():
            one, other = (_logits(each.eval(), self._images(2)) for each in (model, fresh))
        require(torch.equal(one, other), "another build that has its weights answers otherwise")

    def weights_follow(self) -> None:
        """Where all weights will be replaced, the model is the same but for their values."""
        source = self._make()
        source.weights_follow = True
        follows = source.build(self.input_shape, self.num_classes)
        plain, other = (
            {name: value.shape for name, value in _values(model)}
            for model in (self._build()[1], follows)
        )
        require(plain == other, "with weights_follow it builds another model")

    @after("evaluation")
    def copies(self) -> None:
        """A deep copy answers the same, and goes its own way."""
        model = self._build()[1]
        try:
            copied = copy.deepcopy(model)
        except Exception as error:
            raise ContractError(f"it cannot be copied: {type(error).__name__}: {error}") from error
        with torch.no_grad():
            one, other = (_logits(each.eval(), self._images(2)) for each in (model, copied))
        require(torch.equal(one, other), "its deep copy answers otherwise")
        before = copy.deepcopy(model.state_dict())
        with torch.no_grad():
            for _, value in _values(copied):
                value.zero_()
        require(same(before, model.state_dict()), "it shares its weights with a deep copy")

    def its_normalization(self) -> None:
        """What it says of normalization is a mean and a deviation above 0 a channel, or nothing."""
        source = self._build()[0]
        said = source.normalization()
        if said is None:
            require(isinstance(source.pretrained(), bool), "pretrained() must answer True or False")
            return
        channels = self.input_shape[0]
        require(
            isinstance(said, Normalization)
            and len(said.mean) == len(said.std) == channels
            and min(said.std) > 0,
            f"its normalization is {said}; it must be kdzoo.Normalization of {channels} channels, "
            "with deviations above 0",
        )

    def half_precision(self) -> None:
        """Finite in float16 under autocast."""
        self._under_autocast(torch.float16)

    def bfloat16(self) -> None:
        """Finite in bfloat16 under autocast."""
        self._under_autocast(torch.bfloat16)

    @slow
    @after("seed")
    def compiled(self) -> None:
        """It is compiled as one graph, with the same gradients (``aot_eager``)."""

        def measure(call: Callable[..., Tensor], model: nn.Module) -> dict[str, Tensor]:
            logits = seeded(1, lambda: _logits(call, self._images(4)))
            targets = torch.arange(4) % self.num_classes
            torch.autograd.backward(nn.functional.cross_entropy(logits, targets))
            return {"its logits": logits.detach(), "its gradients": gradients(model)}

        refuse_another_when_compiled(
            lambda: self._build()[1].train(), measure, "aot_eager", "the model"
        )

    def as_student_and_teacher(self) -> None:
        """One build teaches another in a Distiller, and stays as it was."""
        source, teacher = self._build(seed=1)
        student = self._build(seed=2)[1]
        layers = source.layers()
        distiller = Distiller(
            teacher,
            student,
            [Term("labels", Labels()), Term("reads", _Reads(_declared(layers)))],
            example=self._images(2),
            classes=[str(label) for label in range(self.num_classes)],
            num_samples=4,
            teacher_layers=layers,
            student_layers=layers,
        ).train()
        taught, learnt = (copy.deepcopy(each.state_dict()) for each in (teacher, student))
        optimizer = torch.optim.SGD(distiller.parameters(), lr=1e-3)
        total = distiller(self._images(4), torch.arange(4) % self.num_classes).total
        require(bool(total.isfinite()), "the total is NaN or infinite")
        total.backward()
        optimizer.step()
        require(same(taught, teacher.state_dict()), "as a teacher it changes in training")
        require(not same(learnt, student.state_dict()), "as a student it learns nothing")

    # What the checks are made of.

    def _use(self) -> None:
        source, model = self._build()
        source.layers(), source.normalization(), source.pretrained()
        torch.autograd.backward(_logits(model.train(), self._images(2)).sum())
        with torch.no_grad():
            _logits(model.eval(), self._images(2))

    def _build(
        self, seed: int = 0, shape: ImageShape | None = None
    ) -> tuple[ModelSource, nn.Module]:
        source = self._make()
        model = seeded(seed, lambda: source.build(shape or self.input_shape, self.num_classes))
        if not isinstance(model, nn.Module):
            raise ContractError(
                f"build answered {type(model).__name__}; it must be a torch.nn.Module"
            )
        return source, model

    def _images(self, count: int, shape: ImageShape | None = None) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.randn(count, *(shape or self.input_shape), generator=generator)

    def _require_logits(self, model: nn.Module, count: int, shape: ImageShape) -> None:
        with torch.no_grad():
            logits = _logits(model, self._images(count, shape))
        wanted = (count, self.num_classes)
        require(
            logits.shape == wanted,
            f"it answered a tensor {tuple(logits.shape)} for {count} images; it must be logits "
            f"{wanted}",
        )
        require(logits.dtype == torch.float32, f"it answered {logits.dtype} from float32")
        require(bool(logits.isfinite().all()), "its logits are NaN or infinite")

    def _distiller(self, model: nn.Module, layers: Layers, wanted: Iterable[Layer]) -> Distiller:
        loss = Labels()
        loss.layers = tuple(LayerPair(layer, layer) for layer in wanted)
        return Distiller(
            None,
            model,
            [Term("labels", loss)],
            example=self._images(2),
            classes=[str(label) for label in range(self.num_classes)],
            num_samples=4,
            student_layers=layers,
        )

    def _under_autocast(self, dtype: torch.dtype) -> None:
        model = self._build()[1].train()
        with torch.autocast("cpu", dtype=dtype):
            logits = _logits(model, self._images(4))
        require(bool(logits.isfinite().all()), f"its logits are not finite in {dtype}")


class _Reads(Loss):
    """Squared differences of all layers that it is given, and of the logits."""

    name = "kdzoo-testing-reads"

    def __init__(self, layers: Iterable[Layer]) -> None:
        super().__init__()
        self.layers = tuple(LayerPair(layer, layer) for layer in layers)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """See :meth:`kdzoo.Loss.forward`."""
        pairs = [(student.features[p.student], teacher.features[p.teacher]) for p in self.layers]
        pairs.append((student.logits, teacher.logits))
        return torch.stack([(s - t).square().flatten(1).mean(1) for s, t in pairs]).sum(0)


def _logits(model: Callable[[Tensor], Any], images: Tensor) -> Tensor:
    """What it answers, which must be a tensor."""
    logits = model(images)
    require(
        isinstance(logits, Tensor),
        f"it answered {type(logits).__name__} for {len(images)} images; it must be their logits, "
        "a tensor (B, C)",
    )
    answered: Tensor = logits
    return answered


def _values(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def _declared(layers: Layers) -> list[Layer]:
    """All layers that are named."""
    named: list[Layer] = list(range(len(layers.stages)))
    for name in ("penultimate", "head"):
        if getattr(layers, name) is not None:
            named.append(name)
    return named
