"""kdzoo: its own engine on the job, with a data source and an observer that are plugins."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import kdzoo
from contestants.job import DECAY, MEAN, MOMENTUM, RATE, STD, Job, Watch, images
from kdzoo.extend.registry import registry

# An observer is made by the engine from a spec; the watch comes to it by way of this.
_WATCH: list[Any] = []


class StepImages(kdzoo.DataSource):
    """Noise of 32x32 pixels."""

    name = "step-images"

    class Params(kdzoo.Params):
        """What can be set."""

        samples: int = kdzoo.Field(ge=1, description="Training images.")
        classes: int = kdzoo.Field(ge=2, description="Classes.")

    def load(self) -> kdzoo.ImageData:
        """See :meth:`kdzoo.DataSource.load`."""
        classes = self.params.classes
        parts = [images(count, classes) for count in (self.params.samples, 2 * classes)]
        (train, train_targets), (test, test_targets) = (
            (torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.from_numpy(targets))
            for pixels, targets in parts
        )
        names = tuple(str(number) for number in range(classes))
        return kdzoo.ImageData(
            train, train_targets, test, test_targets, names, MEAN, STD, crop=4, flip=True
        )


class StepWatch(kdzoo.Observer):
    """Tells the watch which steps were done."""

    name = "step-watch"

    def steps(
        self, run: kdzoo.RunInfo, first: int, values: Mapping[str, npt.NDArray[np.float32]]
    ) -> None:
        """See :meth:`kdzoo.Observer.steps`."""
        _WATCH[-1].tick(len(values["loss/total"]))


class EpochEnds(kdzoo.Observer):
    """Writes when each epoch ended, in seconds."""

    name = "epoch-ends"

    class Params(kdzoo.Params):
        """What can be set."""

        file: str = kdzoo.Field(description="Where to: a JSON list.")

    def start(self, run: kdzoo.RunInfo, state: Mapping[str, Any] | None) -> None:
        """See :meth:`kdzoo.Observer.start`."""
        self._ends: list[float] = []

    def epoch(self, run: kdzoo.RunInfo, record: kdzoo.EpochRecord) -> None:
        """See :meth:`kdzoo.Observer.epoch`."""
        self._ends.append(time.perf_counter())
        Path(self.params.file).write_text(json.dumps(self._ends))


def spec(job: Job) -> dict[str, Any]:
    """The job as a spec, with every observer that runs have by default."""
    teacher, student = job.pair
    losses: list[Any] = ["ce"]
    if job.method == "crd":
        losses.append({"use": "crd", "negatives": job.negatives})
    elif job.taps:
        layers = [{"student": stage, "teacher": stage} for stage in range(1, job.taps + 1)]
        losses.append({"use": job.method, "layers": layers})
    elif job.method != "ce":
        losses.append(job.method)
    loaded = {"use": teacher, "checkpoint": job.teacher_file, "check": False}
    return {
        "name": "step",
        "data": {
            "use": "step-images",
            "samples": job.samples,
            "classes": job.classes,
            # Of many images a few are held out: on these the loaded teacher is soon measured.
            "validation": 0.002 if job.samples >= 10_000 else 0,
        },
        **({} if job.method == "ce" else {"teacher": loaded}),
        "student": student,
        "train": {
            "epochs": 240,
            "batch_size": job.batch,
            "compile": job.compile,
            "precision": job.precision,
            "optimizer": {"use": "sgd", "lr": RATE, "momentum": MOMENTUM, "weight_decay": DECAY},
        },
        "losses": losses,
        "policy": job.policy,
        "observers": ["progress", "tensorboard", "jsonl", "step-watch"],
        "log_every": job.log_every,
        "device": job.device,
        "threads": job.threads,
    }


def run(job: Job, watch: Watch) -> None:
    """Train until the watch has seen enough."""
    _WATCH[:] = [watch]
    with tempfile.TemporaryDirectory() as directory, installed(Path(directory) / "site"):
        kdzoo.run(spec(job), runs=Path(directory) / "runs")


@contextlib.contextmanager
def installed(site: Path) -> Iterator[None]:
    """This module looks installed in here: a distribution with an entry point."""
    info = site / "kdzoo_step-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kdzoo-step\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[kdzoo]\nstep = {__name__}\n")
    sys.path.append(str(site))
    registry.cache_clear()
    try:
        yield
    finally:
        sys.path.remove(str(site))
        registry.cache_clear()


@kdzoo.hookimpl
def kdzoo_datasets() -> list[type[kdzoo.DataSource]]:
    """See :mod:`kdzoo.extend.hookspecs`."""
    return [StepImages]


@kdzoo.hookimpl
def kdzoo_observers() -> list[type[kdzoo.Observer]]:
    """See :mod:`kdzoo.extend.hookspecs`."""
    return [StepWatch, EpochEnds]
