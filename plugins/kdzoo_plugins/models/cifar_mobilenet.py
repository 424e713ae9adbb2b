"""MobileNetV2 for 32x32 images: Sandler et al., 2018."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

import kdzoo
from kdzoo_plugins.models._parts import global_pool, he

__all__ = ["MobileNetV2"]

# Expansion, width, number of blocks, and stride of the first: the paper's table 2 at half width,
# with stride 1 in the second row, since the images are smaller.
_ROWS = (
    (1, 8, 1, 1),
    (6, 12, 2, 1),
    (6, 16, 3, 2),
    (6, 32, 4, 2),
    (6, 48, 3, 1),
    (6, 80, 3, 2),
    (6, 160, 1, 1),
)


class _Block(nn.Module):
    """A depthwise convolution between a 1x1 that widens and one that narrows, without activation
    behind the last."""

    def __init__(self, channels: int, width: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = channels * expansion
        self.residual = stride == 1 and channels == width
        self.conv = nn.Sequential(
            nn.Conv2d(channels, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, inner, 3, stride, padding=1, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) to (B, width, H / stride, W / stride)."""
        out: Tensor = self.conv(x)
        if self.residual:
            out += x
        return out


class MobileNetV2(kdzoo.ModelSource):
    """MobileNetV2 at half width for 32x32 images, with ReLU where the paper has ReLU6."""

    name = "MobileNetV2"

    def build(self, input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        """See :meth:`kdzoo.ModelSource.build`."""
        channels = 16
        stem = nn.Sequential(
            nn.Conv2d(input_shape[0], channels, 3, 2, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        )
        rows: list[nn.Module] = []
        for expansion, width, count, stride in _ROWS:
            blocks: list[nn.Module] = []
            for i in range(count):
                blocks.append(_Block(channels, width, stride if i == 0 else 1, expansion))
                channels = width
            rows.append(nn.Sequential(*blocks))
        top = nn.Sequential(
            nn.Conv2d(channels, 1280, 1, bias=False), nn.BatchNorm2d(1280), nn.ReLU(inplace=True)
        )
        head = nn.Linear(1280, num_classes)
        network = nn.Sequential(
            OrderedDict(
                conv1=stem,
                blocks=nn.Sequential(*rows),
                conv2=top,
                pool=global_pool(),
                classifier=nn.Sequential(head),
            )
        )
        he(network)
        nn.init.normal_(head.weight, std=0.01)
        nn.init.zeros_(head.bias)
        return network

    def layers(self) -> kdzoo.Layers:
        """See :meth:`kdzoo.ModelSource.layers`."""
        stages = ("conv1", "blocks.1", "blocks.2", "blocks.4", "blocks.6")
        return kdzoo.Layers(stages=stages, penultimate="pool", head="classifier.0")


@kdzoo.hookimpl
def kdzoo_models() -> list[type[kdzoo.ModelSource]]:
    """See :mod:`kdzoo.extend.hookspecs`."""
    return [MobileNetV2]
