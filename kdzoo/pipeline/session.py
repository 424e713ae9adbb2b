"""What the runs of one command share: the device, the images, what is measured once."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kdzoo.data.decode import cores
from kdzoo.data.images import Images, ImageSet
from kdzoo.data.load import load_images
from kdzoo.errors import CheckpointError
from kdzoo.extend.bases import DataSource
from kdzoo.extend.calling import calling
from kdzoo.extend.registry import registry
from kdzoo.seeds import stream
from kdzoo.spec.derive import teacher_spec
from kdzoo.spec.models import DataEntry, Spec, settings_of, without_source
from kdzoo.training.directory import RunDirectory
from kdzoo.training.distributed import processes
from kdzoo.training.environment import device_of, environment

__all__ = ["Session", "file_hash"]


class Session:
    """What the runs of one command share, which are on one device."""

    def __init__(self, runs: Path, spec: Spec) -> None:
        self.runs = runs
        self.begun = time.time()
        self.device = device_of(spec.device)
        self.workers = spec.data.workers
        if self.workers is None and processes().count > 1:  # they share the machine's cores
            self.workers = max(cores() // processes().local_count, 1)
        self.stored = ""  # what was said last of the teacher's outputs
        self._data: dict[str, ImageSet] = {}
        self._images: dict[str, Images] = {}
        self._read: set[str] = set()
        self._measured: dict[str, float] = {}

    def environment(self, spec: Spec) -> dict[str, Any]:
        """What a run's last digits depend on."""
        return environment(
            self.device,
            processes=processes().count,
            compiled=any(stage.train.compile for stage in spec.stages),
        )

    def images(self, spec: Spec) -> Images:
        """The images of a spec, on the device."""
        seed = stream(spec.seed if spec.data_seed is None else spec.data_seed, "augmentation")
        key = json.dumps([spec.data.model_dump(mode="json"), seed])
        if key not in self._images:
            entry = spec.data
            self._images[key] = self._load(entry).prepare(
                validation=entry.validation,
                split_seed=entry.split_seed,
                augment_seed=seed,
                crop=entry.crop,
                flip=entry.flip,
            )
        return self._images[key]

    def read_held_out(self, images: Images) -> None:
        """Once a command, read all images that are only wanted after the training, or an epoch of
        it.

        Raises:
            DataError: one is broken.
        """
        if processes().first and images.fingerprint not in self._read:
            for split in (images.validation, images.test):
                split.read()
            self._read.add(images.fingerprint)

    def _load(self, entry: DataEntry) -> ImageSet:
        key = json.dumps([entry.use, entry.params])
        if key not in self._data:
            source: DataSource = registry().make(DataSource.kind, entry.use, entry.params)
            with calling(f'data "{entry.use}"'):
                answer = source.load()
            name = hashlib.sha256(key.encode()).hexdigest()[:10]
            self._data[key] = load_images(
                entry.use,
                answer,
                self.device,
                cache=self.runs / ".cache" / f"{entry.use}-{name}.safetensors",
                workers=self.workers,
            )
        return self._data[key]

    def measured(self, about: object, measure: Callable[[], float]) -> float:
        """A number that many runs of a command ask for, measured once.

        Args:
            about: what decides it, as plain data.
            measure: measures it.
        """
        key = json.dumps(about)
        if key not in self._measured:
            self._measured[key] = measure()
        return self._measured[key]

    def directory(self, spec: Spec) -> RunDirectory:
        """Where a run is, or would be."""
        return RunDirectory.at(self.runs, spec.name, self.identity(spec))

    def identity(self, spec: Spec) -> str:
        """A hash of all that decides a run's result but for rounding: not of names, observers,
        devices or compilation."""
        images = self.images(spec)
        decides = settings_of(spec.model_dump(mode="json"))
        del decides["data_seed"]
        if spec.epochs == sum(stage.train.epochs for stage in spec.stages):
            decides["stop_epoch"] = None  # it would end there anyway
        decides["data"] = without_source(decides["data"]) | {
            "fingerprint": images.fingerprint,
            "crop": images.augmentation.crop,
            "flip": images.augmentation.flip,
            "seed": images.augmentation.seed,
        }
        decides["student"]["checkpoint"] = file_hash(spec.student.checkpoint)
        decides["teacher"] = None
        if (trained := teacher_spec(spec)) is not None:
            decides["teacher"] = self.identity(trained)
        elif (loaded := spec.teacher) is not None:
            decides["teacher"] = {
                "use": loaded.use,
                "params": loaded.params,
                "normalize": loaded.normalize and loaded.normalize.model_dump(mode="json"),
                "checkpoint": file_hash(loaded.checkpoint),
            }
        decides["code"] = registry().local_code(set(_uses(decides)))
        text = json.dumps(decides, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]


def _uses(value: Any) -> Iterator[str]:
    """The names of all components in a spec's plain data."""
    if isinstance(value, dict):
        if isinstance(value.get("use"), str):
            yield value["use"]
        for item in value.values():
            yield from _uses(item)
    elif isinstance(value, list):
        for item in value:
            yield from _uses(item)


def file_hash(path: str | None) -> str | None:
    """The SHA-256 of a file's content; ``None`` of no file."""
    if path is None:
        return None
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    return hashlib.sha256(content).hexdigest()
