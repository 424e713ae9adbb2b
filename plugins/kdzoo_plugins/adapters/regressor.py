"""The convolutional regressor of FitNets."""

from __future__ import annotations

from torch import Tensor, nn

import kdzoo
from kdzoo_plugins.adapters._shapes import Shape, misfit, need_maps

__all__ = ["Regressor"]


class Regressor(kdzoo.Adapter):
    """A convolution chosen by the sizes, then batch norm and ReLU.

    Romero et al., "FitNets: Hints for Thin Deep Nets" (ICLR 2015), section 2.2. A map twice as
    large is strided over, one half as large is brought up by a transposed convolution, and any
    other that is not smaller gets a kernel that covers the difference.
    """

    name = "regressor"

    class Params(kdzoo.Params):
        """What can be set."""

        relu: bool = kdzoo.Field(
            True, description="End with ReLU; not for teacher features that can be negative."
        )

    def setup(self, student_shape: Shape, teacher_shape: Shape) -> None:
        """See :meth:`kdzoo.Adapter.setup`."""
        (channels, *size), (wanted, *wanted_size) = need_maps(student_shape, teacher_shape)
        layers: list[nn.Module] = []
        if size == [2 * side for side in wanted_size]:
            layers.append(nn.Conv2d(channels, wanted, 3, stride=2, padding=1))
        elif wanted_size == [2 * side for side in size]:
            layers.append(nn.ConvTranspose2d(channels, wanted, 4, stride=2, padding=1))
        elif all(side >= side_wanted for side, side_wanted in zip(size, wanted_size, strict=True)):
            kernel = (1 + size[0] - wanted_size[0], 1 + size[1] - wanted_size[1])
            layers.append(nn.Conv2d(channels, wanted, kernel))
        else:
            misfit(student_shape, teacher_shape, "brings maps up by a factor of 2 only")
        layers.append(nn.BatchNorm2d(wanted))
        if self.params.relu:
            layers.append(nn.ReLU(inplace=True))
        self.layers = nn.Sequential(*layers)

    def forward(self, feature: Tensor) -> Tensor:
        """See :meth:`kdzoo.Adapter.forward`."""
        mapped: Tensor = self.layers(feature)
        return mapped


@kdzoo.hookimpl
def kdzoo_adapters() -> list[type[kdzoo.Adapter]]:
    """See :mod:`kdzoo.extend.hookspecs`."""
    return [Regressor]
