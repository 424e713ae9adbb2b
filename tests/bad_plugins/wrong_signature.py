"""Bad: hooks take nothing."""

import kdzoo


@kdzoo.hookimpl
def kdzoo_losses(config):
    return []
