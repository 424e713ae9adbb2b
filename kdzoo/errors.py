"""Everything kdzoo raises on purpose.

    KdzooError
    |-- SpecError         a spec, or the arguments given in its place, cannot be what was meant
    |-- PluginError       a plugin is broken, or a component does not keep its contract
    |-- DataError         images or labels are missing, damaged or contradict each other
    |-- CheckpointError   weights or a checkpoint cannot be read, or belong to something else
    `-- RunError          a run cannot go on: the disk, the lock, ...
        |-- LockedError       another process is in the run directory
        |-- NonFiniteError    a loss, a weight or a buffer became NaN or infinite
        `-- ProcessError      one of the processes that train together failed or was lost

A message names what is wrong, where, and what would be right. The command line prints it
without a traceback and exits with status 1.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "CheckpointError",
    "DataError",
    "KdzooError",
    "LockedError",
    "NonFiniteError",
    "PluginError",
    "ProcessError",
    "RunError",
    "SpecError",
    "did_you_mean",
]

_LISTED = 50  # names at most: there may be thousands


class KdzooError(Exception):
    """Base class of all errors that kdzoo raises on purpose."""


class SpecError(KdzooError):
    """A spec, or the arguments given in its place, cannot be what was meant."""


class PluginError(KdzooError):
    """A plugin is broken, or a component does not keep its contract."""


class DataError(KdzooError):
    """Images or labels are missing, damaged or contradict each other."""


class CheckpointError(KdzooError):
    """Weights or a checkpoint cannot be read, or belong to something else."""


class RunError(KdzooError):
    """A run cannot go on."""


class LockedError(RunError):
    """Another process is in the run directory."""


class NonFiniteError(RunError):
    """A loss, a weight or a buffer became NaN or infinite."""


class ProcessError(RunError):
    """One of the processes that train a run together failed or was lost."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of an error about an unknown ``word``: the nearest name, or what there is.

    Returns text that begins with "; ", or nothing where no name is known.
    """
    names = sorted({name for name in known if name != word})
    lower = {name.lower(): name for name in reversed(names)}
    near = difflib.get_close_matches(word.lower(), lower, n=1, cutoff=0.6)
    near = near or [name for name in sorted(lower) if word and name.startswith(word.lower())][:1]
    if near:
        return f'; did you mean "{lower[near[0]]}"?'
    if names:
        more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        return f"; known are {', '.join(names[:_LISTED])}{more}"
    return ""
