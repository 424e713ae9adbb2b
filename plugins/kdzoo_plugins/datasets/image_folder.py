"""Your own images, in folders."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import torch

import kdzoo

__all__ = ["ImageFolder"]

_SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm"),
    *(".tga", ".tif", ".tiff", ".webp"),
)


class ImageFolder(kdzoo.DataSource):
    """Images in ``root/train/<class>/`` and ``root/test/<class>/``, at any depth below that.

    The classes are the folders of ``train``, in the order of their names. Hidden files are passed
    over, and those whose suffix is not an image's. A set that does not fit into ``memory_gb`` is
    read while the network trains.
    """

    name = "image-folder"

    class Params(kdzoo.Params):
        """What can be set."""

        root: str = kdzoo.Field(
            description="The folder that holds train and test; relative to the working directory."
        )
        size: int | None = kdzoo.Field(
            None,
            ge=1,
            description="Height and width that the networks see: images are scaled to cover it, "
            "and cut. None: all images have one size.",
        )
        grayscale: bool = kdzoo.Field(False, description="One channel instead of three.")
        memory_gb: float = kdzoo.Field(
            4.0,
            ge=0,
            description="Up to so many gigabytes the decoded images are held in memory; larger "
            "sets are read while the network trains.",
        )

    def load(self) -> kdzoo.ImageFiles:
        """See :meth:`kdzoo.DataSource.load`."""
        root = Path(os.path.abspath(os.path.expanduser(self.params.root)))
        if not root.is_dir():
            raise kdzoo.DataError(
                f"{root}: there is no such folder (root: {self.params.root}, relative to the "
                "working directory)"
            )
        train, test = (_images(root, part) for part in ("train", "test"))
        if unknown := sorted(test.keys() - train.keys()):
            raise kdzoo.DataError(
                f"{root / 'test' / unknown[0]}: is a class without training images; there is no "
                f"{root / 'train' / unknown[0]}"
            )
        numbers = {name: number for number, name in enumerate(train)}
        size = self.params.size
        return kdzoo.ImageFiles(
            train=_listed(root, train, numbers),
            test=_listed(root, test, numbers),
            classes=tuple(train),
            size=None if size is None else (size, size),
            channels=1 if self.params.grayscale else 3,
            memory_gb=self.params.memory_gb,
        )


def _images(root: Path, part: str) -> dict[str, list[str]]:
    """The images of each class, relative to ``root``; all in the order of their names."""
    folder = root / part
    if not folder.is_dir():
        raise kdzoo.DataError(
            f"{folder}: there is no such folder; images are expected in "
            f"{folder / '<class>' / '<image>'}"
        )
    classes: dict[str, list[str]] = {}
    for entry in sorted(_entries(folder), key=_class_name):
        if _is_folder(entry):
            name = _class_name(entry)
            if name in classes:
                raise kdzoo.DataError(
                    f"{entry.path}: there is another folder of this name, with its letters encoded "
                    "otherwise (Unicode NFC and NFD); rename one, or put the two together"
                )
            classes[name] = sorted(_below(root, f"{part}/{entry.name}", ()))
            if not classes[name]:
                raise kdzoo.DataError(
                    f"{entry.path}: holds no images ({', '.join(_SUFFIXES)}); add some, or remove "
                    "the folder"
                )
        elif _is_image(entry.name):
            raise kdzoo.DataError(
                f"{entry.path}: is in no class; move it into a folder {folder / '<class>'}"
            )
    if not classes:
        raise kdzoo.DataError(f"{folder}: holds no class folders")
    return classes


def _class_name(entry: os.DirEntry[str]) -> str:
    """The folder's name. A Mac writes letters with accents as two characters each, others as one:
    the same class has the same name wherever its folder comes from."""
    return unicodedata.normalize("NFC", entry.name)


def _below(root: Path, folder: str, parents: tuple[tuple[int, int], ...]) -> list[str]:
    """The images in a folder and below it; ``parents`` tells the folders that it lies in."""
    known = os.stat(root / folder)
    here = (known.st_dev, known.st_ino)
    if here in parents:
        raise kdzoo.DataError(f"{root / folder}: is a link to a folder that it lies in; remove it")
    found: list[str] = []
    for entry in _entries(root / folder):
        path = f"{folder}/{entry.name}"
        if _is_folder(entry):
            found += _below(root, path, (*parents, here))
        elif _is_image(entry.name):
            found.append(path)
    return found


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise kdzoo.DataError(f"{folder}: cannot be read: {error.strerror}") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    if entry.is_symlink() and not os.path.exists(entry.path):
        raise kdzoo.DataError(f"{entry.path}: is a link that leads nowhere; mend or remove it")
    return entry.is_dir()


def _is_image(name: str) -> bool:
    return name.lower().endswith(_SUFFIXES)


def _listed(root: Path, classes: dict[str, list[str]], numbers: dict[str, int]) -> kdzoo.ImageList:
    paths = [path for images in classes.values() for path in images]
    targets = [numbers[name] for name, images in classes.items() for _ in images]
    return kdzoo.ImageList.of_files(root, paths, torch.tensor(targets))


@kdzoo.hookimpl
def kdzoo_datasets() -> list[type[kdzoo.DataSource]]:
    """See :mod:`kdzoo.extend.hookspecs`."""
    return [ImageFolder]
