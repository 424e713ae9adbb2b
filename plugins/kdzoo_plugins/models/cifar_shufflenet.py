"""ShuffleNet for 32x32 images: Zhang et al., 2018, and Ma et al., 2018.

Both keep torch's initial weights: the literature's results were reached with them.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, relu

import kdzoo
from kdzoo_plugins.models._parts import global_pool

__all__ = ["ShuffleV1", "ShuffleV2"]


def _shuffled(x: Tensor, groups: int) -> Tensor:
    """(B, C, H, W): the first channel of each group, then the second of each, and so on.

    It is done with the channels last, and the answer lies so in memory: shuffled where they are,
    channels that lie last would come out first, and every later layer would turn them back.
    """
    apart = torch.unflatten(x.movedim(1, -1), -1, (groups, -1))
    return apart.transpose(-1, -2).flatten(-2).movedim(-1, 1)


def _depthwise(channels: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)


class _BlockV1(nn.Module):
    """A depthwise convolution between two grouped 1x1, around a shortcut; with stride 2 the
    shortcut is pooled, and its channels stay apart from the block's own."""

    groups = 3

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        own = width if stride == 1 else width - channels
        inner = own // 4
        # The stem's 24 channels are too few to be grouped.
        groups = 1 if channels == 24 else self.groups
        self.conv1 = nn.Conv2d(channels, inner, 1, groups=groups, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = _depthwise(inner, stride)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, own, 1, groups=self.groups, bias=False)
        self.bn3 = nn.BatchNorm2d(own)
        self.shuffle = groups

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) to (B, width, H / stride, W / stride)."""
        out = relu(self.bn1(self.conv1(x)), inplace=True)
        out = relu(self.bn2(self.conv2(_shuffled(out, self.shuffle))), inplace=True)
        out = self.bn3(self.conv3(out))
        if self.stride == 1:
            out += x
        else:
            out = torch.cat((out, avg_pool2d(x, 3, 2, padding=1)), 1)
        return relu(out, inplace=True)


class _BlockV2(nn.Module):
    """Half of the channels pass, the other half go through a depthwise convolution between two
    1x1; then the halves are shuffled."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.conv1 = nn.Conv2d(half, half, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = _depthwise(half, 1)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, H, W) to the same."""
        passed, out = x.chunk(2, 1)
        out = relu(self.bn1(self.conv1(out)), inplace=True)
        out = self.bn2(self.conv2(out))
        out = relu(self.bn3(self.conv3(out)), inplace=True)
        return _shuffled(torch.cat((passed, out), 1), 2)


class _DownV2(nn.Module):
    """Two branches of stride 2, each giving half of the channels."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        half = width // 2
        self.conv1 = _depthwise(channels, 2)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, half, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(channels, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = _depthwise(half, 2)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = nn.Conv2d(half, half, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) to (B, width, H / 2, W / 2)."""
        one = relu(self.bn2(self.conv2(self.bn1(self.conv1(x)))), inplace=True)
        two = relu(self.bn3(self.conv3(x)), inplace=True)
        two = relu(self.bn5(self.conv5(self.bn4(self.conv4(two)))), inplace=True)
        return _shuffled(torch.cat((one, two), 1), 2)


def _stem(channels: int) -> OrderedDict[str, nn.Module]:
    return OrderedDict(
        conv1=nn.Conv2d(channels, 24, 1, bias=False),
        bn1=nn.BatchNorm2d(24),
        relu=nn.ReLU(inplace=True),
    )


class _Shuffle(kdzoo.ModelSource):
    """Stages of the same names in both versions."""

    def layers(self) -> kdzoo.Layers:
        """See :meth:`kdzoo.ModelSource.layers`."""
        stages = ("relu", "layer1", "layer2", "layer3")
        return kdzoo.Layers(stages=stages, penultimate="pool", head="linear")


class ShuffleV1(_Shuffle):
    """ShuffleNet with 3 groups for 32x32 images: a 1x1 stem without pooling."""

    name = "ShuffleV1"

    def build(self, input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        """See :meth:`kdzoo.ModelSource.build`."""
        modules = _stem(input_shape[0])
        channels = 24
        for number, (width, count) in enumerate([(240, 4), (480, 8), (960, 4)], 1):
            rest = (_BlockV1(width, width, 1) for _ in range(count - 1))
            modules[f"layer{number}"] = nn.Sequential(_BlockV1(channels, width, 2), *rest)
            channels = width
        modules["pool"] = global_pool()
        modules["linear"] = nn.Linear(channels, num_classes)
        return nn.Sequential(modules)


class ShuffleV2(_Shuffle):
    """ShuffleNet V2 for 32x32 images: a 1x1 stem without pooling."""

    name = "ShuffleV2"

    def build(self, input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        """See :meth:`kdzoo.ModelSource.build`."""
        modules = _stem(input_shape[0])
        channels = 24
        for number, (width, count) in enumerate([(116, 4), (232, 8), (464, 4)], 1):
            rest = (_BlockV2(width) for _ in range(count - 1))
            modules[f"layer{number}"] = nn.Sequential(_DownV2(channels, width), *rest)
            channels = width
        modules["conv2"] = nn.Conv2d(channels, 1024, 1, bias=False)
        modules["bn2"] = nn.BatchNorm2d(1024)
        modules["relu2"] = nn.ReLU(inplace=True)
        modules["pool"] = global_pool()
        modules["linear"] = nn.Linear(1024, num_classes)
        return nn.Sequential(modules)


@kdzoo.hookimpl
def kdzoo_models() -> list[type[kdzoo.ModelSource]]:
    """See :mod:`kdzoo.extend.hookspecs`."""
    return [ShuffleV1, ShuffleV2]
