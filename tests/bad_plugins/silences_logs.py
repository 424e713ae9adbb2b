"""Bad: nobody's warnings are heard any more."""

import logging

logging.disable(logging.CRITICAL)
