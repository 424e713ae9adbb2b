"""Bad: a policy where losses are due."""

import kdzoo


class Policy(kdzoo.ClassPolicy):
    """A policy."""

    name = "policy"

    def update(self, curves):
        return self.initial(2)


@kdzoo.hookimpl
def kdzoo_losses():
    return [Policy]
