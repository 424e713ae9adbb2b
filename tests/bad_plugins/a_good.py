"""Good, and loaded first."""

from typing import ClassVar

import kdzoo


class Good(kdzoo.Loss):
    """A loss."""

    name = "good"

    def forward(self, student, teacher, batch):
        return student.logits.sum(1)


class GoodImages(kdzoo.DataSource):
    """Images."""

    name = "good-images"
    starters: ClassVar = {"good-images": "name: good"}

    def load(self):
        raise kdzoo.DataError("there are none")


@kdzoo.hookimpl
def kdzoo_losses():
    return [Good]


@kdzoo.hookimpl
def kdzoo_datasets():
    return [GoodImages]
