"""How long the steps of an epoch wait for their images."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator

from kdzoo.data.images import View

__all__ = ["LoaderClock"]


class LoaderClock:
    """Takes the time that each view of an epoch is waited for.

    Attributes:
        share: waited / passed, of the time since the epoch began. What a GPU has still queued
            counts with whoever next waits for it.
    """

    def __init__(self) -> None:
        self.share = 0.0

    def watched(self, views: Generator[View, None, None]) -> Generator[View, None, None]:
        """The views of an epoch, as they come; closed with this."""
        begun, waited = time.perf_counter(), 0.0
        with contextlib.closing(views):
            while True:
                asked = time.perf_counter()
                view = next(views, None)
                now = time.perf_counter()
                waited += now - asked
                self.share = waited / (now - begun)
                if view is None:
                    return
                yield view
