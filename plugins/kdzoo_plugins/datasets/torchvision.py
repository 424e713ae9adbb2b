"""The classification sets of torchvision."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import operator
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

import kdzoo
from kdzoo_plugins.datasets._cifar100_pairs import CIFAR100_PAIRS

__all__ = ["Torchvision"]

_STATISTICS = {  # as published; those of other sets are computed
    "CIFAR10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "CIFAR100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "MNIST": ((0.1307,), (0.3081,)),
}
_READ_FROM_LEFT_TO_RIGHT = ("GTSRB", "SVHN")  # in colour, and something else when mirrored
_TRAIN = ("train", "trainval", "train-standard")  # what the parts may be called
_TEST = ("test", "val", "valid")
_LABELS = (  # where labels may be
    *("targets", "labels", "_labels", "_samples", "samples", "y", "_flat_character_images"),
)
_PATHS = ("_image_files", "_images", "_samples", "samples", "imgs")  # where paths may be
_NAMES = ("classes", "categories", "_characters")  # where class names may be
_NO_CLASS = "N/A"  # what EMNIST calls its class 0, since its letters count from 1
_OURS = ("root", "download", "transform", "target_transform", "transforms", "loader")
_NO_CLASSES = {  # torchvision's modules of sets that are for other tasks, or of videos
    *("_optical_flow", "_stereo_matching", "cityscapes", "coco", "flickr", "hmdb51", "kinetics"),
    *("moving_mnist", "phototour", "sbd", "sbu", "ucf101", "vision", "voc", "widerface"),
}

_Option = str | int | float | bool


class Torchvision(kdzoo.DataSource):
    """A classification set of torchvision, by the name of its class: CIFAR100, Food101, ...

    Trains on its ``train`` (or ``trainval``) part and tests on ``test``, or ``val`` where that is
    what has labels. A set without parts (EuroSAT, Caltech101, SUN397, ...) is divided: of each
    class ``test_share`` of the images, one at least, are tested on, and two at least are left to
    train on. A hash of an image's path in the set decides (of its number, where the set keeps no
    paths), so that they are the same everywhere; another share makes another set. Grey images are
    cropped by up to 2 pixels and not mirrored.
    """

    name = "torchvision"
    starters = CIFAR100_PAIRS

    class Params(kdzoo.Params):
        """What can be set."""

        dataset: str = kdzoo.Field(description="The class in torchvision.datasets.")
        root: str = kdzoo.Field(
            "data",
            description="The folder that torchvision calls root; relative to the working "
            "directory.",
        )
        download: bool = kdzoo.Field(False, description="Fetch the set if it is not there.")
        options: Mapping[str, _Option] = kdzoo.Field(
            {},
            description="Other arguments of the class, by name: {split: letters} for EMNIST. Not "
            "those that say where the set is, which part of it is meant, or how images are read.",
        )
        test_share: float | None = kdzoo.Field(
            None,
            gt=0,
            lt=1,
            description="The share of each class's images to test on, of a set that has no test "
            "part of its own.",
        )
        size: int | None = kdzoo.Field(
            None,
            ge=1,
            description="Height and width that the networks see: images are scaled to cover it, "
            "and cut. None: all images have one size.",
        )
        memory_gb: float = kdzoo.Field(
            4.0,
            ge=0,
            description="Up to so many gigabytes the decoded images are held in memory; larger "
            "sets are read while the network trains.",
        )

    def load(self) -> kdzoo.ImageFiles:
        """See :meth:`kdzoo.DataSource.load`."""
        name = self.params.dataset
        found = _class(name)
        root = Path(os.path.abspath(os.path.expanduser(self.params.root)))
        datasets = self._datasets(found, root)
        grey = _first(name, datasets[0]).mode in ("1", "L")
        if self.params.test_share is None:
            train, test = (
                _Part(called, dataset, _targets(name, called, dataset), np.arange(len(dataset)))
                for called, dataset in zip(("training", "test"), datasets, strict=True)
            )
        else:
            train, test = _divided(name, root, datasets[0], self.params.test_share)
        mean, std = _STATISTICS.get(name, (None, None))
        size = self.params.size
        count = 1 + max(int(part.targets.max()) for part in (train, test))
        names = _class_names(train.dataset, count)
        if names[0] == _NO_CLASS:
            names = names[1:]
            train, test = (dataclasses.replace(p, targets=p.targets - 1) for p in (train, test))
        return kdzoo.ImageFiles(
            train=_listed(name, root, train),
            test=_listed(name, root, test),
            classes=names,
            size=None if size is None else (size, size),
            channels=1 if grey else 3,
            memory_gb=self.params.memory_gb,
            mean=mean,
            std=std,
            crop=2 if grey else None,
            flip=not grey and name not in _READ_FROM_LEFT_TO_RIGHT,
        )

    def _datasets(self, found: Any, root: Path) -> tuple[Any, ...]:
        """The training and the test part of a set; the one that there is of an undivided set."""
        name, share = found.__name__, self.params.test_share
        parameters = _parameters(found)
        divider = next((key for key in ("train", "split") if key in parameters), None)
        given = self._given(name, root, parameters, divider)
        if divider is None:
            if share is None:
                raise kdzoo.DataError(
                    f"torchvision's {name} is not divided into a training and a test part; say "
                    "which share of each class's images to test on: `test_share: 0.2`"
                )
            return (self._made(found, root, given),)
        if share is not None:
            raise kdzoo.DataError(
                f"torchvision's {name} has a test part of its own; remove `test_share`"
            )
        if divider == "train":
            return tuple(self._made(found, root, {**given, divider: b}) for b in (True, False))
        return tuple(self._split(found, root, given, splits) for splits in (_TRAIN, _TEST))

    def _given(
        self,
        name: str,
        root: Path,
        parameters: Mapping[str, inspect.Parameter],
        divider: str | None,
    ) -> dict[str, Any]:
        """What the class is told, but for the part that is meant."""
        options = self.params.options
        for key in options:
            if key in (*_OURS, divider):
                raise kdzoo.DataError(f"options: `{key}` is set by kdzoo itself; remove it")
            if key not in parameters:
                hint = kdzoo.did_you_mean(key, parameters.keys() - {*_OURS, divider})
                raise kdzoo.DataError(f"options: torchvision's {name} has no `{key}`{hint}")
        given: dict[str, Any] = {"root": root, **options}
        if "download" in parameters:
            given["download"] = self.params.download
        elif self.params.download:
            raise kdzoo.DataError(
                f"torchvision cannot download {name}; its documentation says what must be in {root}"
            )
        if missing := sorted(_required(parameters) - given.keys() - {divider}):
            raise kdzoo.DataError(
                f"torchvision's {name} needs a choice of {', '.join(missing)}; say it so: "
                f"`options: {{{missing[0]}: ...}}`"
            )
        return given

    def _split(
        self, found: Any, root: Path, given: Mapping[str, Any], splits: Sequence[str]
    ) -> Any:
        """The first of these splits that the set has."""
        for split in splits:
            try:
                return self._made(found, root, {**given, "split": split})
            except kdzoo.DataError as error:
                if "for argument split" not in str(error.__cause__):
                    raise
        raise kdzoo.DataError(
            f"torchvision's {found.__name__} cannot be used: it is not divided into a training and "
            'a test part; divide it into folders, and use "image-folder"'
        )

    def _made(self, found: Any, root: Path, given: Mapping[str, Any]) -> Any:
        try:
            return found(**given)
        except Exception as error:
            reason = self._absent(found.__name__, root, _parameters(found), error)
            if self.params.options and isinstance(error, (ValueError, TypeError)):
                reason = f"options: torchvision's {found.__name__} refuses them: {error}"
            raise kdzoo.DataError(reason) from error

    def _absent(
        self, name: str, root: Path, parameters: Mapping[str, Any], error: Exception
    ) -> str:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = lines[0].split(" You can use download")[0].rstrip(".")
        if not isinstance(error, OSError) and not re.search("found|present|download", str(error)):
            return (
                f"torchvision's {name} in {root} cannot be read: {reason}; if its files are "
                "damaged, remove them, and bring them there again"
            )
        if self.params.download:
            return f"torchvision's {name} could not be brought to {root}: {reason}"
        message = f"torchvision's {name} is not in {root}: {reason}"
        if "download" in parameters:
            return f"{message}; `download: true` fetches it"
        return f"{message}; torchvision cannot download it: its documentation says what is needed"


@dataclasses.dataclass(frozen=True)
class _Part:
    """The training or the test images of a set.

    Attributes:
        called: which of them.
        dataset: torchvision's, of which they are a part, or all.
        targets: (N,), the class of each image.
        rows: (N,), where the dataset has them.
    """

    called: str
    dataset: Any
    targets: torch.Tensor
    rows: npt.NDArray[np.int64]


def _divided(name: str, root: Path, dataset: Any, share: float) -> tuple[_Part, _Part]:
    """A share of each class for testing, and the rest for training. Both are in the order of the
    images' paths: that in which a set finds its files may depend on the machine."""
    targets, paths, count = _targets(name, "training", dataset), _paths(dataset), len(dataset)
    keys = [str(row) for row in range(count)]
    ordered = list(range(count))
    if paths is not None:
        keys = [Path(os.path.relpath(path, root)).as_posix() for path in paths]
        ordered.sort(key=keys.__getitem__)
    draws = [hashlib.sha256(os.fsencode(key)).digest()[:8] for key in keys]
    labels = targets.numpy()
    drawn = np.lexsort((np.array([int.from_bytes(d, "big") for d in draws], np.uint64), labels))
    images = np.bincount(labels)
    place = np.arange(count) - (images.cumsum() - images)[labels[drawn]]  # within the class
    tested = np.rint(share * images).clip(1, images - 2)  # two at least are left to train on
    in_test = np.zeros(count, bool)
    in_test[drawn[place < tested[labels[drawn]]]] = True
    rows = np.array(ordered)
    train, test = rows[~in_test[rows]], rows[in_test[rows]]
    return (
        _Part("training", dataset, targets[train], train),
        _Part("test", dataset, targets[test], test),
    )


def _class(name: str) -> Any:
    """A set by its name.

    Raises:
        DataError: torchvision has no such set.
    """
    from torchvision import datasets

    known = {
        each: found
        for each in datasets.__all__
        if inspect.isclass(found := getattr(datasets, each)) and "root" in _parameters(found)
    }
    usable = {n: found for n, found in known.items() if _module(found) not in _NO_CLASSES}
    if name in usable:
        return usable[name]
    if name in known:
        raise kdzoo.DataError(f"torchvision's {name} is no set of images with a class each")
    hint = kdzoo.did_you_mean(name, usable)
    raise kdzoo.DataError(f'torchvision has no dataset "{name}"{hint}')


def _module(found: Any) -> str:
    """The last part of the name of the module that a set is from."""
    return str(found.__module__).rpartition(".")[2]


def _parameters(found: Any) -> dict[str, inspect.Parameter]:
    """The constructor's parameters, with those that it hands on."""
    parameters: dict[str, inspect.Parameter] = {}
    for base in found.__mro__:
        if "__init__" in vars(base):
            own = inspect.signature(base.__init__).parameters
            parameters = {**own, **parameters}
            if all(each.kind is not each.VAR_KEYWORD for each in own.values()):
                break
    rest = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {k: each for k, each in parameters.items() if k != "self" and each.kind not in rest}


def _required(parameters: Mapping[str, inspect.Parameter]) -> set[str]:
    return {key for key, each in parameters.items() if each.default is each.empty}


def _first(name: str, dataset: Any) -> Image.Image:
    """The first image, if the set is one of images and classes."""
    what = "it has no images"
    try:
        image, target = dataset[0]
        what = f"its images are of type {type(image).__name__}"
        if isinstance(image, Image.Image):
            what = f"its targets are of type {type(target).__name__}"
            operator.index(target)
            return image
    except (TypeError, ValueError, IndexError):
        pass
    raise kdzoo.DataError(f"torchvision's {name} is no set of images with a class each: {what}")


def _listed(name: str, root: Path, part: _Part) -> kdzoo.ImageList:
    dataset, targets = part.dataset, part.targets
    read = functools.partial(_image, dataset, part.rows)
    if (paths := _paths(dataset)) is not None:
        relative = [os.path.relpath(paths[row], root) for row in part.rows]
        return dataclasses.replace(kdzoo.ImageList.of_files(root, relative, targets), read=read)
    digest = hashlib.sha256(f"{name} {part.called} {len(targets)}".encode())
    digest.update(targets.numpy().data)
    if len(part.rows) < len(dataset):
        digest.update(part.rows.data)
    version = None
    data = getattr(dataset, "data", None)
    if isinstance(data, (np.ndarray, torch.Tensor)):  # all images are in memory
        digest.update(np.ascontiguousarray(data).data)
        version = digest.hexdigest()
    called = functools.partial("torchvision's {} {} image {}".format, name, part.called)
    return kdzoo.ImageList(read, called, targets, digest.hexdigest(), version)


def _image(dataset: Any, rows: npt.NDArray[np.int64], row: int) -> Any:
    return dataset[int(rows[row])][0]


def _paths(dataset: Any) -> Sequence[str] | None:
    """The file of each image, in a set that keeps its images in files."""
    for values in _lists(dataset, _PATHS):
        paths = [value[0] if isinstance(value, tuple) else value for value in values]
        if all(isinstance(path, (str, os.PathLike)) for path in paths):
            return [os.fspath(path) for path in paths]
    return None


def _targets(name: str, part: str, dataset: Any) -> torch.Tensor:
    """(N,), the class of each image: kept somewhere, or else found out image by image."""
    ends = [(row, dataset[row][1]) for row in (0, len(dataset) - 1)]
    for values in _lists(dataset, _LABELS):
        try:
            targets = [operator.index(v[1] if isinstance(v, tuple) else v) for v in values]
        except (TypeError, ValueError, IndexError):
            continue
        if all(targets[row] == target for row, target in ends):
            return torch.tensor(targets)
    try:
        return torch.tensor([operator.index(dataset[row][1]) for row in range(len(dataset))])
    except (TypeError, ValueError) as error:
        raise kdzoo.DataError(
            f"torchvision's {name} cannot be used: not each {part} image has a class ({error})"
        ) from error


def _lists(dataset: Any, names: Sequence[str]) -> list[Any]:
    """What the set holds under these names, with an entry for each image."""
    found = [getattr(dataset, each, None) for each in names]
    return [
        values
        for values in found
        if isinstance(values, (list, tuple, np.ndarray, torch.Tensor))
        and len(values) == len(dataset)
    ]


def _class_names(dataset: Any, count: int) -> tuple[str, ...]:
    """The names of the classes, made unique; their numbers where the set names none."""
    held = (getattr(dataset, key, None) for key in _NAMES)
    given: Sequence[Any] = next(filter(None, held), ())
    if len(given) < count:
        return tuple(str(number) for number in range(count))
    # Where a class has several names, the first one is the usual one.
    names = [each if isinstance(each, str) else str(each[0]) for each in given]
    return tuple(
        name if names.count(name) == 1 else f"{name} ({number})"
        for number, name in enumerate(names)
    )


@kdzoo.hookimpl
def kdzoo_datasets() -> list[type[kdzoo.DataSource]]:
    """See :mod:`kdzoo.extend.hookspecs`."""
    return [Torchvision]
