"""Bad: its specs to start from are no mapping."""

import kdzoo


class NoStarters(kdzoo.DataSource):
    """Images."""

    name = "no-starters"
    starters = None

    def load(self):
        raise kdzoo.DataError("there are none")


@kdzoo.hookimpl
def kdzoo_datasets():
    return [NoStarters]
