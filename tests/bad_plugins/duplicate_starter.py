"""Bad: offers a spec of a name that another plugin has."""

from typing import ClassVar

import kdzoo


class DuplicateStarter(kdzoo.DataSource):
    """Images."""

    name = "duplicate-starter"
    starters: ClassVar = {"good-images": "name: other"}

    def load(self):
        raise kdzoo.DataError("there are none")


@kdzoo.hookimpl
def kdzoo_datasets():
    return [DuplicateStarter]
