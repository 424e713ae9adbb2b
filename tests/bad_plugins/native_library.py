"""Bad: its compiled part is not there."""

import ctypes

ctypes.CDLL("libno_such_library.so.7")
