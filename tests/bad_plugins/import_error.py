"""Bad: needs a library that nobody has."""

import no_such_library  # noqa: F401
