"""A multilayer perceptron."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Annotated

from torch import nn

import kdzoo

__all__ = ["MLP"]


class MLP(kdzoo.ModelSource):
    """Flattened pixels, then hidden layers with ReLU, then a linear classifier."""

    name = "mlp"

    class Params(kdzoo.Params):
        """What can be set."""

        widths: tuple[Annotated[int, kdzoo.Field(ge=1)], ...] = kdzoo.Field(
            (64,), description="The width of each hidden layer; none for a linear classifier."
        )

    def build(self, input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        """See :meth:`kdzoo.ModelSource.build`."""
        modules: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        features = math.prod(input_shape)
        for i, width in enumerate(self.params.widths):
            modules[f"hidden{i}"] = nn.Sequential(nn.Linear(features, width), nn.ReLU())
            features = width
        modules["head"] = nn.Linear(features, num_classes)
        return nn.Sequential(modules)

    def layers(self) -> kdzoo.Layers:
        """See :meth:`kdzoo.ModelSource.layers`."""
        stages = tuple(f"hidden{i}" for i in range(len(self.params.widths)))
        return kdzoo.Layers(stages=stages, penultimate=(stages or ("flatten",))[-1], head="head")


@kdzoo.hookimpl
def kdzoo_models() -> list[type[kdzoo.ModelSource]]:
    """See :mod:`kdzoo.extend.hookspecs`."""
    return [MLP]
