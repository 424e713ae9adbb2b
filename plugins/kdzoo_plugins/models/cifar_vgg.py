"""VGG with batch norm and one linear layer, for 32x32 images: Simonyan and Zisserman, 2015."""

from __future__ import annotations

from collections import OrderedDict
from typing import ClassVar

from torch import nn

import kdzoo
from kdzoo_plugins.models._parts import global_pool, he

__all__ = ["VGG8", "VGG11", "VGG13", "VGG16", "VGG19"]


class _VGG(kdzoo.ModelSource):
    """Five blocks of 3x3 convolutions, max pooling after each of the first three.

    Images of 64 pixels and more are pooled after the fourth block too, as the literature does it.
    """

    counts: ClassVar[tuple[int, ...]]

    def build(self, input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        """See :meth:`kdzoo.ModelSource.build`."""
        channels, *size = input_shape
        if min(size) < 8:
            raise kdzoo.SpecError(
                f"halves its images three times, and {size[0]}x{size[1]} pixels are too few for "
                "that; it takes 8x8 and more"
            )
        pools = 4 if min(size) >= 64 else 3
        modules: OrderedDict[str, nn.Module] = OrderedDict()
        for i, (width, count) in enumerate(zip((64, 128, 256, 512, 512), self.counts, strict=True)):
            block: list[nn.Module] = []
            for _ in range(count):
                block += [
                    nn.Conv2d(channels, width, 3, padding=1),
                    nn.BatchNorm2d(width),
                    nn.ReLU(inplace=True),
                ]
                channels = width
            modules[f"block{i}"] = nn.Sequential(*block)
            if i < pools:
                modules[f"pool{i}"] = nn.MaxPool2d(2)
        modules["pool"] = global_pool()
        modules["classifier"] = head = nn.Linear(channels, num_classes)
        network = nn.Sequential(modules)
        he(network)
        nn.init.normal_(head.weight, std=0.01)
        nn.init.zeros_(head.bias)
        return network

    def layers(self) -> kdzoo.Layers:
        """See :meth:`kdzoo.ModelSource.layers`."""
        stages = tuple(f"block{i}" for i in range(5))
        return kdzoo.Layers(stages=stages, penultimate="pool", head="classifier")


class VGG8(_VGG):
    """VGG with 5 convolutions for 32x32 images."""

    name = "vgg8"
    counts = (1, 1, 1, 1, 1)


class VGG11(_VGG):
    """VGG with 8 convolutions for 32x32 images."""

    name = "vgg11"
    counts = (1, 1, 2, 2, 2)


class VGG13(_VGG):
    """VGG with 10 convolutions for 32x32 images."""

    name = "vgg13"
    counts = (2, 2, 2, 2, 2)


class VGG16(_VGG):
    """VGG with 13 convolutions for 32x32 images."""

    name = "vgg16"
    counts = (2, 2, 3, 3, 3)


class VGG19(_VGG):
    """VGG with 16 convolutions for 32x32 images."""

    name = "vgg19"
    counts = (2, 2, 4, 4, 4)


@kdzoo.hookimpl
def kdzoo_models() -> list[type[kdzoo.ModelSource]]:
    """See :mod:`kdzoo.extend.hookspecs`."""
    return [VGG8, VGG11, VGG13, VGG16, VGG19]
