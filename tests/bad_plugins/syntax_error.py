"""Bad: is no Python."""

def kdzoo_losses(:
    return []
