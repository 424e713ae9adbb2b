"""torchvision's own classes read real files in their own formats; only checksums are left out."""

from __future__ import annotations

import bz2
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import idx, write_mnist
from PIL import Image
from torchvision import datasets

import kdzoo
from kdzoo.data.images import Images
from kdzoo.data.load import load_images
from kdzoo.extend.bases import DataSource
from kdzoo.extend.registry import registry

DRAW = np.random.default_rng(0)


def source(dataset: str, root: Path, **params: Any) -> kdzoo.DataSource:
    given = {"dataset": dataset, "root": str(root), **params}
    return registry().make(DataSource.kind, "torchvision", given)


def images(dataset: str, root: Path, **params: Any) -> Images:
    answer = source(dataset, root, **params).load()
    cache = root / "cache.safetensors"
    at_once = load_images("torchvision", answer, torch.device("cpu"), cache=cache, workers=0)
    return at_once.prepare(validation=0, split_seed=0, augment_seed=0)


def pixels(images: Images) -> torch.Tensor:
    """(N, channels, height, width), uint8."""
    return torch.cat([(view.inputs * 255).round().byte() for view in images.train.plain()])


def write_cifar100(root: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    folder = root / datasets.CIFAR100.base_folder
    folder.mkdir(parents=True)
    data = DRAW.integers(0, 256, (2, 300, 3 * 32 * 32), np.uint8)
    for part, rows in zip(("train", "test"), data, strict=True):
        batch = {"data": rows, "fine_labels": [row % 100 for row in range(300)]}
        (folder / part).write_bytes(pickle.dumps(batch))
    meta = {"fine_label_names": [f"thing {number}" for number in range(100)]}
    (folder / "meta").write_bytes(pickle.dumps(meta))
    monkeypatch.setattr(datasets.CIFAR100, "train_list", [["train", None]])
    monkeypatch.setattr(datasets.CIFAR100, "test_list", [["test", None]])
    monkeypatch.setattr(
        datasets.CIFAR100, "meta", {"filename": "meta", "key": "fine_label_names", "md5": None}
    )
    return data[0].reshape(-1, 3, 32, 32)


def write_qmnist(root: Path) -> None:
    folder = root / "QMNIST" / "raw"
    folder.mkdir(parents=True)
    for part in ("train", "test"):
        labels = np.zeros((40, 8), np.int32)
        labels[:, 0] = np.arange(40) % 10
        drawn = DRAW.integers(0, 256, (40, 28, 28), np.uint8)
        (folder / f"qmnist-{part}-images-idx3-ubyte").write_bytes(idx(drawn, 8))
        (folder / f"qmnist-{part}-labels-idx2-int").write_bytes(idx(labels, 12))


def write_usps(root: Path) -> None:
    root.mkdir()
    for name, count in (("usps.bz2", 30), ("usps.t.bz2", 10)):
        rows = DRAW.uniform(-1, 1, (count, 256))
        lines = [
            f"{1 + number % 10} " + " ".join(f"{i + 1}:{v:.4f}" for i, v in enumerate(row))
            for number, row in enumerate(rows)
        ]
        (root / name).write_bytes(bz2.compress(("\n".join(lines) + "\n").encode()))


def write_gtsrb(root: Path) -> Path:
    """Files of different sizes; the labels of the test images stand in a table."""
    base = root / "gtsrb"
    table = ["Filename;Width;Height;ClassId"]
    test = base / "GTSRB" / "Final_Test" / "Images"
    test.mkdir(parents=True)
    for label in range(3):
        folder = base / "GTSRB" / "Training" / f"{label:05}"
        folder.mkdir(parents=True)
        for number in range(4):
            size = tuple(DRAW.integers(15, 30, 2))
            image = Image.fromarray(DRAW.integers(0, 256, (*size, 3), np.uint8))
            image.save(folder / f"{number}.ppm")
        image.save(test / f"{label}.ppm")
        table.append(f"{label}.ppm;9;9;{label}")
    (base / "GT-final_test.csv").write_text("\n".join(table) + "\n")
    return base


def write_imagenette(root: Path) -> None:
    for part in ("train", "val"):
        for wnid in ("n01440764", "n03028079"):
            folder = root / "imagenette2" / part / wnid
            folder.mkdir(parents=True)
            for number in range(3):
                image = Image.fromarray(DRAW.integers(0, 256, (20, 24, 3), np.uint8))
                image.save(folder / f"{number}.jpeg")


def test_cifar100_is_what_torchvision_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = write_cifar100(tmp_path, monkeypatch)
    found = images("CIFAR100", tmp_path)
    assert torch.equal(pixels(found), torch.from_numpy(wanted))
    assert found.train.targets.tolist() == [row % 100 for row in range(300)]
    assert (len(found.train), len(found.test)) == (300, 300)
    assert found.classes[:2] == ("thing 0", "thing 1")
    assert (found.augmentation.crop, found.augmentation.flip) == (4, True)
    assert found.mean == (0.5071, 0.4865, 0.4409)
    assert found.std == (0.2673, 0.2564, 0.2762)
    assert images("CIFAR100", tmp_path, size=16).input_shape == (3, 16, 16)


def test_it_trains_and_is_found_again(tmp_path: Path) -> None:
    write_mnist(tmp_path / "data")
    data = {"use": "torchvision", "dataset": "MNIST", "root": str(tmp_path / "data")}
    spec = {
        "name": "mnist",
        "data": data,
        "student": {"use": "small-cnn", "width": 2},
        "train": {"epochs": 1, "batch_size": 16},
        "observers": ["jsonl"],
    }
    first = kdzoo.run(spec, runs=tmp_path / "runs")
    # That it may be downloaded, or where it lies, is no other experiment.
    (tmp_path / "data").rename(tmp_path / "moved")
    moved = {**data, "root": str(tmp_path / "moved"), "download": True}
    assert kdzoo.run({**spec, "data": moved}, runs=tmp_path / "runs").directory == first.directory


def test_damaged_files_are_not_called_absent(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    for file in tmp_path.glob("MNIST/raw/*images*"):
        file.write_bytes(file.read_bytes()[:-100])
    said = f"torchvision's MNIST in {tmp_path} cannot be read: .*; if its files are damaged, remove"
    with pytest.raises(kdzoo.DataError, match=said):
        source("MNIST", tmp_path).load()


def test_mnist_is_grey_and_not_mirrored(tmp_path: Path) -> None:
    wanted = write_mnist(tmp_path)
    found = images("MNIST", tmp_path)
    assert torch.equal(pixels(found), torch.from_numpy(wanted)[:, None])
    assert found.test.targets.tolist() == [row % 10 for row in range(20)]
    assert (found.augmentation.crop, found.augmentation.flip) == (2, False)
    assert (found.mean, found.std) == ((0.1307,), (0.3081,))
    assert found.classes[3] == "3 - three"


def test_sets_that_are_in_memory_are_told_apart_by_their_pixels(tmp_path: Path) -> None:
    write_mnist(tmp_path / "one")
    write_mnist(tmp_path / "two", seed=1)
    one, two = (source("MNIST", tmp_path / name).load() for name in ("one", "two"))
    assert one.train.version != two.train.version
    assert one.train.fingerprint != two.train.fingerprint
    assert one.train.version == source("MNIST", tmp_path / "one").load().train.version


def test_labels_are_found_image_by_image_where_nothing_else_holds_them(tmp_path: Path) -> None:
    write_qmnist(tmp_path)
    assert images("QMNIST", tmp_path).train.targets.tolist() == [row % 10 for row in range(40)]


def test_a_set_without_names_or_constants(tmp_path: Path) -> None:
    write_usps(tmp_path / "usps")
    found = images("USPS", tmp_path / "usps")
    assert found.classes == tuple(str(number) for number in range(10))
    assert found.input_shape == (1, 16, 16)
    values = pixels(found).double() / 255
    assert found.mean == (round(values.mean().item(), 4),)
    assert found.std == (round(values.std(correction=0).item(), 4),)


def test_files_of_many_sizes_are_read_kept_and_named(tmp_path: Path) -> None:
    base = write_gtsrb(tmp_path)
    with pytest.raises(kdzoo.DataError, match=r"00000/1.ppm: is .* set `size`"):
        images("GTSRB", tmp_path)
    found = images("GTSRB", tmp_path, size=16)
    assert found.input_shape == (3, 16, 16)
    assert found.train.targets.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert found.test.targets.tolist() == [0, 1, 2]
    assert (found.augmentation.crop, found.augmentation.flip) == (2, False)
    assert (tmp_path / "cache.safetensors").exists()
    again = images("GTSRB", tmp_path, size=16)
    assert again.fingerprint == found.fingerprint
    streamed = images("GTSRB", tmp_path, size=16, memory_gb=0)
    assert next(streamed.epoch(0, 4, 0)).inputs.shape == (4, 3, 16, 16)
    broken = base / "GTSRB" / "Training" / "00001" / "2.ppm"
    broken.write_bytes(broken.read_bytes()[:-50])
    with pytest.raises(kdzoo.DataError, match=f"{broken}: cannot be read as an image"):
        images("GTSRB", tmp_path, size=16)


def test_a_validation_part_stands_in_for_a_test_part(tmp_path: Path) -> None:
    write_imagenette(tmp_path)
    found = images("Imagenette", tmp_path)
    assert found.classes == ("tench", "church")  # the first of each class's names
    assert (len(found.train), len(found.test)) == (6, 6)


def write_emnist_letters(root: Path) -> None:
    folder = root / "EMNIST" / "raw"
    folder.mkdir(parents=True)
    for part in ("train", "test"):
        labels = (1 + np.arange(78) % 26).astype(np.uint8)  # letters count from 1
        drawn = DRAW.integers(0, 256, (78, 28, 28), np.uint8)
        (folder / f"emnist-letters-{part}-images-idx3-ubyte").write_bytes(idx(drawn, 8))
        (folder / f"emnist-letters-{part}-labels-idx1-ubyte").write_bytes(idx(labels, 8))


def test_a_set_is_told_what_it_wants_to_know(tmp_path: Path) -> None:
    write_emnist_letters(tmp_path)
    found = images("EMNIST", tmp_path, options={"split": "letters"})
    assert found.classes == tuple("abcdefghijklmnopqrstuvwxyz")  # without torchvision's "N/A"
    assert found.train.targets.tolist() == found.test.targets.tolist() == [*range(26)] * 3


COUNTS = {"AnnualCrop": 10, "Forest": 7, "River": 3}


def write_eurosat(root: Path) -> None:
    for name, count in COUNTS.items():
        folder = root / "eurosat" / "2750" / name
        folder.mkdir(parents=True)
        for number in range(count):
            image = Image.fromarray(DRAW.integers(0, 256, (6, 6, 3), np.uint8))
            image.save(folder / f"{name}_{number}.png")


def file_names(files: kdzoo.ImageFiles) -> list[list[str]]:
    return [
        [Path(part.name(row)).stem for row in range(len(part.targets))]
        for part in (files.train, files.test)
    ]


def test_an_undivided_set_is_divided_class_by_class(tmp_path: Path) -> None:
    write_eurosat(tmp_path)
    files = source("EuroSAT", tmp_path, test_share=0.3).load()
    assert files.train.targets.bincount().tolist() == [7, 5, 2]
    assert files.test.targets.bincount().tolist() == [3, 2, 1]
    train, test = file_names(files)
    whole = [f"{name}_{number}" for name, count in COUNTS.items() for number in range(count)]
    assert sorted(train + test) == sorted(whole)
    # It is this division on any machine and for ever, or finished runs would not be found again.
    assert test == [
        "AnnualCrop_1",
        "AnnualCrop_6",
        "AnnualCrop_9",
        "Forest_0",
        "Forest_6",
        "River_1",
    ]
    for part in (files.train, files.test):
        names = [files.classes[target] for target in part.targets]
        assert [part.name(row).split("/")[-2] for row in range(len(names))] == names
    # Where the set lies, and what is in another class, changes nothing in this one.
    (tmp_path / "eurosat" / "2750" / "River" / "River_3.png").write_bytes(
        (tmp_path / "eurosat" / "2750" / "River" / "River_1.png").read_bytes()
    )
    (tmp_path / "moved").mkdir()
    (tmp_path / "eurosat").rename(tmp_path / "moved" / "eurosat")
    moved = file_names(source("EuroSAT", tmp_path / "moved", test_share=0.3).load())[1]
    assert moved[:5] == test[:5]


@pytest.mark.parametrize("memory_gb", [4.0, 0.0])
def test_another_share_is_another_set(tmp_path: Path, memory_gb: float) -> None:
    write_eurosat(tmp_path)
    known = [
        images("EuroSAT", tmp_path, test_share=share, memory_gb=memory_gb)
        for share in (0.3, 0.3, 0.5)
    ]
    assert known[0].fingerprint == known[1].fingerprint != known[2].fingerprint
    assert [len(found.test) for found in known] == [6, 6, 5 + 4 + 1]
    # And the images are those of the files that were chosen.
    files = source("EuroSAT", tmp_path, test_share=0.3).load()
    wanted = [np.asarray(Image.open(files.train.name(row))) for row in range(14)]
    assert torch.equal(pixels(known[0]), torch.from_numpy(np.stack(wanted)).permute(0, 3, 1, 2))


def write_sun397(root: Path) -> list[str]:
    """Its files are found in whatever order the disk has them."""
    folder = root / "SUN397"
    names = [f"sun_{number:02}" for number in range(18)]
    for number in DRAW.permutation(18):
        place = folder / ("a/abbey" if number < 9 else "b/bar")
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(place / f"{names[number]}.jpg")
    (folder / "ClassName.txt").write_text("/a/abbey\n/b/bar\n")
    return names


def test_the_order_in_which_the_disk_has_the_files_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = write_sun397(tmp_path)
    files = source("SUN397", tmp_path, test_share=0.3).load()
    assert files.classes == ("abbey", "bar")
    train, test = file_names(files)
    assert train == [name for name in names if name not in test]
    assert test == sorted(test)
    assert files.train.targets.tolist() == [0] * 6 + [1] * 6
    found = Path.rglob
    monkeypatch.setattr(Path, "rglob", lambda *at: reversed([*found(*at)]))
    again = source("SUN397", tmp_path, test_share=0.3).load()
    assert again.train.fingerprint == files.train.fingerprint
    assert again.test.fingerprint == files.test.fingerprint


def write_caltech101(root: Path) -> None:
    for name, count in (("ant", 4), ("BACKGROUND_Google", 1), ("bass", 3)):
        folder = root / "caltech101" / "101_ObjectCategories" / name
        folder.mkdir(parents=True)
        for number in range(1, count + 1):
            Image.new("RGB", (5, 4)).save(folder / f"image_{number:04}.jpg")


def write_omniglot(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = root / "omniglot-py"
    monkeypatch.setattr(datasets.Omniglot, "zips_md5", {"images_evaluation": None})
    for character in ("character01", "character02"):
        folder = base / "images_evaluation" / "Angelic" / character
        folder.mkdir(parents=True)
        for number in range(5):
            Image.new("L", (5, 5), 50 * number).save(folder / f"{number}.png")
    (base / "images_evaluation.zip").touch()


def test_undivided_sets_that_keep_no_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_caltech101(tmp_path)
    found = images("Caltech101", tmp_path, test_share=0.3)
    assert found.classes == ("ant", "bass")
    assert found.train.targets.tolist() == [0, 0, 0, 1, 1]
    assert found.test.targets.tolist() == [0, 1]
    write_omniglot(tmp_path, monkeypatch)
    found = images("Omniglot", tmp_path, test_share=0.4, options={"background": False})
    assert sorted(found.classes) == ["Angelic/character01", "Angelic/character02"]
    assert found.input_shape == (1, 5, 5)
    assert (len(found.train), len(found.test)) == (6, 4)


def write_kitti(root: Path) -> None:
    """A set of boxes rather than classes."""
    for part, folder in (("training", "image_2"), ("training", "label_2"), ("testing", "image_2")):
        (root / "Kitti" / "raw" / part / folder).mkdir(parents=True)
        if folder == "image_2":
            image = Image.new("RGB", (9, 9))
            image.save(root / "Kitti" / "raw" / part / folder / "0.png")
    (root / "Kitti" / "raw" / "training" / "label_2" / "0.txt").write_text(
        "Car 0 0 0 1 1 2 2 1 1 1 0 0 0 0\n"
    )


@pytest.mark.parametrize(
    ("dataset", "params", "message"),
    [
        ("CIFAR20", {}, 'torchvision has no dataset "CIFAR20"; did you mean "CIFAR10"?'),
        ("cifar100", {}, 'torchvision has no dataset "cifar100"; did you mean "CIFAR100"?'),
        ("zzz", {}, 'torchvision has no dataset "zzz"; known are CIFAR10, CIFAR100, '),
        (
            "CIFAR100",
            {},
            "torchvision's CIFAR100 is not in ROOT: Dataset not found or corrupted; "
            "`download: true` fetches it",
        ),
        (
            "Food101",
            {},
            "torchvision's Food101 is not in ROOT: Dataset not found; `download: true` fetches it",
        ),
        ("ImageNet", {"download": True}, "torchvision cannot download ImageNet; its documentation"),
        ("ImageNet", {}, "torchvision's ImageNet is not in ROOT: "),
        (
            "EuroSAT",
            {},
            "torchvision's EuroSAT is not divided into a training and a test part; say which share "
            "of each class's images to test on: `test_share: 0.2`",
        ),
        (
            "CIFAR100",
            {"test_share": 0.2},
            "torchvision's CIFAR100 has a test part of its own; remove `test_share`",
        ),
        (
            "EMNIST",
            {},
            "torchvision's EMNIST needs a choice of split; say it so: `options: {split: ...}`",
        ),
        (
            "EMNIST",
            {"options": {"split": "leters"}},
            "options: torchvision's EMNIST refuses them: Unknown value 'leters' for argument split",
        ),
        (
            "EMNIST",
            {"options": {"split": "letters"}},
            "torchvision's EMNIST is not in ROOT: Dataset not found; `download: true` fetches it",
        ),
        (
            "EMNIST",
            {"options": {"splitt": "letters"}},
            'options: torchvision\'s EMNIST has no `splitt`; did you mean "split"?',
        ),
        ("EMNIST", {"options": {"train": True}}, "options: `train` is set by kdzoo itself"),
        ("DTD", {"options": {"split": "val"}}, "options: `split` is set by kdzoo itself; remove"),
        ("DTD", {"options": {"root": "x"}}, "options: `root` is set by kdzoo itself; remove it"),
        (
            "Kitti",
            {},
            "torchvision's Kitti is no set of images with a class each: its targets are of type "
            "list",
        ),
        ("VOCDetection", {}, "torchvision's VOCDetection is no set of images with a class each"),
    ],
)
def test_what_cannot_be_used_is_explained(
    tmp_path: Path, dataset: str, params: Any, message: str
) -> None:
    write_kitti(tmp_path)
    with pytest.raises(kdzoo.DataError) as raised:
        source(dataset, tmp_path, **params).load()
    assert str(raised.value).startswith(message.replace("ROOT", str(tmp_path)))
