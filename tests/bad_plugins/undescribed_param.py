"""Bad: nobody can know what its parameter means."""

import kdzoo


class Silent(kdzoo.Loss):
    """A loss."""

    name = "silent"

    class Params(kdzoo.Params):
        tau: float = 1.0

    def forward(self, student, teacher, batch):
        return student.logits.sum(1)


@kdzoo.hookimpl
def kdzoo_losses():
    return [Silent]
