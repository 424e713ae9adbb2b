"""The terms of the total loss, made from a spec's entries."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kdzoo.errors import SpecError
from kdzoo.extend.bases import Adapter, ClassPolicy, Loss
from kdzoo.extend.calling import calling
from kdzoo.extend.contracts import LayerPair, PolicySetting
from kdzoo.extend.declared import Declared
from kdzoo.extend.registry import registry
from kdzoo.spec.models import LossEntry
from kdzoo.spec.read import read_losses

__all__ = ["Term", "make_loss", "set_up_policy", "terms"]


@dataclass(frozen=True)
class Term:
    """One named, weighted part of the total loss.

    Attributes:
        id: its name, unique among the terms.
        loss: what is computed.
        weight: its factor in the total.
        warmup_epochs: the factor rises as min(epoch / warmup_epochs, 1), epochs counted from 1;
            0 for no warm-up.
    """

    id: str
    loss: Loss
    weight: float = 1.0
    warmup_epochs: int = 0

    def factor(self, progress: float) -> float:
        """The term's factor after ``progress`` epochs."""
        if not self.warmup_epochs:
            return self.weight
        return self.weight * min((int(progress) + 1) / self.warmup_epochs, 1.0)


def set_up_policy(
    policy: ClassPolicy,
    terms: Iterable[Term],
    *,
    classes: tuple[str, ...],
    has_baseline: bool,
    samples: tuple[int, ...] | None = None,
    validation: tuple[int, ...] | None = None,
    seed: int = 0,
    epochs: int | None = None,
    images: str | None = None,
) -> None:
    """Tell a policy what it will decide about; see :class:`~kdzoo.PolicySetting`.

    Raises:
        SpecError: it cannot work there; the message names the policy.
    """
    declared = Declared.by(policy)
    sums = {"teacher": 0.0, "label": 0.0}
    for term in terms:
        sums[term.loss.guidance] += term.weight
        guided = term.loss.guidance == "teacher"
        if declared.sets_columns and guided and not term.loss.takes_columns:
            raise SpecError(
                f'policy "{policy.name}" takes classes out of the soft targets of all samples, and '
                f'loss "{term.id}" knows nothing of that (takes_columns); use another, or let the '
                "policy act on the classes' own samples alone"
            )
    with calling(f'policy "{policy.name}"'):
        for what in declared.missing(baseline=has_baseline, validation=validation is not None):
            raise SpecError(what)
        policy.setup(
            PolicySetting(
                classes=classes,
                has_baseline=has_baseline,
                teacher_weight=sums["teacher"],
                label_weight=sums["label"],
                samples=samples,
                validation=validation,
                seed=seed,
                epochs=epochs,
                images=images,
            )
        )


def terms(entries: Iterable[str | Mapping[str, Any]]) -> list[Term]:
    """The terms that a spec's ``losses`` would give, for a training loop of one's own.

    ``terms([{"use": "ce", "weight": 0.1}, {"use": "kd", "weight": 0.9, "temperature": 4}])``

    Raises:
        SpecError: an entry is wrong; the message says which key, and what would be right.
    """
    return [
        Term(entry.id, make_loss(entry), entry.weight, entry.warmup_epochs)
        for entry in read_losses(entries)
    ]


def make_loss(entry: LossEntry) -> Loss:
    """The loss of a resolved entry, with its layers and its adapter, before ``setup``."""
    loss: Loss = registry().make(Loss.kind, entry.use, entry.params)
    loss.layers = tuple(LayerPair(pair.student, pair.teacher) for pair in entry.layers or ())
    if entry.adapter is not None:
        # Not a bound method of the registry: a loss must stay copyable.
        loss.adapter_factory = functools.partial(
            _make_adapter, entry.adapter.use, entry.adapter.params
        )
    return loss


def _make_adapter(use: str, params: Mapping[str, Any]) -> Adapter:
    adapter: Adapter = registry().make(Adapter.kind, use, params)
    return adapter
