"""The models of torchvision and timm: their layers, their names, and what is refused."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from tapping import tapped
from torch import nn
from torchvision import models

import kdzoo
from kdzoo.extend.registry import registry


def source(use: str, **params: Any) -> kdzoo.ModelSource:
    return registry().make("model", use, params)


@pytest.fixture
def timm() -> Any:
    """The library, where the extra is installed."""
    return pytest.importorskip("timm", reason="pip install 'kdzoo[timm]'")


def train_a_step(
    model: nn.Module, layers: kdzoo.Layers, shape: tuple[int, int, int]
) -> kdzoo.Outputs:
    """The outputs in eval mode, after every weight was seen to have a gradient."""
    distiller = tapped(model, layers, torch.rand(2, *shape), 7)
    step = distiller.train()(torch.rand(4, *shape), torch.arange(4))
    step.total.backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
    with torch.no_grad():
        return distiller.eval()(torch.rand(2, *shape), torch.arange(2)).student


def assert_the_classifier_is_told_of(
    model: nn.Module, layers: kdzoo.Layers, outputs: kdzoo.Outputs
) -> None:
    assert layers.head is not None
    head = model.get_submodule(layers.head)
    assert isinstance(head, nn.Linear)
    entering = outputs.features["penultimate"]
    assert entering.shape == (2, head.in_features)
    torch.testing.assert_close(
        nn.functional.linear(entering, head.weight, head.bias), outputs.logits
    )


AUXILIARY = ("googlenet", "inception_v3")


@pytest.mark.parametrize(
    ("name", "side", "stages"),
    [
        ("resnet18", 32, [(64, 16), (64, 8), (128, 4), (256, 2), (512, 1)]),
        ("mobilenet_v2", 32, [(16, 16), (24, 8), (32, 4), (96, 2), (1280, 1)]),
        ("mobilenet_v3_small", 64, [(16, 32), (16, 16), (24, 8), (48, 4), (576, 2)]),
        ("shufflenet_v2_x0_5", 64, [(24, 32), (48, 8), (96, 4), (1024, 2)]),
        ("densenet121", 32, [(64, 16), (256, 8), (512, 4), (1024, 2), (1024, 1)]),
        ("regnet_y_400mf", 32, [(32, 16), (48, 8), (104, 4), (208, 2), (440, 1)]),
        ("efficientnet_b0", 32, [(16, 16), (24, 8), (40, 4), (112, 2), (1280, 1)]),
        ("convnext_tiny", 32, [(96, 8), (192, 4), (384, 2), (768, 1)]),
        ("googlenet", 64, [(64, 32), (192, 16), (480, 8), (832, 4), (1024, 2)]),
        (
            "inception_v3",
            79,
            [(32, 39), (64, 37), (80, 18), (192, 16), (288, 7), (768, 3), (2048, 1)],
        ),
    ],
)
def test_torchvision_families(name: str, side: int, stages: list[tuple[int, int]]) -> None:
    origin = source("torchvision", model=name)
    torch.manual_seed(0)
    model = origin.build((3, side, side), 7)
    layers = origin.layers()
    alone = {"aux_logits": False, "init_weights": False} if name in AUXILIARY else {}
    theirs = models.get_model(name, num_classes=7, **alone).state_dict()
    assert list(model.state_dict()) == list(theirs)
    outputs = train_a_step(model, layers, (3, side, side))
    shapes = [tuple(outputs.features[i].shape[1:]) for i in range(len(layers.stages))]
    assert shapes == [(channels, size, size) for channels, size in stages]
    assert_the_classifier_is_told_of(model, layers, outputs)
    assert not origin.pretrained()
    assert origin.normalization() is None


def test_torchvision_transformers() -> None:
    origin = source("torchvision", model="vit_b_32")
    model = origin.build((3, 64, 64), 7)
    layers = origin.layers()
    outputs = train_a_step(model, layers, (3, 64, 64))
    assert [outputs.features[i].shape for i in range(12)] == 12 * [(2, 5, 768)]
    assert_the_classifier_is_told_of(model, layers, outputs)
    with pytest.raises(kdzoo.SpecError, match=r"images of 65x65 pixels: .*indivisible"):
        origin.build((3, 65, 65), 7)
    with pytest.raises(kdzoo.SpecError, match=r"images of 64x32 pixels: Wrong image width"):
        origin.build((3, 64, 32), 7)


def test_a_classifier_that_is_a_convolution() -> None:
    origin = source("torchvision", model="squeezenet1_1")
    model = origin.build((3, 32, 32), 7)
    layers = origin.layers()
    train_a_step(model, layers, (3, 32, 32))
    assert layers.head == "classifier.1"


def test_the_stages_have_the_same_numbers_at_every_size() -> None:
    origin = source("torchvision", model="mobilenet_v3_small")
    origin.build((3, 224, 224), 7)
    large = origin.layers()
    origin.build((3, 8, 8), 7)
    assert origin.layers() == large


@pytest.mark.parametrize(
    ("params", "shape", "message"),
    [
        ({"model": "resnet5O"}, (3, 32, 32), 'no classification model "resnet5O"; did you mean'),
        ({"model": "resnet50_"}, (3, 32, 32), 'did you mean "resnet50"?'),
        ({"model": "fcn_resnet50"}, (3, 32, 32), "no classification model"),
        ({"model": "resnet18"}, (1, 32, 32), "images of 3 channels, and these have 1"),
        ({"model": "alexnet"}, (3, 16, 16), "alexnet cannot take images of 16x16 pixels: "),
        (
            {"model": "resnet18", "weights": "IMAGENET1K_V9"},
            (3, 32, 32),
            'no weights "IMAGENET1K_V9" for resnet18; it has IMAGENET1K_V1, DEFAULT',
        ),
    ],
)
def test_what_torchvision_has_not(params: Any, shape: Any, message: str) -> None:
    with pytest.raises(kdzoo.SpecError, match=message):
        source("torchvision", **params).build(shape, 7)


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """Trained weights of SqueezeNet 1.1, as far as torchvision can tell."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    state: dict[str, torch.Tensor] = models.squeezenet1_1().state_dict()
    file = Path(models.SqueezeNet1_1_Weights.DEFAULT.url).name
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(state, tmp_path / "hub" / "checkpoints" / file)
    return state


def test_trained_weights_and_their_normalization(published: dict[str, torch.Tensor]) -> None:
    origin = source("torchvision", model="squeezenet1_1", weights="DEFAULT")
    whole = origin.build((3, 32, 32), 1000).state_dict()
    assert all(torch.equal(whole[key], published[key]) for key in published)
    assert origin.pretrained()
    assert origin.normalization() == kdzoo.Normalization(
        (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    )
    model = origin.build((3, 32, 32), 7)
    fewer = model.state_dict()
    assert list(fewer) == list(published)
    assert fewer["classifier.1.weight"].shape == (7, 512, 1, 1)
    body = [key for key in published if not key.startswith("classifier")]
    assert all(torch.equal(fewer[key], published[key]) for key in body)
    train_a_step(model, origin.layers(), (3, 32, 32))


def test_weights_that_cannot_be_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: Any, **__: Any) -> None:
        raise URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    origin = source("torchvision", model="squeezenet1_1", weights="DEFAULT")
    folder = re.escape(str(tmp_path / "hub" / "checkpoints"))
    wanted = rf"of squeezenet1_1 cannot be fetched from https.*\.pth: .*no route.* into {folder}$"
    with pytest.raises(kdzoo.CheckpointError, match=wanted):
        origin.build((3, 32, 32), 1000)


def test_weights_that_will_be_replaced_are_not_fetched(
    published: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    (file,) = (tmp_path / "hub" / "checkpoints").iterdir()
    file.write_bytes(b"not what torchvision expects")
    origin = source("torchvision", model="squeezenet1_1", weights="DEFAULT")
    origin.weights_follow = True
    model = origin.build((3, 32, 32), 1000)
    assert list(model.state_dict()) == list(published)


def test_listing_the_models_imports_neither() -> None:
    program = (
        "import sys\n"
        "from kdzoo.extend.registry import registry\n"
        "names = registry().names('model')\n"
        "assert {'torchvision', 'timm'} <= set(names), names\n"
        "assert not {'torchvision', 'timm'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.parametrize(
    ("use", "module", "message"),
    [
        ("torchvision", "torchvision.models", "torchvision cannot be imported .*belongs to torch"),
        ("timm", "timm", r"timm cannot be imported .*pip install 'kdzoo\[timm\]'"),
    ],
)
def test_a_library_that_cannot_be_imported(
    monkeypatch: pytest.MonkeyPatch, use: str, module: str, message: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(kdzoo.SpecError, match=message):
        source(use, model="resnet18").build((3, 32, 32), 7)


@pytest.mark.parametrize(
    ("name", "shape", "stages"),
    [
        ("test_resnet", (1, 32, 32), 5),
        ("vit_tiny_patch16_224", (3, 48, 32), 12),
        ("test_efficientnet", (3, 32, 32), 5),
        ("test_convnext", (3, 32, 32), 4),
        ("resnet10t", (3, 32, 32), 5),
    ],
)
def test_timm_families(timm: Any, name: str, shape: tuple[int, int, int], stages: int) -> None:
    origin = source("timm", model=name)
    torch.manual_seed(0)
    model = origin.build(shape, 7)
    layers = origin.layers()
    assert list(model.state_dict()) == list(timm.create_model(name).state_dict())
    outputs = train_a_step(model, layers, shape)
    assert len(layers.stages) == stages
    assert_the_classifier_is_told_of(model, layers, outputs)
    assert not origin.pretrained()
    assert origin.normalization() is None


@pytest.mark.usefixtures("timm")
def test_timm_without_stages_or_with_two_classifiers() -> None:
    origin = source("timm", model="deit_tiny_distilled_patch16_224")
    origin.build((3, 32, 32), 7)
    assert origin.layers().stages
    assert origin.layers().head is None
    origin = source("timm", model="hrnet_w18_small")  # declares modules that it does not have
    origin.build((3, 64, 64), 7)
    assert not origin.layers().stages


@pytest.mark.usefixtures("timm")
def test_what_timm_knows_of_its_weights() -> None:
    origin = source("timm", model="test_vit.r160_in1k", pretrained=True)
    assert origin.pretrained()
    assert origin.normalization() == kdzoo.Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.mark.usefixtures("timm")
@pytest.mark.parametrize(
    ("params", "shape", "message"),
    [
        ({"model": "resnet51"}, (3, 32, 32), 'timm has no model "resnet51"; did you mean '),
        (
            {"model": "resnet50.a1_in2k"},
            (3, 32, 32),
            r'no weights .*did you mean "resnet50\.a1_in1k"',
        ),
        ({"model": "resnet50", "pretrained": True}, (1, 32, 32), "3 channels, and these have 1"),
        (
            {"model": "selecsls84", "pretrained": True},
            (3, 32, 32),
            "cannot be built: No pretrained",
        ),
    ],
)
def test_what_timm_has_not(params: Any, shape: Any, message: str) -> None:
    with pytest.raises(kdzoo.SpecError, match=message):
        source("timm", **params).build(shape, 7)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_what_no_state_dict_tells_is_the_same_when_weights_follow(name: str) -> None:
    """These two normalize their images anew where torchvision's weights are used."""
    for weights in (None, "DEFAULT"):
        origin = source("torchvision", model=name, weights=weights)
        origin.weights_follow = True
        model: Any = origin.build((3, 96, 96), 5)
        assert model.transform_input is (weights is not None)
