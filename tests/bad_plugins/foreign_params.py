"""Bad: params of its own making."""

import kdzoo


class ForeignParams(kdzoo.Loss):
    """A loss."""

    name = "foreign-params"

    class Params:
        tau = 1.0

    def forward(self, student, teacher, batch):
        return student.logits.sum(1)


@kdzoo.hookimpl
def kdzoo_losses():
    return [ForeignParams]
