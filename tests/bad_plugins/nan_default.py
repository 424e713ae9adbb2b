"""Bad: a default that no spec can say."""

import kdzoo


class NaNDefault(kdzoo.Loss):
    """A loss."""

    name = "nan-default"

    class Params(kdzoo.Params):
        tau: float = kdzoo.Field(float("nan"), description="A number.")

    def forward(self, student, teacher, batch):
        return student.logits.sum(1)


@kdzoo.hookimpl
def kdzoo_losses():
    return [NaNDefault]
