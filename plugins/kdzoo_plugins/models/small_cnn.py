"""A small convolutional network for small images."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

import kdzoo

__all__ = ["SmallCNN"]


class SmallCNN(kdzoo.ModelSource):
    """Blocks of 3x3 convolution, batch norm, ReLU and pooling; global average; linear classifier.

    The width doubles from block to block, height and width halve while they are above 1.
    """

    name = "small-cnn"

    class Params(kdzoo.Params):
        """What can be set."""

        width: int = kdzoo.Field(16, ge=1, description="Channels of the first block.")
        depth: int = kdzoo.Field(3, ge=1, le=8, description="How many blocks.")

    def build(self, input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        """See :meth:`kdzoo.ModelSource.build`."""
        channels = input_shape[0]
        side = min(input_shape[1:])
        modules: OrderedDict[str, nn.Module] = OrderedDict()
        for i in range(self.params.depth):
            width = self.params.width * 2**i
            block = [
                nn.Conv2d(channels, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            if side > 1:
                block.append(nn.MaxPool2d(2))
                side //= 2
            modules[f"block{i}"] = nn.Sequential(*block)
            channels = width
        modules["pool"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        modules["head"] = nn.Linear(channels, num_classes)
        return nn.Sequential(modules)

    def layers(self) -> kdzoo.Layers:
        """See :meth:`kdzoo.ModelSource.layers`."""
        stages = tuple(f"block{i}" for i in range(self.params.depth))
        return kdzoo.Layers(stages=stages, penultimate="pool", head="head")


@kdzoo.hookimpl
def kdzoo_models() -> list[type[kdzoo.ModelSource]]:
    """See :mod:`kdzoo.extend.hookspecs`."""
    return [SmallCNN]
