"""Bad: published with a weight that is no number."""

import kdzoo


class WrongAttribute(kdzoo.Loss):
    """A loss."""

    name = "wrong-attribute"
    default_weight = "heavy"

    def forward(self, student, teacher, batch):
        return student.logits.sum(1)


@kdzoo.hookimpl
def kdzoo_losses():
    return [WrongAttribute]
