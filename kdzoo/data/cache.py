"""Decoded images, kept in a file beside the runs."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

__all__ = ["Kept", "keep", "kept"]

log = logging.getLogger("kdzoo")

_KEY = "kdzoo"  # of our record in the file's metadata


@dataclass(frozen=True)
class Kept:
    """What is known of decoded images.

    Attributes:
        version: of the images on the disk, and of how they were decoded.
        mean: each channel's mean.
        std: each channel's standard deviation.
        fingerprint: a hash of the images, their labels and the above.
    """

    version: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str


def keep(file: Path, record: Kept, train: Tensor, test: Tensor) -> None:
    """Write decoded images down for the next run. Where that fails, a warning says so."""
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file(
            {"train": train, "test": test}, partial, {_KEY: json.dumps(asdict(record))}
        )
        with open(partial, "rb") as stream:
            os.fsync(stream.fileno())
        os.replace(partial, file)
    except (OSError, safetensors.SafetensorError) as error:
        log.warning(
            "%s: cannot be written, so that the images will be decoded again (%s)", file, error
        )
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def kept(file: Path) -> tuple[Kept, Tensor, Tensor] | None:
    """What :func:`keep` wrote; ``None`` if there is nothing.

    Raises:
        ValueError: the file is damaged. That the images are as they were is not checked here.
    """
    if not file.exists():
        return None
    try:
        with safetensors.safe_open(file, "pt") as stored:
            fields = json.loads(stored.metadata()[_KEY])
            record = Kept(**{**fields, "mean": tuple(fields["mean"]), "std": tuple(fields["std"])})
            return record, stored.get_tensor("train"), stored.get_tensor("test")
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
