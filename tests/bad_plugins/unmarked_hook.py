"""Bad: the function is not marked."""


def kdzoo_losses():
    return []
