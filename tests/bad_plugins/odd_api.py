"""Bad: an API version that is none."""

KDZOO_API_VERSION = "1.0"
