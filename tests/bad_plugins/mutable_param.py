"""Bad: a parameter that can be changed behind the run's back."""

import kdzoo


class Mutable(kdzoo.Loss):
    """A loss."""

    name = "mutable"

    class Params(kdzoo.Params):
        scales: list[float] = kdzoo.Field([1.0], description="Scales.")

    def forward(self, student, teacher, batch):
        return student.logits.sum(1)


@kdzoo.hookimpl
def kdzoo_losses():
    return [Mutable]
