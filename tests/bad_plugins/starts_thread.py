"""Bad: no command ends while its thread waits."""

import threading

threading.Thread(target=threading.Event().wait, name="waiting").start()
