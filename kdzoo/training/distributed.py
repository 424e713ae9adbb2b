"""One process, or several that torchrun started and that train a run together.

The first process does all that a process does that is alone: it reads the spec, keeps the run
directory, evaluates, reports. The others wait until it trains something, put the same parts
together, and take part. torch's process group exists only while a run is trained: around it, where
the first process tries a step or evaluates, it is alone, and no loss waits there for another.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import logging
import os
import pickle
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from kdzoo.data.images import Images, own_rows
from kdzoo.errors import KdzooError, NonFiniteError, ProcessError, RunError, SpecError
from kdzoo.extend.gathering import shared_as
from kdzoo.interrupts import held_back
from kdzoo.spec.models import Spec
from kdzoo.torchrun import rank_and_count
from kdzoo.training.whole_batch import WholeBatch

__all__ = ["Processes", "processes", "refuse_too_many_processes"]

T = TypeVar("T")

log = logging.getLogger("kdzoo")

_LOOK = 0.05  # seconds between two looks at what the others say
_STOPPING = 20.0  # seconds in which the others stop when all are told to; torchrun gives them 30
_LEAVING = 30.0  # seconds that the others have to hear that all is done
_PATIENCE = datetime.timedelta(hours=2)  # the first process evaluates while the others wait
_FAILED = "failed"
_LOST = ("gloo", "nccl", "connection", "socket", "broken pipe")  # in what torch then says


class Processes:
    """One process: whatever several would exchange, it has.

    Attributes:
        rank: the process's number.
        count: how many there are.
        local_rank: its number on its machine.
        local_count: how many there are on its machine.
    """

    rank = 0
    count = 1
    local_rank = 0
    local_count = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that reads, writes and speaks for all."""
        return self.rank == 0

    def lead(self, work: Callable[[], T], part: Callable[[Any], None]) -> T:
        """Do some work in the first process. In the others, do each part that it gives out.

        Args:
            work: what the first process does; its answer must be possible to pickle.
            part: what another process does with what is given out by :meth:`give_out`.

        Returns:
            What ``work`` answered, in every process.

        Raises:
            ProcessError: another process failed, or was lost.
        """
        del part
        return work()

    def give_out(self, job: object) -> None:
        """Tell the others what is done now; :meth:`together` follows, here and there."""
        del job

    @contextlib.contextmanager
    def together(self, device: torch.device) -> Iterator[None]:
        """In here the processes are a group of torch.distributed.

        Args:
            device: where this process computes.

        Raises:
            ProcessError: another process failed, or was lost.
        """
        del device
        yield

    def shared(self, value: T) -> T:
        """What the first process has given here."""
        return value

    def same(self, module: nn.Module) -> None:
        """Give a module the state that it has in the first process."""
        del module

    def whole_batch(self, size: int) -> contextlib.AbstractContextManager[object]:
        """In here a process computes on its part of a batch of ``size`` images."""
        del size
        return contextlib.nullcontext()

    def share(self, size: int) -> float:
        """The part of a batch of ``size`` images that this process has: what its means weigh."""
        del size
        return 1.0

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their sums over all processes, in one exchange."""
        del tensors

    def may_speak(self) -> bool:
        """Whether this process is the one to say why the work has ended."""
        return True


class _Several(Processes):
    """Some processes that know each other by a store of torch.distributed.

    Args:
        store: keys and values that all of them see.
        rank: this process's number.
        count: how many there are.
    """

    def __init__(self, store: Store, rank: int, count: int) -> None:
        self.rank = rank
        self.count = count
        self.local_rank = int(os.environ.get("LOCAL_RANK", rank))
        self.local_count = int(os.environ.get("LOCAL_WORLD_SIZE", count))
        self._store = store
        self._given = 0  # jobs so far, in all processes alike
        self._loss: ProcessError | None = None

    def lead(self, work: Callable[[], T], part: Callable[[Any], None]) -> T:
        try:
            if self.first:
                answer = work()
                self._end(answer)
                return answer
            while True:
                job = self._next()
                if isinstance(job, _Done):
                    self._store.set(f"left/{self._given}/{self.rank}", "")
                    done: T = job.answer
                    return done
                with contextlib.suppress(NonFiniteError):  # what follows, the first one says
                    part(job)
        except BaseException as error:
            with held_back(second=False):  # a second signal would leave the others without a word
                self._leave()
                speaks = self._claim(error)
            if isinstance(error, KeyboardInterrupt):
                # torchrun terminates those that are left when one is lost.
                if speaks and self._loss is None and not self._all_leave():
                    self._lose()
                if self._loss is not None:
                    raise self._loss from None
            raise

    def give_out(self, job: object) -> None:
        self._given += 1
        self._store.set(f"job/{self._given}", pickle.dumps(job))  # type: ignore[arg-type]

    @contextlib.contextmanager
    def together(self, device: torch.device) -> Iterator[None]:
        if distributed.is_initialized():
            raise RunError(
                "torch.distributed is initialized already; kdzoo does that itself: call "
                "destroy_process_group() first"
            )
        # Each is waited for here, where what ended another one is heard of; torch would not hear.
        self._store.set(f"ready/{self._given}/{self.rank}", "")
        self._wait(self._of_all("ready"))
        try:
            distributed.init_process_group(
                "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
                store=PrefixStore(f"group/{self._given}", self._store),
                rank=self.rank,
                world_size=self.count,
                timeout=_PATIENCE,
            )
            yield
        except NonFiniteError:  # all have the same numbers, and have come to the same end
            raise
        except BaseException as error:
            with held_back(second=False):
                _let_go(error)
                if _is_lost(error):
                    raise self._lost() from error
                self._claim(error)  # before the others miss us
            raise
        finally:
            with held_back(second=False):
                if distributed.is_initialized():
                    distributed.destroy_process_group()

    def shared(self, value: T) -> T:
        box = [value]
        distributed.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def same(self, module: nn.Module) -> None:
        # From the CPU: a tensor of a GPU would come out on the same one of the other process.
        state = {
            name: value.cpu() if isinstance(value, Tensor) else value
            for name, value in module.state_dict().items()
        }
        module.load_state_dict(self.shared(state))

    @contextlib.contextmanager
    def whole_batch(self, size: int) -> Iterator[None]:
        parts = [own_rows(size, rank, self.count) for rank in range(self.count)]
        sizes = [part.stop - part.start for part in parts]
        with shared_as(sizes), WholeBatch(parts[self.rank], size):
            yield

    def share(self, size: int) -> float:
        own = own_rows(size, self.rank, self.count)
        return float(own.stop - own.start) / size

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        # One exchange of all gradients, not DDP: a stage may have parameters that none of its
        # losses reaches. They have no gradient, and DDP would look for them in every step.
        for kind in dict.fromkeys(tensor.dtype for tensor in tensors):  # in one order everywhere
            alike = [tensor for tensor in tensors if tensor.dtype == kind]
            flat = torch.cat([tensor.reshape(-1) for tensor in alike])
            distributed.all_reduce(flat)
            sums = torch.split(flat, [tensor.numel() for tensor in alike])
            for tensor, total in zip(alike, sums, strict=True):
                tensor.copy_(total.view_as(tensor))

    def may_speak(self) -> bool:
        return self._claim("failed")

    def _end(self, answer: object) -> None:
        """Let the others go, and stay until they have heard it: the store may end with us."""
        self.give_out(_Done(answer))
        deadline = time.monotonic() + _LEAVING
        with contextlib.suppress(ProcessError):  # whoever fails now does not change what was done
            self._wait(self._of_all("left")[1:], deadline)

    def _of_all(self, key: str) -> list[str]:
        return [f"{key}/{self._given}/{rank}" for rank in range(self.count)]

    def _next(self) -> Any:
        self._given += 1
        key = f"job/{self._given}"
        self._wait([key])
        return pickle.loads(self._store.get(key))

    def _wait(self, keys: list[str], deadline: float = float("inf")) -> None:
        """Wait for keys of the store; in Python, where Ctrl-C and SIGTERM reach us."""
        try:
            while not self._store.check(keys):
                if self._store.check([_FAILED]):
                    raise self._lost()
                if time.monotonic() > deadline:
                    return
                time.sleep(_LOOK)
        except RuntimeError as error:  # the store is gone, and with it the process that kept it
            raise self._lost() from error

    def _lost(self) -> ProcessError:
        said = ""
        with contextlib.suppress(RuntimeError):
            if self._store.check([_FAILED]):
                said = self._store.get(_FAILED).decode()
        if said:
            return ProcessError(f"process {said}")
        self._lose()
        assert self._loss is not None
        return self._loss

    def _lose(self) -> None:
        self._loss = ProcessError(
            f"one of the {self.count} processes was lost, or torchrun (killed, or its machine is "
            "gone); the same command goes on from the last finished epoch"
        )
        self._claim(self._loss)

    def _leave(self) -> None:
        with contextlib.suppress(RuntimeError):
            self._store.set(f"leaves/{self.rank}", "")

    def _all_leave(self) -> bool:
        """Whether the others were told to stop, too; one that was killed cannot say so."""
        deadline = time.monotonic() + _STOPPING
        everybody = [f"leaves/{rank}" for rank in range(self.count)]
        try:
            while not self._store.check(everybody):
                if time.monotonic() > deadline:
                    return False
                time.sleep(_LOOK)
        except RuntimeError:
            pass  # the store is gone: its process was told first, or is lost, and we were told
        return True

    def _claim(self, reason: BaseException | str) -> bool:
        """Be the one to say why it ended, unless another process is already."""
        mine = f"{self.rank}"
        said = str(reason) or type(reason).__name__
        with contextlib.suppress(RuntimeError):
            stands = self._store.compare_set(_FAILED, "", f"{mine} failed: {said}").decode()
            return bool(stands.split()[0] == mine)
        return True


@dataclass(frozen=True)
class _Done:
    """The last job: there is nothing more to do."""

    answer: Any


@functools.cache
def processes() -> Processes:
    """Those that torchrun has started, or whatever else sets the variables that it sets."""
    if rank_and_count()[1] == 1:
        return Processes()
    if not distributed.is_available():
        raise RunError("this torch was built without torch.distributed: start one process")
    try:
        store, rank, count = next(rendezvous("env://"))
        while isinstance(store, PrefixStore):  # torch's has a number that agents do not agree on
            store = store.underlying_store
        return _Several(PrefixStore(_meeting(store, rank, count), store), rank, count)
    except (RuntimeError, ValueError) as error:
        raise RunError(f"the processes do not find each other: {error}") from error


def _meeting(store: Store, rank: int, count: int) -> str:
    """A name that the processes which are there now agree on, and none that was there before.

    torchrun starts them again with the same store, in which what was said before still stands. How
    often it did that it tells them, but with several agents each of those counts by itself.
    """
    mine = uuid.uuid4().hex
    if rank == 0:
        store.set("kdzoo", mine)
        others = [f"{mine}/{other}" for other in range(1, count)]
        while not store.check(others):
            time.sleep(_LOOK)
        store.set(f"{mine}/all", ",".join(store.get(other).decode() for other in others))
        return mine
    while True:
        if store.check(["kdzoo"]):
            name = store.get("kdzoo").decode()  # perhaps that of an earlier meeting, as yet
            store.set(f"{name}/{rank}", mine)
            there = f"{name}/all"
            if store.check([there]) and mine in store.get(there).decode().split(","):
                return name
        time.sleep(_LOOK)


def refuse_too_many_processes(spec: Spec, images: Images) -> None:
    """Each process needs an image of each step.

    Raises:
        SpecError: a step has fewer images than there are processes.
    """
    count = processes().count
    for stage in spec.stages:
        fewest = min(images.sizes(stage.train.batch_size))
        if fewest < count:
            raise SpecError(
                f"batch_size: {stage.train.batch_size} leaves {fewest} images for a step of the "
                f"{len(images.train)} training images, and there are {count} processes; choose "
                "another, or start fewer processes"
            )


def _is_lost(error: BaseException) -> bool:
    """Whether an exchange failed; a component's name may stand around what torch said of it."""
    for one in _causes(error):
        if isinstance(one, RuntimeError) and not isinstance(one, KdzooError):
            said = str(one).lower()
            if any(word in said for word in _LOST):
                return True
    return False


def _let_go(error: BaseException) -> None:
    """Let its frames keep nothing: gloo's connections are open as long as anything has the group,
    as a frame of torch's all_reduce does, and so long would the others wait for us."""
    for one in _causes(error):
        traceback.clear_frames(one.__traceback__)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what it was raised from or while, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
