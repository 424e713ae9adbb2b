"""Bad: its parameter would hide the spec's own key."""

import kdzoo


class Reserved(kdzoo.Loss):
    """A loss."""

    name = "reserved"

    class Params(kdzoo.Params):
        weight: float = kdzoo.Field(1.0, description="A weight of its own.")

    def forward(self, student, teacher, batch):
        return student.logits.sum(1)


@kdzoo.hookimpl
def kdzoo_losses():
    return [Reserved]
