"""Everything needed to go on exactly, in one file that is never half written."""

from __future__ import annotations

import argparse
import re
import warnings
import zipfile
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from torch import Tensor

from kdzoo.errors import CheckpointError, PluginError
from kdzoo.interrupts import held_back
from kdzoo.training.directory import RunDirectory

__all__ = ["Best", "Checkpoint", "load_tensors", "not_a_checkpoint", "refuse_more_than_data"]

# How torch names what it does not read.
_REFUSED = re.compile(r"(?:Unsupported global:|unsupported) GLOBAL (\S+)")
_SAVED = (b"PK", b"\x80\x02\x8a\n")  # how what torch.save writes begins, since 1.6 and before


@dataclass
class Best:
    """The epoch with the best validation accuracy so far, and the student's weights then."""

    epoch: int
    accuracy: float
    student: dict[str, Tensor]


@dataclass
class Checkpoint:
    """The state after a finished epoch.

    Random states are not in it: every draw is a function of the seed and the step.

    Attributes:
        epoch: how many epochs are done, over all stages.
        step: how many steps.
        distiller: student, losses, class weights, curves and policy.
        optimizer: the state of the stage's optimizer.
        schedule: the state of the stage's schedule.
        observers: each observer's state, by name.
        validation: after each epoch, how many validation images of each class were classified
            correctly; empty without a validation split.
        best: the best of them.
    """

    epoch: int
    step: int
    distiller: dict[str, Any]
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    observers: dict[str, dict[str, Any]]
    validation: list[list[int]] = field(default_factory=list)
    best: Best | None = None

    def save(self, directory: RunDirectory) -> None:
        """Replace the directory's checkpoint.

        Raises:
            RunError: it cannot be written; the last one is kept.
            PluginError: a component's state holds more than data, and could not be read back.
        """
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        fields["best"] = None if self.best is None else vars(self.best)
        # One by one the numbers of a hundred classes and epochs would take longer than the rest.
        fields["validation"] = torch.tensor(self.validation, dtype=torch.int64)
        refuse_more_than_data("checkpoint", fields)
        with held_back(), directory.replacing(directory.checkpoint) as file:
            stream = _Unfailing(file)
            torch.save(fields, cast(BinaryIO, stream))
            if stream.failure is not None:
                raise stream.failure

    @classmethod
    def load(cls, directory: RunDirectory) -> Checkpoint | None:
        """The directory's checkpoint, on the CPU; ``None`` if there is none.

        Raises:
            CheckpointError: it is damaged.
        """
        if not directory.checkpoint.exists():
            return None
        remedy = f"its epochs are lost; remove {directory.path} to train from the first one again"
        try:
            fields = load_tensors(directory.checkpoint)
        except CheckpointError as error:
            if isinstance(error.__cause__, OSError):  # the disk's reason, and nothing may be lost
                raise
            raise CheckpointError(f"{error}; {remedy}") from error
        try:
            best = fields.pop("best")
            fields["validation"] = fields["validation"].tolist()
            return cls(**fields, best=None if best is None else Best(**best))
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{directory.checkpoint}: is no checkpoint of this version of kdzoo ({error}); "
                f"{remedy}"
            ) from error


class _Unfailing:
    """A file that keeps what goes wrong with it to itself: torch's writer aborts the process where
    something is raised in it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.failure: OSError | None = None

    def write(self, data: bytes) -> int:
        if self.failure is None:
            try:
                self._file.write(data)
            except OSError as error:
                self.failure = error
        return len(data)

    def flush(self) -> None:
        """Its owner does that."""


def refuse_more_than_data(where: str, value: Any) -> None:
    """Refuse a state that could not be read back without running code.

    Args:
        where: what the value is, for the message.
        value: a state: tensors and plain Python values, in dicts, lists and tuples.

    Raises:
        PluginError: something in it is more than that; the message says where.
    """
    if type(value) in (dict, OrderedDict):
        for key, item in value.items():
            refuse_more_than_data(f"{where}.{key}", item)
    elif type(value) in (list, tuple):
        for number, item in enumerate(value):
            refuse_more_than_data(f"{where}.{number}", item)
    elif not (value is None or type(value) in (str, int, float, bool, Counter) or _tensor(value)):
        raise PluginError(
            f"{where} is {type(value).__module__}.{type(value).__qualname__}; a state must hold "
            "tensors and plain Python values only, or the run could not be continued"
        )


def _tensor(value: Any) -> bool:
    return type(value) in (Tensor, torch.nn.Parameter)


def load_tensors(path: Path) -> Any:
    """What ``torch.save`` wrote, as long as it is data: no code in the file is run.

    NumPy's numbers and arrays are data too, and so are parsed options: published files hold
    accuracies and an ``argparse.Namespace`` beside the weights.

    Raises:
        CheckpointError: the file is damaged, or holds more than data.
    """
    try:
        _check_sums(path)
        safe = [*_numpy_numbers(), argparse.Namespace]
        with torch.serialization.safe_globals(safe), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what cannot be read is said below
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except Exception as error:
        if found := _REFUSED.search(str(error)):
            raise CheckpointError(
                f"{path}: holds something else than tensors and plain data ({found[1]}), which "
                "could run code; save a state dict alone, `torch.save(model.state_dict(), ...)`. "
                "If you trust who made the file, read it yourself with `torch.load(..., "
                "weights_only=False)`, and save what it has of weights"
            ) from error
        reason = not_a_checkpoint(path) or (
            "is damaged, or holds something else than tensors and plain data"
        )
        raise CheckpointError(f"{path}: {reason}") from error


def not_a_checkpoint(path: Path) -> str:
    """Why a file that could not be read never was one by its name; empty if it may have been."""
    try:
        with open(path, "rb") as stream:
            begin = stream.read(512)
    except OSError:
        return ""
    start = begin.lstrip()
    if not start:
        return "is empty"
    if path.suffix == ".safetensors" and begin.startswith(_SAVED):
        return "is what torch.save writes; give it a name that ends in .pth"
    if path.suffix != ".safetensors" and begin[8:10] == b'{"':  # after eight bytes of length
        return "is a safetensors file; give it a name that ends in .safetensors"
    if start.startswith(b"\x1f\x8b"):
        return "is packed with gzip; unpack it first"
    if start.startswith(b"<"):
        return "is a web page and no checkpoint; download it again"
    return ""


def _check_sums(path: Path) -> None:
    """torch.save writes checksums, and torch.load passes them over.

    Raises:
        zipfile.BadZipFile: one does not match.
    """
    if not zipfile.is_zipfile(path):
        return  # of a torch before 1.6: without checksums
    with zipfile.ZipFile(path) as archive:
        written = any(part.CRC for part in archive.infolist())  # it can be told not to
        if written and archive.testzip() is not None:
            raise zipfile.BadZipFile


def _numpy_numbers() -> list[Any]:
    """What the pickle of NumPy's numbers and arrays calls, by the names that it has had."""
    make = np.float64().__reduce__()[0]
    build = np.zeros(1).__reduce__()[0]
    types = {type(np.dtype(code)) for code in np.typecodes["AllInteger"] + "efd?"}
    modules = ("numpy.core.multiarray", "numpy._core.multiarray")
    names = {"scalar": make, "_reconstruct": build}
    called = [(what, f"{module}.{name}") for module in modules for name, what in names.items()]
    return [np.dtype, np.ndarray, *types, *called]
