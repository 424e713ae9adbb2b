"""Tensors in a .safetensors file, and what is to be known about them, with a hash: the format has
no checksums of its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

__all__ = ["digest_of", "pack", "read_about", "unpack"]

_KEY = "kdzoo"  # of our record in the metadata: one key, since the order of several is random


def pack(tensors: Mapping[str, Tensor], **about: object) -> bytes:
    """The bytes of a file with these tensors and plain data about them."""
    record = {**about, "hash": digest_of(sorted(tensors.items()))}
    copies = {name: tensor.cpu().clone() for name, tensor in tensors.items()}
    return safetensors.torch.save(copies, {_KEY: json.dumps(record, sort_keys=True)})


def read_about(file: Path) -> dict[str, Any] | None:
    """What :func:`pack` was told about the tensors in a file; ``None`` if others wrote it.

    Raises:
        OSError: it cannot be read.
        safetensors.SafetensorError, ValueError: it is damaged.
    """
    with safetensors.safe_open(file, "pt") as archive:
        return _about(archive)


def unpack(file: Path) -> dict[str, Tensor]:
    """The tensors in a file, held against their hash if :func:`pack` made it.

    Raises:
        OSError: it cannot be read.
        safetensors.SafetensorError, ValueError: it is damaged.
    """
    with safetensors.safe_open(file, "pt") as archive:
        record = _about(archive)
        names = archive.keys()  # it is no mapping
        tensors: dict[str, Tensor] = {name: archive.get_tensor(name) for name in names}
    if record is not None and record["hash"] != digest_of(sorted(tensors.items())):
        raise ValueError("its numbers are not those that were written")
    return tensors


def _about(archive: Any) -> dict[str, Any] | None:
    metadata = archive.metadata() or {}
    return json.loads(metadata[_KEY]) if _KEY in metadata else None


def digest_of(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """A hash of names and values."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
