"""Bad: takes a name that another plugin has."""

import kdzoo


class Other(kdzoo.Loss):
    """Another loss of a name that is taken."""

    name = "good"

    def forward(self, student, teacher, batch):
        return student.logits.sum(1)


@kdzoo.hookimpl
def kdzoo_losses():
    return [Other]
