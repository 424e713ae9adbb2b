"""What the frozen teacher says about a view, kept in files: every run that sees it again reads it.

One file an epoch and output (the logits, or a layer that losses read), so that runs with other
losses find what they share; in it one record an image: its row, then the output byte for byte.
Files are named with a checksum once they are whole, so that one cut off in the middle, or damaged
since, is never read. The first batch of an epoch is always computed: it is compared with what is
stored, and tells how the outputs lie in memory, so that nothing about them need be written down.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from kdzoo.data.images import Images, View
from kdzoo.distill.network import Network
from kdzoo.distill.rows import RowLayout
from kdzoo.extend.contracts import Layer, Outputs
from kdzoo.training.hashed_file import digest_of

__all__ = ["Taught", "TeacherStore", "chunk_size", "nothing_known", "store_key"]

log = logging.getLogger("kdzoo")

Taught = Callable[[View], Outputs | None]
"""What the teacher says about a view; ``None`` where it is still to be asked."""

_Name = Layer | None  # of an output; ``None``: the logits
_CHUNK = 32
_FORMAT = 1  # a part of each key: another number makes stale what was kept before


def nothing_known(view: View) -> None:
    """The teacher is always to be asked."""
    del view


def chunk_size(batch_size: int) -> int:
    """How many images the teacher should see at a time: the same for all usual batches, so that
    they can share a store, and no more than a batch has."""
    return int(min(_CHUNK, 2 ** (batch_size.bit_length() - 1)))


def store_key(teacher: Network, images: Images, chunk: int | None, about: object) -> str:
    """A hash of all that decides what a teacher says about the views of an image set.

    Args:
        teacher: with its final weights, folded.
        images: what it sees.
        chunk: how many of them at a time.
        about: everything else, as plain data.
    """
    weights = digest_of([*teacher.named_parameters(), *teacher.named_buffers()])
    digest = hashlib.sha256(weights.encode())
    digest.update(images.train.indices.cpu().numpy().data)
    known = [
        _FORMAT,
        chunk,
        images.fingerprint,
        asdict(images.augmentation),
        teacher.channels_last,
        str(teacher),
        about,
    ]
    digest.update(json.dumps(known, sort_keys=True).encode())
    return digest.hexdigest()[:16]


class TeacherStore:
    """The stored outputs of one teacher about one series of views, in a directory of their own.

    Args:
        root: the directory of all stores.
        key: see :func:`store_key`.
        teach: asks the teacher.
        rows: the size of the source's training set.
        count: how many of these images an epoch has.
        limit: how many bytes all stores together may take. Other stores make way for another
            epoch, the one that was not used for the longest time first; where that is not enough,
            it is not stored.
        since: a time, as of ``time.time()``: what was used later does not make way, or the stores
            of a study whose runs take turns would chase each other away.
    """

    def __init__(
        self,
        root: Path,
        key: str,
        teach: Callable[[Tensor], Outputs],
        *,
        rows: int,
        count: int,
        limit: float,
        since: float,
    ) -> None:
        self.path = root / key
        self.teach = teach
        self.rows = rows
        self.count = count
        self.limit = limit
        self.since = since
        self.read = 0  # epochs that were
        self.written = 0  # epochs of which something was
        self._refused: set[_Name] = set()  # outputs for which there was no room
        self._closed = False  # the disk does not take anything

    def describe(self) -> str:
        """How much of what was read and written, for a message."""
        size = _size(self.path) / 1e9
        return (
            f"{self.read} epochs read, {self.written} stored, {size:.2g} GB in {self.path} "
            f"({_size(self.path.parent) / 1e9:.2g} of {self.limit / 1e9:g} GB in all stores)"
        )

    @contextlib.contextmanager
    def epoch(self, number: int) -> Iterator[Taught]:
        """The outputs of one epoch, counted from 0: read where all of them are stored. Else they
        are computed, and what is missing is written, if nobody else is writing in this store."""
        with contextlib.ExitStack() as stack:
            epoch = _Epoch(self, number, stack)
            yield epoch
            epoch.finish()

    def file(self, number: int, name: _Name) -> Path | None:
        """Where an output is stored, if it is."""
        return next(iter(sorted(self.path.glob(f"{_stem(number, name)}-*.rows"))), None)

    def begin(self, stack: contextlib.ExitStack) -> bool:
        """Be the one who writes in this store until the stack ends, if nobody else is."""
        if self._closed:
            return False
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(f"{self.path}.lock").acquire(timeout=0))
            for left in self.path.glob("*.partial"):  # of runs that were killed
                left.unlink()
        except Timeout:
            return False
        except OSError as error:
            self.close(error)
            return False
        return True

    def write(self, number: int, name: _Name, layout: RowLayout) -> _Written | None:
        """A file for an output of an epoch, if there is room, after older stores were removed."""
        size = self.count * _record(layout).itemsize
        if name in self._refused:
            return None
        if not self._room(size):
            self._refused.add(name)
            what = "the logits" if name is None else f'layer "{name}"'
            log.info("%s: `store_gb` does not allow for another epoch of %s", self.path, what)
            return None
        return _Written(self.path / f"{_stem(number, name)}.partial", size)

    def close(self, error: OSError) -> None:
        """Store nothing more in this run."""
        self._closed = True
        log.warning("%s: no more outputs of the teacher are stored: %s", self.path, error)

    def _room(self, size: int) -> bool:
        stores = [path for path in self.path.parent.iterdir() if path.is_dir()]
        used = {path: _size(path) for path in stores}
        older = [path for path in stores if path != self.path and _last_used(path) < self.since]
        if sum(used[path] for path in stores if path not in older) + size > self.limit:
            return False  # nothing is removed in vain
        for path in sorted(older, key=_last_used):
            if sum(used.values()) + size <= self.limit:
                break
            with contextlib.suppress(OSError, Timeout), FileLock(f"{path}.lock").acquire(timeout=0):
                shutil.rmtree(path)
                log.info("%s: removed, to make room for other outputs of teachers", path)
                del used[path]
        return sum(used.values()) + size <= self.limit


class _Epoch:
    """The outputs of one epoch; its first batch decides whether the others are read."""

    def __init__(self, store: TeacherStore, number: int, stack: contextlib.ExitStack) -> None:
        self._store = store
        self._number = number
        self._stack = stack
        self._begun = False
        self._read: dict[_Name, _Read] = {}  # all outputs or none
        self._written: dict[_Name, _Written] = {}

    def __call__(self, view: View) -> Outputs:
        """See :data:`Taught`."""
        rows = view.indices.cpu().numpy()
        if self._read:
            known = {name: file.tensor(rows) for name, file in self._read.items()}
            logits = known.pop(None)
            return Outputs(logits, {name: t for name, t in known.items() if name is not None})
        outputs = self._store.teach(view.inputs)
        tensors: dict[_Name, Tensor] = {None: outputs.logits}
        tensors.update(outputs.features.items())
        try:
            if not self._begun:
                self._begun = True
                self._begin(rows, tensors)
            for name, file in self._written.items():
                file.add(rows, tensors[name])
        except OSError as error:
            self._give_up(error)
        return outputs

    def finish(self) -> None:
        """All batches have passed: let the files be found."""
        try:
            for file in self._written.values():
                file.finish()
        except OSError as error:
            self._give_up(error)
        self._store.written += bool(self._written)

    def _begin(self, rows: npt.NDArray[Any], tensors: dict[_Name, Tensor]) -> None:
        """Read from now on, if all outputs are there and are what the teacher says now about these
        images; else write those that are missing."""
        read: dict[_Name, _Read] = {}
        missing = [name for name in tensors if self._store.file(self._number, name) is None]
        if not missing:  # checking takes time: it is done where they may all be read
            read = {
                name: file
                for name, tensor in tensors.items()
                if (file := self._checked(name, rows, tensor)) is not None
            }
            missing = [name for name in tensors if name not in read]
        if not missing:
            self._read = read
            self._store.read += 1
            with contextlib.suppress(OSError):
                os.utime(self._store.path)
        elif self._store.begin(self._stack):
            # The logits come before large layers: all losses share them.
            for name in sorted(missing, key=lambda name: tensors[name].nbytes):
                made = self._store.write(self._number, name, RowLayout.of(tensors[name]))
                if made is not None:
                    self._written[name] = self._stack.enter_context(contextlib.closing(made))

    def _checked(self, name: _Name, rows: npt.NDArray[Any], tensor: Tensor) -> _Read | None:
        path = self._store.file(self._number, name)
        if path is None:  # somebody has removed it
            return None
        try:
            file = _Read(path, RowLayout.of(tensor), self._store.rows, self._store.count)
        except (OSError, ValueError) as error:
            reason = f"is damaged: {error}"
        else:
            if file.holds(rows, tensor):
                return file
            reason = "holds something else than the teacher says now"
        log.warning("%s: %s; it is removed, and the teacher computes", path, reason)
        with contextlib.suppress(OSError):
            path.unlink()
        return None

    def _give_up(self, error: OSError) -> None:
        self._store.close(error)
        for file in self._written.values():
            file.close()
        self._written = {}


class _Read:
    """A file that holds one output about all images of an epoch.

    Args:
        path: the file.
        layout: how an image's output lies in memory.
        rows: the size of the source's training set.
        count: how many of these images are in it.

    Raises:
        ValueError: it is damaged.
    """

    def __init__(self, path: Path, layout: RowLayout, rows: int, count: int) -> None:
        self._layout = layout
        record = _record(layout)
        content = np.memmap(path, np.uint8, "r")
        if len(content) != count * record.itemsize:
            raise ValueError(f"it has {len(content)} bytes")
        if f"{zlib.crc32(content.data):08x}" != path.stem.rpartition("-")[2]:
            raise ValueError("its checksum is wrong")
        self._records: npt.NDArray[Any] = content.view(record)
        numbers = self._records["row"]
        if numbers.min() < 0 or numbers.max() >= rows:
            raise ValueError("it has rows of another set")
        self._place = np.full(rows, -1)  # of each row of the source's training set; -1 for none
        self._place[numbers] = np.arange(count)

    def holds(self, rows: npt.NDArray[Any], tensor: Tensor) -> bool:
        """Whether it says this about these rows."""
        place = self._place[rows]
        if (place < 0).any():
            return False
        return np.array_equal(self._records["output"][place], _bytes(tensor, self._layout))

    def tensor(self, rows: npt.NDArray[Any]) -> Tensor:
        """What it says about these rows, in memory as torch aligns it."""
        stored = torch.from_numpy(self._records["output"][self._place[rows]])
        aligned = stored.clone(memory_format=torch.contiguous_format)
        return self._layout.restored(aligned.view(self._layout.dtype))


class _Written:
    """A file that one output is being written into.

    Args:
        path: the file.
        size: how many bytes it will have.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self._size = size
        self._checksum = 0
        self._file = open(path, "wb")  # noqa: SIM115
        self._file.truncate(size)  # others that look for room see it at once

    def add(self, rows: npt.NDArray[Any], tensor: Tensor) -> None:
        """Some more images."""
        layout = RowLayout.of(tensor)
        records = np.empty(len(rows), _record(layout))
        records["row"] = rows
        records["output"] = _bytes(tensor, layout)
        content = records.tobytes()
        self._file.write(content)
        self._checksum = zlib.crc32(content, self._checksum)

    def finish(self) -> None:
        """Let the file be found, if it is whole."""
        if self._file.tell() != self._size:
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        self._path.replace(self._path.with_name(f"{self._path.stem}-{self._checksum:08x}.rows"))

    def close(self) -> None:
        """Leave nothing that is not whole."""
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self._path.unlink()


def _stem(number: int, name: _Name) -> str:
    """How the file of an epoch's output is called; a layer's own name may be anything."""
    label = "logits" if name is None else hashlib.sha256(repr(name).encode()).hexdigest()[:8]
    return f"{number:04d}-{label}"


def _record(layout: RowLayout) -> np.dtype[Any]:
    return np.dtype([("row", "<i8"), ("output", "u1", (layout.size * layout.dtype.itemsize,))])


def _bytes(tensor: Tensor, layout: RowLayout) -> npt.NDArray[np.uint8]:
    """(B, bytes), the memory of a tensor (B, ...), row by row."""
    memory: npt.NDArray[np.uint8] = layout.flat(tensor).contiguous().cpu().view(torch.uint8).numpy()
    return memory


def _last_used(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # somebody has removed it
        return 0.0


def _size(path: Path) -> int:
    """Bytes of all files below a directory."""
    total = 0
    for file in path.rglob("*"):
        with contextlib.suppress(OSError):  # somebody may be removing it
            total += file.stat().st_size if file.is_file() else 0
    return total
