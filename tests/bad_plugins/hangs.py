"""Bad: waits for a server, and tries again whatever happens."""

import time

while True:
    try:
        time.sleep(3600)
    except Exception:
        continue
