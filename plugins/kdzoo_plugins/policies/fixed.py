"""Do not teach a given list of classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

import kdzoo
from kdzoo_plugins.policies._untaught import UntaughtParams, UntaughtWeights

__all__ = ["Fixed"]


class Fixed(kdzoo.ClassPolicy):
    """The classes in a list are not taught, from the first epoch on; all others are."""

    name = "fixed"

    class Params(UntaughtParams):
        """What can be set."""

        classes: tuple[str, ...] = kdzoo.Field(
            min_length=1, description="The names of the classes that are not taught."
        )

    def setup(self, setting: kdzoo.PolicySetting) -> None:
        """See :meth:`kdzoo.ClassPolicy.setup`."""
        for name in self.params.classes:
            if name not in setting.classes:
                hint = kdzoo.did_you_mean(name, setting.classes)
                raise kdzoo.SpecError(f'there is no class "{name}"{hint}')
        self._listed = np.array([name in self.params.classes for name in setting.classes])
        self._weights = UntaughtWeights(self.params, setting)

    def initial(self, num_classes: int) -> kdzoo.ClassWeights:
        """See :meth:`kdzoo.ClassPolicy.initial`."""
        return self._weights(self._listed)

    def update(self, curves: kdzoo.TeachingCurves) -> kdzoo.ClassWeights:
        """See :meth:`kdzoo.ClassPolicy.update`."""
        self._weights.steer(curves, self._listed)
        return self._weights(self._listed)

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`kdzoo.ClassPolicy.state_dict`."""
        return self._weights.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See :meth:`kdzoo.ClassPolicy.load_state_dict`."""
        self._weights.load_state_dict(state)


@kdzoo.hookimpl
def kdzoo_policies() -> list[type[kdzoo.ClassPolicy]]:
    """See :mod:`kdzoo.extend.hookspecs`."""
    return [Fixed]
