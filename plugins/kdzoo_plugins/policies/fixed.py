"""Do not teach a given list of classes."""

from __future__ import annotations

import difflib

import numpy as np

import kdzoo

__all__ = ["Fixed"]


class Fixed(kdzoo.ClassPolicy):
    """The classes in a list are not taught, from the first epoch on; all others are."""

    name = "fixed"

    class Params(kdzoo.Params):
        """What can be set."""

        classes: tuple[str, ...] = kdzoo.Field(
            min_length=1, description="The names of the classes that are not taught."
        )
        teacher_weight: float = kdzoo.Field(
            0.0, ge=0, description="What these classes get of the teacher's terms."
        )
        label_weight: float | None = kdzoo.Field(
            None,
            ge=0,
            description="The factor on their label terms. None: as much as keeps their whole "
            "weight, (teacher's + label terms' weight) / label terms' weight.",
        )

    def setup(self, setting: kdzoo.PolicySetting) -> None:
        """See :meth:`kdzoo.ClassPolicy.setup`."""
        classes, whole = setting.classes, setting.whole_label_factor
        self._label_weight = whole if self.params.label_weight is None else self.params.label_weight
        for name in self.params.classes:
            if name not in classes:
                near = difflib.get_close_matches(name, classes, n=1)
                hint = f'did you mean "{near[0]}"?' if near else f"known are {', '.join(classes)}"
                raise kdzoo.SpecError(f'there is no class "{name}"; {hint}')
        self._listed = np.array([name in self.params.classes for name in classes])

    def initial(self, num_classes: int) -> kdzoo.ClassWeights:
        """See :meth:`kdzoo.ClassPolicy.initial`."""
        return kdzoo.ClassWeights(
            teacher=np.where(self._listed, self.params.teacher_weight, 1.0),
            label=np.where(self._listed, self._label_weight, 1.0),
        )

    def update(self, curves: kdzoo.TeachingCurves) -> kdzoo.ClassWeights:
        """See :meth:`kdzoo.ClassPolicy.update`."""
        return self.initial(curves.student.shape[1])


@kdzoo.hookimpl
def kdzoo_policies() -> list[type[kdzoo.ClassPolicy]]:
    """See :mod:`kdzoo.extend.hookspecs`."""
    return [Fixed]
