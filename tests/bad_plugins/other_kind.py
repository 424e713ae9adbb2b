"""Bad: a loss that says it is something else."""

import kdzoo


class OtherKind(kdzoo.Loss):
    """A loss."""

    name = "other-kind"
    kind = "feature"

    def forward(self, student, teacher, batch):
        return student.logits.sum(1)


@kdzoo.hookimpl
def kdzoo_losses():
    return [OtherKind]
