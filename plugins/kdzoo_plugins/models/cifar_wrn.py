"""Wide residual networks: Zagoruyko and Komodakis, 2016."""

from __future__ import annotations

from collections import OrderedDict
from typing import ClassVar

from torch import Tensor, nn
from torch.nn.functional import relu

import kdzoo
from kdzoo_plugins.models._parts import global_pool, he

__all__ = ["WRN16x1", "WRN16x2", "WRN40x1", "WRN40x2"]


class _Block(nn.Module):
    """Batch norm and ReLU before each of two 3x3 convolutions."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.convShortcut = (
            None
            if stride == 1 and channels == width
            else nn.Conv2d(channels, width, 1, stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) to (B, width, H / stride, W / stride)."""
        active = relu(self.bn1(x), inplace=True)
        out: Tensor = self.conv2(relu(self.bn2(self.conv1(active)), inplace=True))
        # The identity goes round the first activation, the projection starts behind it.
        out += x if self.convShortcut is None else self.convShortcut(active)
        return out


class _WRN(kdzoo.ModelSource):
    """Three stages of blocks with two convolutions each; the last activation is at the end."""

    depth: ClassVar[int]
    factor: ClassVar[int]

    def build(self, input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        """See :meth:`kdzoo.ModelSource.build`."""
        channels = 16
        modules: OrderedDict[str, nn.Module] = OrderedDict(
            conv1=nn.Conv2d(input_shape[0], channels, 3, padding=1, bias=False)
        )
        for number in (1, 2, 3):
            width = 16 * 2 ** (number - 1) * self.factor
            blocks: list[nn.Module] = []
            for i in range((self.depth - 4) // 6):
                blocks.append(_Block(channels, width, stride=2 if number > 1 and i == 0 else 1))
                channels = width
            block: OrderedDict[str, nn.Module] = OrderedDict(layer=nn.Sequential(*blocks))
            modules[f"block{number}"] = nn.Sequential(block)
        modules["bn1"] = nn.BatchNorm2d(channels)
        modules["relu"] = nn.ReLU(inplace=True)
        modules["pool"] = global_pool()
        modules["fc"] = head = nn.Linear(channels, num_classes)
        network = nn.Sequential(modules)
        he(network)
        nn.init.zeros_(head.bias)
        return network

    def layers(self) -> kdzoo.Layers:
        """See :meth:`kdzoo.ModelSource.layers`."""
        stages = ("conv1", "block1", "block2", "block3")
        return kdzoo.Layers(stages=stages, penultimate="pool", head="fc")


class WRN16x1(_WRN):
    """Wide residual network with 16 layers, not widened."""

    name = "wrn_16_1"
    depth = 16
    factor = 1


class WRN16x2(_WRN):
    """Wide residual network with 16 layers, twice as wide."""

    name = "wrn_16_2"
    depth = 16
    factor = 2


class WRN40x1(_WRN):
    """Wide residual network with 40 layers, not widened."""

    name = "wrn_40_1"
    depth = 40
    factor = 1


class WRN40x2(_WRN):
    """Wide residual network with 40 layers, twice as wide."""

    name = "wrn_40_2"
    depth = 40
    factor = 2


@kdzoo.hookimpl
def kdzoo_models() -> list[type[kdzoo.ModelSource]]:
    """See :mod:`kdzoo.extend.hookspecs`."""
    return [WRN16x1, WRN16x2, WRN40x1, WRN40x2]
