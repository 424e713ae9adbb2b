"""The CIFAR networks of the literature held against what was published of them."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tapping import tapped
from torch import Tensor, nn

import kdzoo
from kdzoo.extend.registry import registry

GOLDEN = Path(__file__).parents[1] / "golden"
PUBLISHED = json.loads((GOLDEN / "cifar_models.json").read_text())
ONE_A_FAMILY = ["resnet8x4", "wrn_16_2", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2"]


def build(name: str, shape: tuple[int, int, int], classes: int) -> tuple[nn.Module, kdzoo.Layers]:
    source = registry().make("model", name, {})
    torch.manual_seed(0)
    return source.build(shape, classes), source.layers()


def named_weight(name: str, shape: list[int]) -> Tensor:
    """The weight that the golden logits were computed with."""
    if name.endswith("num_batches_tracked"):
        return torch.tensor(0)
    draw = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith("running_var"):
        value = 1 + 0.1 * abs(draw)
    elif name.endswith("running_mean"):
        value = 0.1 * draw
    elif len(shape) == 1:
        value = 0.1 * draw + name.endswith("weight")
    else:
        value = draw / math.sqrt(math.prod(shape[1:]))
    return torch.from_numpy(value)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_network(name: str) -> None:
    published = PUBLISHED[name]
    golden = np.load(GOLDEN / "cifar_models.npz")
    model, layers = build(name, (3, 32, 32), 100)
    model.double()
    assert sum(p.numel() for p in model.parameters()) == published["parameters"]
    own = [(key, list(tensor.shape)) for key, tensor in model.state_dict().items()]
    assert own == list(published["state_dict"].items())

    state = {key: named_weight(key, shape) for key, shape in published["state_dict"].items()}
    model.load_state_dict(state)
    inputs = torch.from_numpy(golden["inputs"])
    distiller = tapped(model, layers, inputs[..., :8, :8], 100).eval()
    with torch.no_grad():
        outputs = distiller(inputs, torch.tensor([0, 1])).student
    np.testing.assert_allclose(outputs.logits, golden[f"{name}/logits"], rtol=1e-6)
    features = list(outputs.features.values())
    assert [list(f.shape) for f in features] == published["feature_shapes"]
    means = [f.mean().item() for f in features]
    np.testing.assert_allclose(means, published["feature_means"], rtol=1e-9)
    assert layers.head is not None
    assert isinstance(model.get_submodule(layers.head), nn.Linear)


@pytest.mark.parametrize("name", [*ONE_A_FAMILY, "ResNet50"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 64, 40)], ids=str)
def test_other_images_train_every_weight(name: str, shape: tuple[int, int, int]) -> None:
    model, layers = build(name, shape, 5)
    distiller = tapped(model, layers, torch.rand(2, *shape), 5).train()
    step = distiller(torch.rand(4, *shape), torch.arange(4))
    step.total.backward()
    assert step.student.logits.shape == (4, 5)
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
    with torch.no_grad():
        assert model.eval()(torch.rand(1, *shape)).shape == (1, 5)


@pytest.mark.parametrize("name", ONE_A_FAMILY)
def test_channels_last_stay_last_and_say_the_same(name: str) -> None:
    model, layers = build(name, (3, 32, 32), 5)
    images = torch.rand(2, 3, 32, 32)
    distiller = tapped(model, layers, images, 5).eval()
    targets = torch.tensor([0, 1])
    with torch.no_grad():
        wanted = distiller(images, targets).student
        distiller.to(memory_format=torch.channels_last)
        said = distiller(images.to(memory_format=torch.channels_last), targets).student
    torch.testing.assert_close(said.logits, wanted.logits, rtol=1e-4, atol=1e-5)
    for stage in range(len(layers.stages)):
        assert said.features[stage].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ONE_A_FAMILY)
def test_the_seed_decides_the_weights(name: str) -> None:
    one, two = (build(name, (3, 32, 32), 5)[0].state_dict() for _ in range(2))
    assert all(torch.equal(one[key], two[key]) for key in one)
    torch.manual_seed(1)
    other = registry().make("model", name, {}).build((3, 32, 32), 5).state_dict()
    drawn = [key for key in one if one[key].ndim > 1]
    assert not any(torch.equal(one[key], other[key]) for key in drawn)


@pytest.mark.parametrize("name", ["resnet20", "wrn_16_2", "vgg13", "MobileNetV2"])
def test_convolutions_begin_as_he_et_al_say(name: str) -> None:
    model, _ = build(name, (3, 32, 32), 5)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 4000:
            fan_out = module.out_channels * math.prod(module.kernel_size)
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)
            assert module.bias is None or not module.bias.any()


def test_vgg_pools_larger_images_once_more_and_refuses_smaller_ones() -> None:
    def last(side: int) -> tuple[int, ...]:
        model, layers = build("vgg8", (3, side, side), 5)
        seen: list[Any] = []
        model.get_submodule(layers.stages[-1]).register_forward_hook(
            lambda module, inputs, output: seen.append(output.shape[2:])
        )
        with torch.no_grad():
            model.eval()(torch.rand(1, 3, side, side))
        return tuple(seen[0])

    assert last(32) == (4, 4)
    assert last(64) == (4, 4)
    assert last(63) == (7, 7)
    assert last(8) == (1, 1)
    with pytest.raises(kdzoo.SpecError, match="7x32 pixels are too few"):
        build("vgg8", (3, 7, 32), 5)


def test_mobilenet_does_not_clip() -> None:
    """The golden activations stay below 6: they cannot tell ReLU from the paper's ReLU6."""
    model, _ = build("MobileNetV2", (3, 32, 32), 5)
    activations = [m for m in model.modules() if not (list(m.children()) or m.state_dict())]
    bent = [m for m in activations if "ReLU" in type(m).__name__]
    assert len(bent) == 2 + 2 * 17
    assert all(m(torch.tensor([7.0])) == 7 for m in bent)


def test_a_teacher_as_the_literature_publishes_it(tmp_path: Path, tiny: dict[str, Any]) -> None:
    tiny["data"]["per_class"] = 30
    tiny["teacher"] = {"use": "resnet8", "train": {"epochs": 10}}
    tiny["baseline"] = False
    tiny["policy"] = "all"
    trained = kdzoo.run(tiny, runs=tmp_path)
    weights = Path(trained.report.directories["teacher"]) / "student.safetensors"
    state = {}
    for key, value in load_file(weights).items():
        state[f"module.teacher.{key}"] = torch.zeros_like(value)
        state[f"module.student.{key}"] = value
    published = {"epoch": 240, "model": state, "best_acc": np.float64(0.7)}
    torch.save(published, tmp_path / "student_best.pth")
    loaded = {"use": "resnet8", "checkpoint": str(tmp_path / "student_best.pth")}
    again = kdzoo.run({**tiny, "teacher": loaded}, runs=tmp_path)
    assert again.report.teacher is not None
    assert again.report.teacher.classes == trained.report.teacher.classes
    assert again.report.student == trained.report.student
    loaded["use"] = "resnet14"
    with pytest.raises(kdzoo.CheckpointError, match=r"it lacks layer1\.1\."):
        kdzoo.run({**tiny, "teacher": loaded}, runs=tmp_path)
