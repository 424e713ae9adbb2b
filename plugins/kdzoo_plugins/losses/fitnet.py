"""FitNets: hints."""

from __future__ import annotations

from torch import Tensor, nn

import kdzoo
from kdzoo_plugins.losses._precision import at_least_single, refuse_unlike

__all__ = ["FitNet", "hint_loss"]


def hint_loss(student_feature: Tensor, teacher_feature: Tensor) -> Tensor:
    """The mean squared difference of two features, regressor already applied.

    Romero et al., "FitNets: Hints for Thin Deep Nets" (ICLR 2015), equation 3, as a mean over all
    elements.

    Args:
        student_feature: (B, ...), of two dimensions at least.
        teacher_feature: the same shape.

    Returns:
        (B,), one value per sample; their mean is the published loss.

    Raises:
        ValueError: the shapes differ, or have one dimension.
    """
    refuse_unlike(student_feature, teacher_feature)
    if student_feature.ndim < 2:
        raise ValueError(f"the features are {tuple(student_feature.shape)}; they must be (B, ...)")
    difference = at_least_single(student_feature) - at_least_single(teacher_feature)
    return difference.square().flatten(1).mean(1)


class FitNet(kdzoo.Loss):
    """Hints: the student's feature, brought into the teacher's shape, shall equal the teacher's.

    ``mean((r(f_s) - f_t)^2)`` over all elements, with the features f_s and f_t of a pair of
    ``layers``, and the adapter r.

    Romero et al., "FitNets: Hints for Thin Deep Nets" (ICLR 2015), equation 3. On CIFAR-100 the
    literature compares network stage 2 by a convolutional regressor, with weight 100 beside the
    cross entropy. Several pairs of layers are added up, each with an adapter of its own.
    """

    name = "fitnet"
    default_weight = 100.0
    default_layers = (kdzoo.LayerPair(student=2, teacher=2),)
    default_adapter = "regressor"
    invariances = frozenset({"identity", "duplication", "permutation"})

    def setup(
        self,
        student_shapes: kdzoo.Shapes,
        teacher_shapes: kdzoo.Shapes,
        num_classes: int,
        num_samples: int,
    ) -> None:
        """See :meth:`kdzoo.Loss.setup`."""
        self.adapters = nn.ModuleList(
            self.new_adapter(
                student_shapes.features[pair.student], teacher_shapes.features[pair.teacher]
            )
            for pair in self.layers
        )

    def forward(self, student: kdzoo.Outputs, teacher: kdzoo.Outputs, batch: kdzoo.Batch) -> Tensor:
        """See :meth:`kdzoo.Loss.forward`."""
        rows = [
            hint_loss(adapter(student.features[pair.student]), teacher.features[pair.teacher])
            for adapter, pair in zip(self.adapters, self.layers, strict=True)
        ]
        return sum(rows[1:], rows[0])


@kdzoo.hookimpl
def kdzoo_losses() -> list[type[kdzoo.Loss]]:
    """See :mod:`kdzoo.extend.hookspecs`."""
    return [FitNet]
