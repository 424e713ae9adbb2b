"""Bad: Ctrl-C does nothing any more."""

import signal

signal.signal(signal.SIGINT, signal.SIG_IGN)
