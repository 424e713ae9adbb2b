"""Bad: a name that a spec would have to quote."""

import kdzoo


class Shouting(kdzoo.Loss):
    """A loss."""

    name = "My Loss!"

    def forward(self, student, teacher, batch):
        return student.logits.sum(1)


@kdzoo.hookimpl
def kdzoo_losses():
    return [Shouting]
