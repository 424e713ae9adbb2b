"""Bad: written for a kdzoo that is not out yet."""

KDZOO_API_VERSION = 99
