"""The classification sets of torchvision."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import operator
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
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
_LABELS = ("targets", "labels", "_labels", "_samples", "samples")  # where labels may be
_PATHS = ("_image_files", "_images", "_samples", "samples", "imgs")  # where paths may be


class Torchvision(kdzoo.DataSource):
    """A classification set of torchvision, by the name of its class: CIFAR100, Food101, ...

    Trains on its ``train`` (or ``trainval``) part and tests on ``test``, or ``val`` where that is
    what has labels. Grey images are cropped by up to 2 pixels and not mirrored.
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
        train, test = (self._part(found, root, part) for part in (_TRAIN, _TEST))
        first = _first(name, train)
        listed = [
            _listed(name, root, part, dataset)
            for part, dataset in (("training", train), ("test", test))
        ]
        grey = first.mode in ("1", "L")
        mean, std = _STATISTICS.get(name, (None, None))
        size = self.params.size
        return kdzoo.ImageFiles(
            train=listed[0],
            test=listed[1],
            classes=_class_names(train, 1 + max(int(part.targets.max()) for part in listed)),
            size=None if size is None else (size, size),
            channels=1 if grey else 3,
            memory_gb=self.params.memory_gb,
            mean=mean,
            std=std,
            crop=2 if grey else None,
            flip=not grey and name not in _READ_FROM_LEFT_TO_RIGHT,
        )

    def _part(self, found: Any, root: Path, part: tuple[str, ...]) -> Any:
        """The training or the test part of a set."""
        name = found.__name__
        parameters = _parameters(found)
        given: dict[str, Any] = {"root": root}
        if "download" in parameters:
            given["download"] = self.params.download
        elif self.params.download:
            raise kdzoo.DataError(
                f"torchvision cannot download {name}; its documentation says what must be in {root}"
            )
        choices: list[dict[str, Any]] = []
        if "train" in parameters:
            choices = [{"train": part == _TRAIN}]
        elif "split" in parameters:
            choices = [{"split": split} for split in part]
        for choice in choices:
            if missing := _required(parameters) - given.keys() - choice.keys():
                raise kdzoo.DataError(
                    f"torchvision's {name} cannot be used by name: it needs a choice of "
                    f"{', '.join(sorted(missing))}; make a data source of it, or class folders"
                )
            try:
                return found(**given, **choice)
            except Exception as error:
                if isinstance(error, ValueError) and "for argument split" in str(error):
                    continue  # it calls this part something else
                raise kdzoo.DataError(self._absent(name, root, parameters, error)) from error
        raise kdzoo.DataError(
            f"torchvision's {name} cannot be used: it is not divided into a training and a test "
            'part; divide it into folders, and use "image-folder"'
        )

    def _absent(
        self, name: str, root: Path, parameters: Mapping[str, Any], error: Exception
    ) -> str:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = lines[0].split(" You can use download")[0].rstrip(".")
        if self.params.download:
            return f"torchvision's {name} could not be brought to {root}: {reason}"
        message = f"torchvision's {name} is not in {root}: {reason}"
        if "download" in parameters:
            return f"{message}; `download: true` fetches it"
        return f"{message}; torchvision cannot download it: its documentation says what is needed"


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
    if name in known:
        return known[name]
    hint = kdzoo.did_you_mean(name, known)
    raise kdzoo.DataError(f'torchvision has no dataset "{name}"{hint}')


def _parameters(found: Any) -> dict[str, inspect.Parameter]:
    """The constructor's parameters, with those that it hands on."""
    parameters: dict[str, inspect.Parameter] = {}
    for base in found.__mro__:
        if "__init__" in vars(base):
            own = inspect.signature(base.__init__).parameters
            parameters = {**own, **parameters}
            if all(each.kind is not each.VAR_KEYWORD for each in own.values()):
                break
    return {key: each for key, each in parameters.items() if key != "self"}


def _required(parameters: Mapping[str, inspect.Parameter]) -> set[str]:
    return {
        key
        for key, each in parameters.items()
        if each.default is each.empty and each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)
    }


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


def _listed(name: str, root: Path, part: str, dataset: Any) -> kdzoo.ImageList:
    targets = _targets(name, part, dataset)
    read = functools.partial(_image, dataset)
    if (paths := _paths(dataset)) is not None:
        relative = [os.path.relpath(path, root) for path in paths]
        return dataclasses.replace(kdzoo.ImageList.of_files(root, relative, targets), read=read)
    digest = hashlib.sha256(f"{name} {part} {len(targets)}".encode())
    digest.update(targets.numpy().data)
    version = None
    data = getattr(dataset, "data", None)
    if isinstance(data, (np.ndarray, torch.Tensor)):  # all images are in memory
        digest.update(np.ascontiguousarray(data).data)
        version = digest.hexdigest()
    called = functools.partial("torchvision's {} {} image {}".format, name, part)
    return kdzoo.ImageList(read, called, targets, digest.hexdigest(), version)


def _image(dataset: Any, row: int) -> Any:
    return dataset[row][0]


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
    given = getattr(dataset, "classes", None) or []
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
