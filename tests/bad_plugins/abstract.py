"""Bad: a loss without forward."""

import kdzoo


class Unfinished(kdzoo.Loss):
    """A loss."""

    name = "unfinished"


@kdzoo.hookimpl
def kdzoo_losses():
    return [Unfinished]
