"""What a spec names, made: the recipe of a network, the losses."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path

from kdzoo.data.images import Images
from kdzoo.distill.terms import make_loss
from kdzoo.errors import SpecError
from kdzoo.extend.bases import Loss, ModelSource
from kdzoo.extend.calling import calling
from kdzoo.extend.registry import registry
from kdzoo.spec.models import LossEntry, ModelEntry, Spec
from kdzoo.training.weights import NetworkRecipe

__all__ = ["losses_of", "recipe_of", "refuse_other_classes"]


def recipe_of(entry: ModelEntry, images: Images, role: str) -> NetworkRecipe:
    """How the network of an entry is made for these images; ``role`` is for messages."""
    source: ModelSource = registry().make(ModelSource.kind, entry.use, entry.params)
    # Weights of ours bring the classes and the normalization that they were trained with.
    saved = None if entry.checkpoint is None else NetworkRecipe.of(Path(entry.checkpoint))
    if saved is not None:
        refuse_other_classes(saved.classes, images, role)
    with calling(f'model "{entry.use}"'):
        normalization = entry.normalize or saved or source.normalization() or images
    channels, count = images.input_shape[0], len(normalization.mean)
    if count != channels:
        raise SpecError(
            f"the {role} is normalized with {count} means, and the images have {channels} "
            f"channels; say `normalize` in {role}"
        )
    return NetworkRecipe(
        entry.use,
        entry.params,
        images.input_shape,
        images.classes,
        normalization.mean,
        normalization.std,
    )


def refuse_other_classes(known: tuple[str, ...], images: Images, role: str) -> None:
    """The classes that a network knows must be those of the images, in the same order."""
    if known != images.classes:
        pairs = zip_longest(known, images.classes, fillvalue="none")
        number, (ours, theirs) = next((i, pair) for i, pair in enumerate(pairs) if len({*pair}) > 1)
        raise SpecError(
            f"the {role} knows {len(known)} classes and the data has {len(images.classes)}; class "
            f"{number} is {ours} there and {theirs} here; they must be the same, in the same order"
        )


def losses_of(spec: Spec) -> dict[str, Loss]:
    """The losses of all stages by id; what has the same id in two stages is the same loss."""
    entries: dict[str, LossEntry] = {}
    for stage in spec.stages:
        for entry in stage.losses:
            plain = entry.model_copy(update={"weight": 1.0, "warmup_epochs": 0})
            if entries.setdefault(entry.id, plain) != plain:
                raise SpecError(
                    f'stages: the loss "{entry.id}" has other parameters in another stage; only '
                    "weight and warmup_epochs may differ, or give it another id"
                )
    return {name: make_loss(entry) for name, entry in entries.items()}
