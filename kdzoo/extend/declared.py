"""What a class policy says of itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

from kdzoo.extend.bases import ClassPolicy
from kdzoo.extend.calling import calling

__all__ = ["Declared"]


@dataclass(frozen=True)
class Declared:
    """What a policy says of itself, read where a plugin's own errors are told as such.

    Attributes:
        needs_baseline: whether it needs the curves of a baseline run.
        needs_validation: whether it needs validation images.
        needs_similarity: whether it needs similarities of features.
        sets_columns: whether it sets columns.
    """

    needs_baseline: bool = False
    needs_validation: bool = False
    needs_similarity: bool = False
    sets_columns: bool = False

    @classmethod
    def by(cls, policy: ClassPolicy | None) -> Declared:
        """Of a policy; ``None`` needs nothing.

        Raises:
            PluginError: it fails, or answers something else than ``True`` or ``False``.
        """
        if policy is None:
            return cls()
        answers = {}
        with calling(f'policy "{policy.name}"'):
            for field in fields(cls):
                answer = getattr(policy, field.name)
                if not isinstance(answer, bool):
                    raise TypeError(f"{field.name} is {answer!r}; it must be True or False")
                answers[field.name] = answer
        return cls(**answers)

    def missing(self, *, baseline: bool, validation: bool) -> Iterator[str]:
        """What it needs of what is not there, as the rest of a sentence about the policy.

        Args:
            baseline: whether there is a baseline run.
            validation: whether there are validation images.
        """
        if self.needs_baseline and not baseline:
            yield (
                "compares with a baseline run, and there is none; say `baseline: true` (in your "
                "own loop: pass `baseline=`), or set it to go by something else"
            )
        if self.needs_validation and not validation:
            yield (
                "looks at validation images, and there are none; say `validation: 0.1` in data, or "
                "use the training samples"
            )
