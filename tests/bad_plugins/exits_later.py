"""Bad: ends the process when it is asked what it adds."""

import sys

import kdzoo


@kdzoo.hookimpl
def kdzoo_losses():
    sys.exit("no licence")
