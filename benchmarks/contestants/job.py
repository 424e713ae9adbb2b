"""What all contestants are given: the same images, networks and weights; and who times them."""

from __future__ import annotations

import gc
import importlib
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset
from torchvision import transforms

import kdzoo
from kdzoo.extend.registry import registry

MEAN = (0.5071, 0.4865, 0.4409)  # as of CIFAR-100; what they are costs no time
STD = (0.2673, 0.2564, 0.2762)
SIZE = 32
RATE, MOMENTUM, DECAY = 0.05, 0.9, 5e-4
TEMPERATURE = 4.0

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Job:
    """One training to be timed.

    Attributes:
        pair: the teacher's and the student's architecture, by their names in kdzoo.
        method: ``ce`` (no teacher), ``kd``, ``fitnet``, ``crd`` or ``dkd``, each with its published
            weight beside the cross entropy.
        teacher_file: the teacher's weights.
        batch: images a step.
        samples: images in the training set.
        threads: torch's threads.
        classes: how many classes the images have.
        negatives: crd: what each image is contrasted with.
        workers: how many loader processes may be tried; the fastest number is kept.
        trial: how many steps each of these is tried for.
        log_every: kdzoo: steps between two looks at the losses.
        policy: kdzoo: the class policy.
        taps: kdzoo: how many pairs of stages fitnet compares; 0 for the one of the paper.
        device: where is trained, ``cpu`` or ``cuda``.
        compile: kdzoo: whether its steps are compiled.
        precision: kdzoo: what the networks compute in, ``fp32`` or ``bf16``.
    """

    pair: tuple[str, str]
    method: str
    teacher_file: str
    batch: int
    samples: int
    threads: int
    classes: int = 100
    negatives: int = 16_384
    workers: tuple[int, ...] = (0,)
    trial: int = 1
    log_every: int = 1
    policy: dict[str, Any] = field(default_factory=lambda: {"use": "all"})
    taps: int = 0
    device: str = "cpu"
    compile: bool = False
    precision: str = "fp32"


class NotOfferedError(Exception):
    """A contestant cannot do a job; the message is the reason."""


class FinishedError(BaseException):
    """The parent has seen enough. Not an Exception: it must pass through a training loop."""


def now(device: str) -> float:
    """The time, in seconds, when the device has done all that it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


class Watch:
    """Times a training loop that calls :meth:`tick`, and lets it wait between the rounds.

    A GPU is waited for only where a round or its counted part begins or ends, so that being watched
    costs no step anything.

    Args:
        connection: to the parent, which says ``("round", skip, steps)`` or ``("done",)``, and hears
            ``("ready", what)``, then the seconds of each round.
        device: where the loop trains.
    """

    def __init__(self, connection: Connection, device: str) -> None:
        self._connection = connection
        self._device = device
        self._ready = False
        self._skip = self._last = self._done = 0
        self._begun = 0.0
        self.about: dict[str, Any] = {}  # what the parent is told of the contestant

    def tick(self, steps: int = 1) -> None:
        """Some more steps were done.

        Raises:
            FinishedError: no more are wanted.
        """
        if self._ready:
            self._done += steps
            if self._done == self._skip:
                self._begun = now(self._device)
            if self._done < self._last:
                return
            assert self._done == self._last, "steps between two ticks do not divide a round"
            self._connection.send(("seconds", now(self._device) - self._begun))
        else:
            now(self._device)  # nothing of it runs on while another has its turn
            self._connection.send(("ready", self.about))
            self._ready = True
        command = self._connection.recv()
        if command is None or command[0] == "done":
            raise FinishedError
        _, self._skip, steps = command
        self._last, self._done = self._skip + steps, 0
        self._begun = now(self._device)


def serve(contestant: str, connection: Connection, log: str) -> None:
    """A contestant's process: does one job after the other, each until the parent has seen enough.

    Args:
        contestant: a module of this package with a function ``run(job, watch)``.
        connection: sends a :class:`Job` each time, and ``None`` at the end.
        log: a file for what the contestant prints.
    """
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    # Loaders start their processes as they would in a script. As this one was started, each of
    # them would import torch.
    multiprocessing.set_start_method(None, force=True)
    while (job := connection.recv()) is not None:
        try:
            torch.set_num_threads(job.threads)
            run: Callable[[Job, Watch], None]
            run = importlib.import_module(f"contestants.{contestant}").run
            run(job, Watch(connection, job.device))
            connection.send(("failed", "its training ended by itself"))
        except FinishedError:
            connection.send(("finished",))
        except NotOfferedError as error:
            connection.send(("failed", str(error)))
        except Exception as error:
            traceback.print_exc()
            connection.send(("failed", f"{type(error).__name__}: {error}"))
        gc.collect()


def images(count: int, classes: int) -> tuple[Pixels, npt.NDArray[np.int64]]:
    """Noise: (count, 32, 32, 3), and as many images of each class as of any other."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator)
    order = torch.randperm(count, generator=generator)
    return pixels.numpy(), (order % classes).numpy()


class Pictures(Dataset[Any]):
    """The images as torchvision's CIFAR classes hold and serve them: through PIL, one by one."""

    def __init__(self, job: Job) -> None:
        self.data, targets = images(job.samples, job.classes)
        self.targets: list[int] = targets.tolist()
        self.classes = [str(number) for number in range(job.classes)]
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(SIZE, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        return self.transform(Image.fromarray(self.data[index])), self.targets[index]


def network(name: str, classes: int) -> tuple[nn.Module, kdzoo.Layers]:
    """A bare model of kdzoo's with torch's memory layout, and the names of its layers."""
    source = registry().make("model", name, {})
    return source.build((3, SIZE, SIZE), classes), source.layers()


def networks(job: Job) -> tuple[nn.Module, nn.Module, kdzoo.Layers, kdzoo.Layers]:
    """Teacher, frozen and in eval mode, and student in train mode, with their layer names."""
    teacher, teacher_layers = network(job.pair[0], job.classes)
    teacher.load_state_dict(torch.load(job.teacher_file, weights_only=True))
    teacher.eval().requires_grad_(False)
    student, student_layers = network(job.pair[1], job.classes)
    return teacher, student.train(), teacher_layers, student_layers


@torch.no_grad()
def write_teacher(name: str, classes: int, file: Path) -> None:
    """Weights of a teacher that has learnt nothing, its batch norms set to what passes: without
    that the activations of a deep network overflow."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, _ = network(name, classes)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain mean
    pixels, _ = images(64, classes)
    model.train()(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 64 - 2)
    torch.save(model.state_dict(), file)


def regressor(job: Job) -> tuple[nn.Sequential, str, str]:
    """What brings the student's stage 2 into the shape of the teacher's, as kdzoo builds it, and
    the module paths of the two stages."""
    teacher, student, teacher_layers, student_layers = networks(job)
    paths = student_layers.stages[2], teacher_layers.stages[2]
    pixels = torch.zeros(2, 3, SIZE, SIZE)
    shapes = [
        _shape(model, path, pixels) for model, path in zip((student, teacher), paths, strict=True)
    ]
    adapter = registry().make("adapter", "regressor", {})
    adapter.setup(*shapes)
    return adapter.layers, *paths


def penultimate(model: nn.Module, layers: kdzoo.Layers) -> int:
    """The size of what enters the classifier."""
    assert layers.penultimate is not None
    (size,) = _shape(model, layers.penultimate, torch.zeros(2, 3, SIZE, SIZE))
    return size


@torch.no_grad()
def _shape(model: nn.Module, path: str, pixels: torch.Tensor) -> tuple[int, ...]:
    found: list[tuple[int, ...]] = []
    module = model.get_submodule(path)
    handle = module.register_forward_hook(lambda *hooked: found.append(hooked[2].shape[1:]))
    training = model.training
    model.eval()(pixels)
    model.train(training)
    handle.remove()
    return tuple(found[0])


def fastest(job: Job, loop: Callable[[Job, int], Iterator[None]]) -> int:
    """The number of loader processes with which a loop is fastest here.

    Args:
        job: says which numbers, and how long to try each.
        loop: of a job and that number; yields after each step.
    """
    if len(job.workers) == 1:
        return job.workers[0]
    seconds = {number: _tried(loop(job, number), job) for number in job.workers}
    return min(seconds, key=lambda number: seconds[number])


def _tried(steps: Iterator[None], job: Job) -> float:
    for _ in range(2):
        next(steps)
    begun = now(job.device)
    for _ in range(job.trial):
        next(steps)
    return now(job.device) - begun


def timed(job: Job, watch: Watch, loop: Callable[[Job, int], Iterator[None]]) -> None:
    """Run a loop that yields after each step, with the best number of loader processes."""
    workers = fastest(job, loop)
    watch.about = {"workers": workers}
    for _ in loop(job, workers):
        watch.tick()


def divisor(numbers: Sequence[int], most: int) -> int:
    """The greatest number up to ``most`` that divides all of them."""
    return next(d for d in range(most, 0, -1) if not any(number % d for number in numbers))
