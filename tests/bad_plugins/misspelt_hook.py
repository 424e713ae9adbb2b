"""Bad: the hook's name has a letter too few."""

import kdzoo


@kdzoo.hookimpl
def kdzoo_loses():
    return []
