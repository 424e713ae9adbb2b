"""Bad: a name that cannot be typed everywhere."""

import kdzoo


class UnicodeName(kdzoo.Loss):
    """A loss."""

    name = "größe"

    def forward(self, student, teacher, batch):
        return student.logits.sum(1)


@kdzoo.hookimpl
def kdzoo_losses():
    return [UnicodeName]
