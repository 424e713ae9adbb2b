"""Teach every class."""

from __future__ import annotations

import kdzoo

__all__ = ["TeachAll"]


class TeachAll(kdzoo.ClassPolicy):
    """Every class is taught throughout: ordinary distillation."""

    name = "all"

    def update(self, curves: kdzoo.TeachingCurves) -> kdzoo.ClassWeights:
        """See :meth:`kdzoo.ClassPolicy.update`."""
        return self.initial(curves.student.shape[1])


@kdzoo.hookimpl
def kdzoo_policies() -> list[type[kdzoo.ClassPolicy]]:
    """See :mod:`kdzoo.extend.hookspecs`."""
    return [TeachAll]
