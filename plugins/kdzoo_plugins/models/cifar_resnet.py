"""Residual networks for 32x32 images: He et al., Deep Residual Learning, 2016."""

from __future__ import annotations

from collections import OrderedDict
from typing import ClassVar

from torch import Tensor, nn
from torch.nn.functional import relu

import kdzoo
from kdzoo_plugins.models._parts import global_pool, he

__all__ = [
    "CifarResNet50",
    "ResNet8",
    "ResNet8x4",
    "ResNet14",
    "ResNet20",
    "ResNet32",
    "ResNet32x4",
    "ResNet44",
    "ResNet56",
    "ResNet110",
]


class _Block(nn.Module):
    """Two 3x3 convolutions around a shortcut, ReLU after the sum."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) to (B, width, H / stride, W / stride)."""
        out = relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        out += self.downsample(x)
        return relu(out, inplace=True)


class _Bottleneck(nn.Module):
    """A 3x3 convolution between two 1x1 that narrow and widen, around a shortcut."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        inner = width // 4
        self.conv1 = nn.Conv2d(channels, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.shortcut = _shortcut(channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) to (B, width, H / stride, W / stride)."""
        out = relu(self.bn1(self.conv1(x)), inplace=True)
        out = relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        out += self.shortcut(x)
        return relu(out, inplace=True)


def _shortcut(channels: int, width: int, stride: int) -> nn.Sequential:
    if stride == 1 and channels == width:
        return nn.Sequential()
    return nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))


def _network(
    channels: int,
    stem: int,
    block: type[_Block | _Bottleneck],
    stages: list[tuple[int, int]],
    head: tuple[str, int],
) -> nn.Sequential:
    """``stages``: each stage's width and number of blocks; ``head``: the classifier's name and
    number of classes."""
    modules: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(channels, stem, 3, padding=1, bias=False),
        bn1=nn.BatchNorm2d(stem),
        relu=nn.ReLU(inplace=True),
    )
    channels = stem
    for number, (width, count) in enumerate(stages, 1):
        blocks: list[nn.Module] = []
        for i in range(count):
            blocks.append(block(channels, width, stride=2 if number > 1 and i == 0 else 1))
            channels = width
        modules[f"layer{number}"] = nn.Sequential(*blocks)
    modules["pool"] = global_pool()
    name, num_classes = head
    modules[name] = nn.Linear(channels, num_classes)
    network = nn.Sequential(modules)
    he(network)
    return network


class _CifarResNet(kdzoo.ModelSource):
    """Three stages of blocks with two convolutions each."""

    depth: ClassVar[int]
    stem: ClassVar[int] = 16
    widths: ClassVar[tuple[int, ...]] = (16, 32, 64)

    def build(self, input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        """See :meth:`kdzoo.ModelSource.build`."""
        blocks = (self.depth - 2) // 6
        stages = [(width, blocks) for width in self.widths]
        return _network(input_shape[0], self.stem, _Block, stages, ("fc", num_classes))

    def layers(self) -> kdzoo.Layers:
        """See :meth:`kdzoo.ModelSource.layers`."""
        stages = ("relu", "layer1", "layer2", "layer3")
        return kdzoo.Layers(stages=stages, penultimate="pool", head="fc")


class ResNet8(_CifarResNet):
    """ResNet with 8 layers for 32x32 images."""

    name = "resnet8"
    depth = 8


class ResNet14(_CifarResNet):
    """ResNet with 14 layers for 32x32 images."""

    name = "resnet14"
    depth = 14


class ResNet20(_CifarResNet):
    """ResNet with 20 layers for 32x32 images."""

    name = "resnet20"
    depth = 20


class ResNet32(_CifarResNet):
    """ResNet with 32 layers for 32x32 images."""

    name = "resnet32"
    depth = 32


class ResNet44(_CifarResNet):
    """ResNet with 44 layers for 32x32 images."""

    name = "resnet44"
    depth = 44


class ResNet56(_CifarResNet):
    """ResNet with 56 layers for 32x32 images."""

    name = "resnet56"
    depth = 56


class ResNet110(_CifarResNet):
    """ResNet with 110 layers for 32x32 images."""

    name = "resnet110"
    depth = 110


class ResNet8x4(_CifarResNet):
    """ResNet with 8 layers for 32x32 images, its stages four times as wide, its stem twice."""

    name = "resnet8x4"
    depth = 8
    stem = 32
    widths = (64, 128, 256)


class ResNet32x4(_CifarResNet):
    """ResNet with 32 layers for 32x32 images, its stages four times as wide, its stem twice."""

    name = "resnet32x4"
    depth = 32
    stem = 32
    widths = (64, 128, 256)


class CifarResNet50(kdzoo.ModelSource):
    """ResNet-50 with a 3x3 stem of stride 1 and no pooling behind it, for 32x32 images."""

    name = "ResNet50"

    def build(self, input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        """See :meth:`kdzoo.ModelSource.build`."""
        stages = [(256, 3), (512, 4), (1024, 6), (2048, 3)]
        return _network(input_shape[0], 64, _Bottleneck, stages, ("linear", num_classes))

    def layers(self) -> kdzoo.Layers:
        """See :meth:`kdzoo.ModelSource.layers`."""
        stages = ("relu", "layer1", "layer2", "layer3", "layer4")
        return kdzoo.Layers(stages=stages, penultimate="pool", head="linear")


@kdzoo.hookimpl
def kdzoo_models() -> list[type[kdzoo.ModelSource]]:
    """See :mod:`kdzoo.extend.hookspecs`."""
    return [
        ResNet8,
        ResNet14,
        ResNet20,
        ResNet32,
        ResNet44,
        ResNet56,
        ResNet110,
        ResNet8x4,
        ResNet32x4,
        CifarResNet50,
    ]
