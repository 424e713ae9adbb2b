"""The checks of data sources."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch
from ruamel.yaml import YAML

from kdzoo.data.images import Images, ImageSet
from kdzoo.data.load import load_images
from kdzoo.errors import KdzooError, SpecError
from kdzoo.extend.bases import DataSource
from kdzoo.extend.contracts import ImageData, ImageFiles, ImageList
from kdzoo.extend.registry import registry
from kdzoo.spec.read import read_spec
from kdzoo.testing.checks import Checks, ContractError, NotApplicable, after, require, sometimes
from kdzoo.testing.modules import seeded

__all__ = ["DatasetChecks"]

_NOTHING = "it delivers nothing to look at, as delivers tells"


class DatasetChecks(Checks[DataSource]):
    """What is asked of a data source.

    One that reads files says with a function as ``entry`` how they come into an empty directory.
    """

    base = DataSource

    def delivers(self) -> None:
        """What it loads is ImageData or ImageFiles that the engine takes."""
        try:
            answer = self._load()
        except Exception as error:
            if isinstance(error, KdzooError):
                raise
            raise ContractError(
                f"load() raised {type(error).__name__}: {error}; refuse with a kdzoo.DataError "
                "that names the path"
            ) from error
        try:
            self._set(answer)
        except KdzooError as error:
            raise ContractError(f"the engine refuses what it loaded: {error}") from error

    @sometimes
    def views(self) -> None:
        """An epoch of random views, the validation split and the test set can be read."""
        _require_views(self._images(self._delivered()))

    @sometimes
    def streamed(self) -> None:
        """The same, more than once, where its files do not fit into memory."""
        files = self._files()
        images = self._images(self._set(replace(files, memory_gb=0.0)))
        for _ in range(2):
            _require_views(images)

    @sometimes
    def deterministic(self) -> None:
        """It loads the same images each time, in the same order, whatever the seed."""
        self._delivered()
        prints = []
        for seed in (1, 2):
            state = np.random.get_state()
            np.random.seed(seed)
            try:
                answer = seeded(seed, self._load)
            finally:
                np.random.set_state(state)
            prints.append(self._set(answer).fingerprint)
        require(prints[0] == prints[1], "it loads other images, or another order, the second time")

    @sometimes
    @after("deterministic")
    def answers_apart(self) -> None:
        """What is done to one answer leaves the next one alone."""
        self._delivered()
        first = seeded(1, self._load)
        before = self._set(first).fingerprint
        for tensor in _tensors(first):
            tensor.zero_()
        try:
            after = self._set(seeded(1, self._load)).fingerprint
        except KdzooError as error:
            raise ContractError(
                f"it answers the same tensors again: copy what you keep: {error}"
            ) from error
        require(before == after, "it answers the same tensors again: copy what you keep")

    @sometimes
    def readers(self) -> None:
        """Its readers can be sent to other processes, and are called by several threads at once."""
        files = self._files()
        for images in (files.train, files.test):
            try:
                sent: ImageList = pickle.loads(pickle.dumps(images))
            except Exception as error:
                raise ContractError(f"its ImageList cannot be pickled: {error}") from error
            rows = range(min(len(images.targets), 16))
            plain = [_pixels(images, row) for row in rows]
            with ThreadPoolExecutor(4) as threads:
                beside = list(threads.map(lambda row, sent=sent: _pixels(sent, row), rows))
            require(plain == beside, "an image differs when several threads read at once")
            for row in rows:
                name = images.name(row)
                require(isinstance(name, str) and bool(name), f"name({row}) is {name!r}; say which")

    @sometimes
    @after("deterministic")
    def moved(self) -> None:
        """Its fingerprint stays when the same files lie elsewhere."""
        self._files()
        if not callable(self.given_entry):
            raise NotApplicable("no function says how its files come into a directory")
        prints = []
        for name in ("one", "two"):
            folder = self.folder / name
            folder.mkdir()
            files = type(self)(self.component, self.given_entry, folder)._files()
            prints.append((files.train.fingerprint, files.test.fingerprint))
        require(
            prints[0] == prints[1],
            "its fingerprint depends on where the files lie: hash relative paths",
        )

    @sometimes
    def starters(self) -> None:
        """Each spec that it offers to start from is a valid one, and names it."""
        if not self.component.starters:
            raise NotApplicable("it offers no specs to start from")
        yaml = YAML(typ="safe", pure=True)
        for name, text in self.component.starters.items():
            try:
                with registry().lent(self.component):
                    spec = read_spec(yaml.load(text))
            except SpecError as error:
                raise ContractError(f"its spec {name} is not valid: {error}") from error
            require(spec.data.use == self.component.name, f"its spec {name} is about other data")

    # What the checks are made of.

    def _use(self) -> None:
        _require_views(self._images(self._set(self._load())))

    def _load(self) -> ImageData | ImageFiles:
        return self._make().load()

    def _delivered(self) -> ImageSet:
        try:
            return self._set(self._load())
        except Exception as error:
            raise NotApplicable(_NOTHING) from error

    def _files(self) -> ImageFiles:
        try:
            answer = self._load()
        except Exception as error:
            raise NotApplicable(_NOTHING) from error
        if not isinstance(answer, ImageFiles):
            raise NotApplicable("it answers images and no files")
        return answer

    def _set(self, answer: ImageData | ImageFiles) -> ImageSet:
        cache = self.folder / "kdzoo-testing.safetensors"
        cache.unlink(missing_ok=True)
        cpu = torch.device("cpu")
        return load_images(self.component.name, answer, cpu, cache=cache, workers=0)

    def _images(self, images: ImageSet) -> Images:
        return images.prepare(validation=0.2, split_seed=0, augment_seed=0)


def _require_views(images: Images) -> None:
    count = len(images.classes)
    seen: list[int] = []
    for which, views in (
        ("training", images.epoch(0, 16, 0)),
        ("validation", images.validation.plain()),
        ("test", images.test.plain()),
    ):
        for view in views:
            require(
                view.inputs.shape[1:] == images.input_shape,
                f"a {which} image is {tuple(view.inputs.shape[1:])} and not {images.input_shape}",
            )
            low, high = float(view.inputs.min()), float(view.inputs.max())
            require(low >= 0 and high <= 1, f"{which} images lie in [{low}, {high}], not in [0, 1]")
            require(
                int(view.targets.min()) >= 0 and int(view.targets.max()) < count,
                f"a {which} image is of no class",
            )
            if which != "test":
                seen += view.indices.tolist()
    require(sorted(seen) == list(range(images.rows)), "not each training row came once")


def _tensors(answer: ImageData | ImageFiles) -> Iterator[torch.Tensor]:
    if isinstance(answer, ImageData):
        yield from (answer.train_images, answer.train_targets)
        yield from (answer.test_images, answer.test_targets)
    else:
        yield from (answer.train.targets, answer.test.targets)


def _pixels(images: ImageList, row: int) -> tuple[tuple[int, int], bytes]:
    with images.read(row) as image:
        return image.size, image.tobytes()
