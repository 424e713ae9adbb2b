"""Bad: says nothing of itself."""

import kdzoo


class Undocumented(kdzoo.Loss):
    name = "undocumented"

    def forward(self, student, teacher, batch):
        return student.logits.sum(1)


@kdzoo.hookimpl
def kdzoo_losses():
    return [Undocumented]
