"""Other people's code is called here: what it raises comes out with its author's name on it."""

from __future__ import annotations

import contextlib
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch

from kdzoo.errors import KdzooError, PluginError, RunError, SpecError

__all__ = ["calling"]

_PYTHON = Path(sysconfig.get_path("stdlib"))  # that of packages is often within
_NOT_THEIRS = (Path(__file__).parents[1], Path(torch.__file__).parent)


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
        place = _place(error)
        raise PluginError(f"{what} failed: {type(error).__name__}: {error}{place}") from error


def _place(error: BaseException) -> str:
    """Where the component raised it: in the directory of the first file that is neither ours, nor
    torch's, nor Python's."""
    frames = [(Path(f.filename), f.lineno) for f in traceback.extract_tb(error.__traceback__)]
    theirs = [frame for frame in frames if _is_theirs(frame[0])]
    inner = [frame for frame in theirs if frame[0].parent == theirs[0][0].parent]
    return f" ({inner[-1][0].name}:{inner[-1][1]})" if inner else ""


def _is_theirs(file: Path) -> bool:
    if file.name.startswith("<") or any(map(file.is_relative_to, _NOT_THEIRS)):
        return False
    return "site-packages" in file.parts or not file.is_relative_to(_PYTHON)
