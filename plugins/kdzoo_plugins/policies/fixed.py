"""Do not teach a given list of classes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

import kdzoo
from kdzoo_plugins.policies._untaught import ListedPolicy, UntaughtParams

__all__ = ["Fixed"]


class Fixed(ListedPolicy):
    """The classes in a list are not taught, from the first epoch on; all others are."""

    name = "fixed"

    class Params(UntaughtParams):
        """What can be set."""

        classes: tuple[str, ...] = kdzoo.Field(
            min_length=1, description="The names of the classes that are not taught."
        )

    def listed(self, setting: kdzoo.PolicySetting) -> npt.NDArray[np.bool_]:
        """See :class:`~kdzoo_plugins.policies._untaught.ListedPolicy`."""
        for name in self.params.classes:
            if name not in setting.classes:
                hint = kdzoo.did_you_mean(name, setting.classes)
                raise kdzoo.SpecError(f'there is no class "{name}"{hint}')
        return np.array([name in self.params.classes for name in setting.classes])


@kdzoo.hookimpl
def kdzoo_policies() -> list[type[kdzoo.ClassPolicy]]:
    """See :mod:`kdzoo.extend.hookspecs`."""
    return [Fixed]
