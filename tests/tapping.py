"""Reads every declared layer of a model through a Distiller, as a loss would."""

from __future__ import annotations

from torch import Tensor, nn

import kdzoo


class Reads(kdzoo.Loss):
    """Cross entropy that taps the layers it is given."""

    name = "reads"
    guidance = "label"

    def __init__(self, layers: tuple[int | str, ...]) -> None:
        super().__init__()
        self.layers = tuple(kdzoo.LayerPair(layer, layer) for layer in layers)

    def forward(self, student: kdzoo.Outputs, teacher: kdzoo.Outputs, batch: kdzoo.Batch) -> Tensor:
        return nn.functional.cross_entropy(student.logits, batch.targets, reduction="none")


def tapped(
    model: nn.Module, layers: kdzoo.Layers, example: Tensor, classes: int
) -> kdzoo.Distiller:
    """A Distiller that reads all declared stages, and the penultimate layer if there is one."""
    wanted: list[int | str] = list(range(len(layers.stages)))
    if layers.penultimate:
        wanted.append("penultimate")
    return kdzoo.Distiller(
        None,
        model,
        [kdzoo.Term("reads", Reads(tuple(wanted)))],
        example=example,
        classes=[str(c) for c in range(classes)],
        num_samples=1,
        student_layers=layers,
    )
