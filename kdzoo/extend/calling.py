"""Other people's code is called here: what it raises comes out with its author's name on it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from kdzoo.errors import KdzooError, PluginError, RunError, SpecError

__all__ = ["calling"]


@contextlib.contextmanager
def calling(what: str) -> Iterator[None]:
    """Turn what a component raises into one message that says whose it is.

    Args:
        what: the component, for the message: ``loss "kd"``.

    Raises:
        SpecError: the component refused where it was put.
        RunError: the disk or the network refused.
        PluginError: anything else; the component's own exception is the cause.
    """
    try:
        yield
    except SpecError as error:
        raise SpecError(f"{what}: {error}") from error
    except KdzooError:
        raise
    except OSError as error:
        raise RunError(f"{what} failed: {type(error).__name__}: {error}") from error
    except (Exception, SystemExit) as error:  # a component that exits must not do so in silence
        raise PluginError(f"{what} failed: {type(error).__name__}: {error}") from error
