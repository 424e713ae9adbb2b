"""Bad: its hook fails."""

import kdzoo


@kdzoo.hookimpl
def kdzoo_losses():
    raise RuntimeError("the licence server did not answer")
