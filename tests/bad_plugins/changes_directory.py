"""Bad: relative paths mean something else afterwards."""

import os

os.chdir("/")
