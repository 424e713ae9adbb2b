"""A control: as many classes as tllm would stop, the hardest ones."""

from __future__ import annotations

import numpy as np

import kdzoo
from kdzoo_plugins.policies._finding import Bools, FindingParams, FindingPolicy
from kdzoo_plugins.policies._untaught import UntaughtParams

__all__ = ["Hardest"]


class Hardest(FindingPolicy):
    """A control: when ``tllm`` would stop some classes, as many are stopped in which the student is
    least accurate just then.

    What ``tllm`` gains beyond this it owes to comparing a class with its baseline.
    """

    name = "hardest"

    class Params(FindingParams, UntaughtParams):
        """What can be set."""

    def chosen(self, found: Bools, curves: kdzoo.TeachingCurves) -> Bools:
        """See :class:`~kdzoo_plugins.policies._finding.FindingPolicy`."""
        accuracy = np.where(self._stopped, np.inf, np.nan_to_num(curves.student[-1], nan=np.inf))
        chosen = np.zeros_like(found)
        chosen[np.argsort(accuracy, kind="stable")[: int(found.sum())]] = True
        return chosen


@kdzoo.hookimpl
def kdzoo_policies() -> list[type[kdzoo.ClassPolicy]]:
    """See :mod:`kdzoo.extend.hookspecs`."""
    return [Hardest]
