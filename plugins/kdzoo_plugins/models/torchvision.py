"""The classification models of torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import kdzoo
from kdzoo_plugins.models._foreign import ENTRANCE, mark_entrance

__all__ = ["Torchvision"]

_TRUNKS = ("features", "layers", "trunk_output", "blocks")  # where a model keeps its stages
_POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)


class Torchvision(kdzoo.ModelSource):
    """A classification model of torchvision.

    Its stages are the last module at each height and width, (C, H, W) each; Swin's are (H, W, C),
    and a ViT's are its blocks, (tokens, C). The state dict is torchvision's, without the auxiliary
    classifiers of GoogLeNet and Inception.

    Weights were trained on the 1000 classes of ImageNet: where the data has another number, the
    classifier is a new one, and the model must be trained before it can teach.
    """

    name = "torchvision"

    class Params(kdzoo.Params):
        """What can be set."""

        model: str = kdzoo.Field(description="Its name in torchvision: resnet50, vit_b_16, ...")
        weights: str | None = kdzoo.Field(
            None,
            description="The name of its trained weights: DEFAULT, IMAGENET1K_V1, ... "
            "None for fresh ones.",
        )

    def build(self, input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        """See :meth:`kdzoo.ModelSource.build`."""
        channels, height, width = input_shape
        if channels != 3:
            raise kdzoo.SpecError(
                f"torchvision's models take images of 3 channels, and these have {channels}"
            )
        weights = None if self.weights_follow else self._weights()
        name = self.params.model
        options: dict[str, Any] = {}
        if weights is None:
            options["num_classes"] = num_classes
            if name.startswith("vit_"):
                options["image_size"] = height
            elif name.startswith("maxvit_"):
                options["input_size"] = (height, width)
            elif name in ("googlenet", "inception_v3"):
                options["init_weights"] = True
                # torchvision sets this with its weights, and no state dict tells of it.
                options["transform_input"] = self.params.weights is not None
        try:
            model: nn.Module = _models().get_model(name, weights=weights, **options)
        except (AssertionError, ValueError) as error:  # how they refuse a size of images
            raise kdzoo.SpecError(
                f"{name} cannot be built for images of {height}x{width} pixels: {error}"
            ) from error
        except OSError as error:
            assert weights is not None  # without them nothing is fetched
            folder = Path(torch.hub.get_dir()) / "checkpoints"
            raise kdzoo.CheckpointError(
                f"the weights of {name} cannot be fetched from {weights.url}: {error}; put that "
                f"file into {folder}"
            ) from error
        _drop_auxiliary(model)
        head = _head(model)
        if _classes(model.get_submodule(head)) != num_classes:
            _replace(model, head, num_classes)
        mark_entrance(model.get_submodule(head))
        try:
            _shapes(model, (height, width))
        except Exception as error:  # anything: it is their code that does not fit
            raise kdzoo.SpecError(
                f"{name} cannot take images of {height}x{width} pixels: {error}"
            ) from error
        self._layers = kdzoo.Layers(_stages(model), f"{head}.{ENTRANCE}", head)
        return model

    def layers(self) -> kdzoo.Layers:
        """See :meth:`kdzoo.ModelSource.layers`."""
        return self._layers

    def normalization(self) -> kdzoo.Normalization | None:
        """See :meth:`kdzoo.ModelSource.normalization`."""
        weights = self._weights()
        if weights is None:
            return None
        transforms = weights.transforms()
        return kdzoo.Normalization(tuple(transforms.mean), tuple(transforms.std))

    def pretrained(self) -> bool:
        """See :meth:`kdzoo.ModelSource.pretrained`."""
        return self.params.weights is not None

    def _weights(self) -> Any:
        """The member of torchvision's enumeration of the model's weights; ``None`` for none."""
        models = _models()
        name, weights = self.params.model, self.params.weights
        known = models.list_models(module=models)
        if name not in known:
            raise kdzoo.SpecError(
                f'torchvision has no classification model "{name}"{kdzoo.did_you_mean(name, known)}'
            )
        if weights is None:
            return None
        members = models.get_model_weights(name).__members__
        if weights not in members:
            raise kdzoo.SpecError(
                f'torchvision has no weights "{weights}" for {name}; it has {", ".join(members)}'
            )
        return members[weights]


def _models() -> Any:
    """torchvision.models, imported when it is needed: it takes a second."""
    try:
        import torchvision.models
    except Exception as error:  # built for another torch, it fails in more than one way
        reason = str(error).strip().splitlines()[0]
        raise kdzoo.SpecError(
            f"torchvision cannot be imported ({type(error).__name__}: {reason}); "
            f"install the one that belongs to torch {torch.__version__}"
        ) from error
    return torchvision.models


def _drop_auxiliary(model: Any) -> None:
    """GoogLeNet and Inception answer more than logits in train mode while they have these."""
    if getattr(model, "aux_logits", False):
        model.aux_logits = False
        for name in {"AuxLogits", "aux1", "aux2"} & set(model._modules):
            setattr(model, name, None)


def _head(model: nn.Module) -> str:
    """The classifier: in all of these models the last layer with weights that is defined."""
    layers = (n for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d)))
    return str(list(layers)[-1])


def _classes(head: nn.Module) -> int:
    return len(head.get_parameter("weight"))


def _replace(model: nn.Module, path: str, num_classes: int) -> None:
    old = model.get_submodule(path)
    new: nn.Module
    if isinstance(old, nn.Conv2d):  # SqueezeNet's
        new = nn.Conv2d(old.in_channels, num_classes, old.kernel_size)  # type: ignore[arg-type]
    else:
        assert isinstance(old, nn.Linear)
        new = nn.Linear(old.in_features, num_classes)
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, new)


def _stages(model: nn.Module) -> tuple[str, ...]:
    """The last module at each height and width, poolings aside, for images of 224x224 pixels:
    the numbers of the stages are those of the model, whatever the size of the images."""
    kind = type(model).__name__
    if kind == "VisionTransformer":
        blocks = model.get_submodule("encoder.layers").named_children()
        return tuple(f"encoder.layers.{name}" for name, _ in blocks)
    if kind == "MaxVit":
        blocks = model.get_submodule("blocks").named_children()
        return ("stem", *(f"blocks.{name}" for name, _ in blocks))
    last: dict[tuple[int, ...], str] = {}
    for path, shape in _shapes(model, (224, 224)).items():
        pooled = isinstance(model.get_submodule(path), _POOLS)
        if len(shape) == 4 and shape[2] > 1 and not pooled:
            last[shape[2:]] = path
    return tuple(last.values())


def _shapes(model: nn.Module, size: tuple[int, int]) -> dict[str, tuple[int, ...]]:
    """The shapes of its parts' outputs, in the order in which they run. Nothing is computed."""
    children = dict(model.named_children())
    trunk = next((name for name in _TRUNKS if name in children), None)
    paths: list[str] = []
    for name in children:
        if name == trunk:
            paths += [f"{name}.{part}" for part, _ in children[name].named_children()]
            break
        paths.append(name)
    shapes: dict[str, tuple[int, ...]] = {}

    def note(path: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                shapes[path] = tuple(output.shape)

        return model.get_submodule(path).register_forward_hook(hook)

    hooks = [note(path) for path in paths]
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    empty = {name: tensor.to("meta") for name, tensor in state.items()}
    training = model.training
    try:
        with torch.no_grad():
            images = torch.empty(2, 3, *size, device="meta")
            torch.func.functional_call(model.eval(), empty, images)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return shapes


@kdzoo.hookimpl
def kdzoo_models() -> list[type[kdzoo.ModelSource]]:
    """See :mod:`kdzoo.extend.hookspecs`."""
    return [Torchvision]
