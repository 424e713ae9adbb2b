"""A control: as many classes as tllm would stop, whichever they are."""

from __future__ import annotations

import numpy as np

import kdzoo
from kdzoo_plugins.policies._finding import Bools, FindingParams, FindingPolicy
from kdzoo_plugins.policies._untaught import UntaughtParams

__all__ = ["Random"]


class Random(FindingPolicy):
    """A control: when ``tllm`` would stop some classes, as many are stopped that are drawn by lot.

    What ``tllm`` gains beyond this it owes to its choice. The lots are drawn from the run's seed.
    """

    name = "random"

    class Params(FindingParams, UntaughtParams):
        """What can be set."""

    def setup(self, setting: kdzoo.PolicySetting) -> None:
        """See :meth:`kdzoo.ClassPolicy.setup`."""
        super().setup(setting)
        self._lots = np.random.default_rng(setting.seed).permutation(len(setting.classes))

    def chosen(self, found: Bools, curves: kdzoo.TeachingCurves) -> Bools:
        """See :class:`~kdzoo_plugins.policies._finding.FindingPolicy`."""
        chosen = np.zeros_like(found)
        chosen[self._lots[: int(self._found.sum())]] = True
        return chosen


@kdzoo.hookimpl
def kdzoo_policies() -> list[type[kdzoo.ClassPolicy]]:
    """See :mod:`kdzoo.extend.hookspecs`."""
    return [Random]
