"""Images of one's own: read, decoded, kept, and refused by name when something is wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import CLASSES, picture, spec, write_pictures
from PIL import Image
from torchvision.transforms import v2

import kdzoo
from kdzoo.data.decode import centre
from kdzoo.data.images import Images
from kdzoo.data.load import load_images
from kdzoo.report.summary import summary_lines


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "pictures")


def cached(runs: Path) -> list[Path]:
    return sorted((runs / ".cache").glob("*"))


@pytest.mark.parametrize("memory_gb", [4.0, 0.0])
def test_a_folder_of_images_trains(root: Path, tmp_path: Path, memory_gb: float) -> None:
    """In memory, and read while training."""
    wanted = spec(root, memory_gb=memory_gb, workers=1)
    wanted["train"]["epochs"] = 5
    run = kdzoo.run(wanted, runs=tmp_path / "runs")
    assert list(run.report.student.classes) == list(CLASSES)
    assert run.report.student.accuracy > 0.9
    assert bool(cached(tmp_path / "runs")) == bool(memory_gb)
    assert kdzoo.load_student(run.directory)(torch.rand(2, 3, 12, 12)).shape == (2, 3)


def test_what_was_decoded_is_kept_for_the_next_run(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runs = tmp_path / "runs"
    first = kdzoo.run(spec(root), runs=runs)
    image = root / "train" / "green" / "3.png"
    whole, before = image.read_bytes(), image.stat()
    image.write_bytes(bytes(len(whole)))
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))
    # No image is looked at: this one is broken, and nothing shows it.
    assert kdzoo.run(spec(root), runs=runs).directory == first.directory
    image.touch()
    with pytest.raises(kdzoo.DataError, match=f"{image}: cannot be read as an image"):
        kdzoo.run(spec(root), runs=runs)
    image.write_bytes(whole)
    assert kdzoo.run(spec(root), runs=runs).directory == first.directory
    assert not caplog.records
    (file,) = cached(runs)  # what was stale was replaced
    # Another image: another set, another run.
    shutil.copy(root / "train" / "red" / "0.png", image)
    assert kdzoo.run(spec(root), runs=runs).directory != first.directory
    assert cached(runs) == [file]


def test_decoding_shows_how_far_it_is_on_a_terminal_alone(
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kdzoo.run(spec(root), runs=tmp_path / "piped")
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    terminal, end = os.openpty()
    with open(terminal, "rb", buffering=0) as shown, open(end, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        kdzoo.run(spec(root), runs=tmp_path / "runs")
        said = shown.read(100_000).decode()
    assert re.search(r"train .*24/24", said)
    assert re.search(r"test .*12/12", said)


@pytest.mark.parametrize("damage", ["byte", "cut", "empty", "text", "mean"])
def test_damaged_kept_images_are_decoded_again(
    root: Path, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    runs = tmp_path / "runs"
    first = kdzoo.run(spec(root), runs=runs)
    (file,) = cached(runs)
    content = file.read_bytes()
    damaged = {
        "byte": content[:-100] + bytes([content[-100] ^ 1]) + content[-99:],
        "cut": content[:-1],
        "empty": b"",
        "text": b"nothing of ours" * 9,
        "mean": content.replace(b'mean\\": [0.', b'mean\\": [1.'),
    }[damage]
    assert damaged != content
    file.write_bytes(damaged)
    assert kdzoo.run(spec(root), runs=runs).directory == first.directory
    assert f"{file}: is damaged; the images are decoded again" in caplog.text
    assert file.read_bytes() == content


def test_a_cache_that_cannot_be_written_costs_only_a_warning(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / ".cache").write_text("a file")
    assert kdzoo.run(spec(root), runs=runs).report.epochs == 2
    assert "cannot be written, so that the images will be decoded again" in caplog.text


def test_the_limit_is_the_decoded_sets_own_size(root: Path, tmp_path: Path) -> None:
    size = (24 + 12) * 12 * 12 * 3 / 1e9
    kdzoo.run(spec(root, memory_gb=size - 1e-9, workers=0), runs=tmp_path / "runs")
    assert not cached(tmp_path / "runs")
    kdzoo.run(spec(root, memory_gb=size), runs=tmp_path / "runs")
    assert cached(tmp_path / "runs")


def test_a_run_does_not_depend_on_where_the_images_lie(root: Path, tmp_path: Path) -> None:
    for memory_gb in (4.0, 0.0):
        first = kdzoo.run(spec(root, memory_gb=memory_gb, workers=0), runs=tmp_path / "runs")
        moved = tmp_path / f"moved{memory_gb}"
        shutil.copytree(root, moved)
        os.utime(moved / "train" / "red" / "0.png")
        again = kdzoo.run(spec(moved, memory_gb=memory_gb, workers=1), runs=tmp_path / "runs")
        assert again.directory == first.directory


def remove(path: str) -> Callable[[Path], Any]:
    return lambda root: shutil.rmtree(root / path)


def write(path: str, content: bytes) -> Callable[[Path], Any]:
    def change(root: Path) -> None:
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_bytes(content)

    return change


def cut(path: str) -> Callable[[Path], Any]:
    return lambda root: (root / path).write_bytes((root / path).read_bytes()[:-300])


def rename(path: str, to: str) -> Callable[[Path], Any]:
    return lambda root: (root / path).rename(root / to)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove("."), "ROOT: there is no such folder"),
        (remove("train"), "ROOT/train: there is no such folder; images are expected in"),
        (remove("test"), "ROOT/test: there is no such folder; images are expected in"),
        (lambda root: [remove(f"train/{n}")(root) for n in CLASSES], "ROOT/train: holds no class"),
        (write("train/void/notes.txt", b""), "ROOT/train/void: holds no images (.avif, "),
        (write("train/stray.JPG", b""), "ROOT/train/stray.JPG: is in no class; move it"),
        (
            rename("test/red", "test/reed"),
            "ROOT/test/reed: is a class without training images; there is no ROOT/train/reed",
        ),
        (
            lambda root: [
                shutil.copytree(root / "train/red", root / f"train/{name}")
                for name in ("ro\u0308d", "r\xf6d")
            ],
            "ROOT/train/r\xf6d: there is another folder of this name, with its letters encoded",
        ),
        (cut("test/red/2.png"), "ROOT/test/red/2.png: cannot be read as an image: "),
        (write("train/red/2.png", b""), "ROOT/train/red/2.png: cannot be read as an image: "),
        (write("train/red/a.jpg", b"hello"), "ROOT/train/red/a.jpg: cannot be read as an image: "),
        (
            lambda root: (root / "train/red/gone.png").symlink_to("nowhere"),
            "ROOT/train/red/gone.png: is a link that leads nowhere",
        ),
        (
            lambda root: (root / "train/loop").symlink_to("loop"),
            "ROOT/train/loop: is a link that leads nowhere",
        ),
        (
            lambda root: (root / "train/red/again").symlink_to(root / "train" / "red"),
            "ROOT/train/red/again: is a link to a folder that it lies in; remove it",
        ),
        (
            lambda root: [
                (root / part / "red").rename(os.fsdecode(os.fsencode(root / part) + b"/r\xe9d"))
                for part in ("train", "test")
            ],
            "data \"image-folder\": the class name 'r\\udce9d' is no Unicode text; rename it",
        ),
    ],
)
def test_what_is_wrong_is_named(
    root: Path, tmp_path: Path, change: Callable[[Path], Any], message: str
) -> None:
    change(root)
    for memory_gb in (4.0, 0.0):
        with pytest.raises(kdzoo.DataError) as raised:
            kdzoo.run(spec(root, memory_gb=memory_gb, workers=1), runs=tmp_path / "runs")
        assert str(raised.value).startswith(message.replace("ROOT", str(root)))


def test_a_class_of_another_file_system_is_the_same_class(root: Path, tmp_path: Path) -> None:
    """A Mac writes an accent as a character of its own."""
    (root / "train" / "red").rename(root / "train" / "r\xf6d")
    (root / "test" / "red").rename(root / "test" / "ro\u0308d")
    run = kdzoo.run(spec(root), runs=tmp_path / "runs")
    assert list(run.report.student.classes) == ["blue", "green", "r\xf6d"]


def test_a_class_without_test_images_is_named(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(root / "test" / "red")
    run = kdzoo.run(spec(root), runs=tmp_path / "runs")
    assert 'data "image-folder": there are no test images of red; nothing' in caplog.text
    said = "Without test images, so that nothing is said of them: red."
    assert said in summary_lines(run.report)
    assert said in (run.directory / "report.html").read_text()


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_broken_image_is_one_line_on_the_command_line(
    root: Path, tmp_path: Path, kdzoo_command: Callable[..., Any], split: str
) -> None:
    """Also where another process found it, and before anything has been trained for nothing."""
    broken = root / split / "red" / "2.png"
    broken.write_bytes(broken.read_bytes()[:200])
    wanted = spec(Path("pictures"), memory_gb=0)  # relative to where the command runs
    (tmp_path / "pictures.yaml").write_text(json.dumps(wanted))
    done = kdzoo_command("run", "pictures.yaml")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"kdzoo: {broken}: cannot be read as an image: ")
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("runs/*/checkpoint.pt"))


def test_other_files_are_passed_over(root: Path, tmp_path: Path) -> None:
    before = kdzoo.run(spec(root), runs=tmp_path / "runs").directory
    for name in (".hidden.png", "notes.txt", "Thumbs.db"):
        (root / "train" / "red" / name).write_bytes(b"x")
    (root / "train" / ".checkpoints").mkdir()
    (root / "README").write_bytes(b"x")
    assert kdzoo.run(spec(root), runs=tmp_path / "runs").directory == before
    (root / "train" / "red" / "more").mkdir()
    picture(np.random.default_rng(1), 2, 20, 20).save(root / "train" / "red" / "more" / "1.TIFF")
    assert kdzoo.run(spec(root), runs=tmp_path / "runs").directory != before


@pytest.mark.parametrize("memory_gb", [4.0, 0.0])
def test_without_a_size_all_images_must_have_one(tmp_path: Path, memory_gb: float) -> None:
    root = write_pictures(tmp_path / "pictures", size=(9, 11))
    wanted = spec(root, size=None, memory_gb=memory_gb, workers=1)
    run = kdzoo.run(wanted, runs=tmp_path / "runs")
    assert kdzoo.load_student(run.directory)(torch.rand(2, 3, 9, 11)).shape == (2, 3)
    odd = root / "train" / "green" / "7.png"
    picture(np.random.default_rng(0), 1, 9, 12).save(odd)
    first = root / "train" / "blue" / "0.png"
    message = f"{odd}: is 12x9 pixels, and {first} is 11x9; set `size`"
    with pytest.raises(kdzoo.DataError, match=message):
        kdzoo.run(wanted, runs=tmp_path / "runs")


def one_by_one(*given: Image.Image, tmp_path: Path, **fields: Any) -> Images:
    """A set whose training images are these."""
    targets = torch.arange(len(given)) % 2
    images = kdzoo.ImageList(given.__getitem__, "image {}".format, targets, "")
    files = kdzoo.ImageFiles(images, images, ("a", "b"), **fields)
    cpu = torch.device("cpu")
    return load_images("own", files, cpu, cache=tmp_path / "none", workers=0).prepare(
        validation=0, split_seed=0, augment_seed=0
    )


def test_every_kind_of_image_becomes_rgb(tmp_path: Path) -> None:
    colours = np.array([[[200, 40, 10], [20, 120, 30], [0, 0, 250]]], np.uint8).repeat(2, 0)
    plain = Image.fromarray(colours)
    see_through = plain.convert("RGBA")
    see_through.putpixel((1, 0), (20, 120, 30, 0))
    white = colours.copy()
    white[0, 1] = 255
    palette = plain.quantize(8)
    turned = plain.transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6  # to be turned by 90 degrees clockwise when shown
    grey = Image.fromarray(colours[..., 0])
    deep = Image.fromarray(colours[..., 0].astype(np.uint16) * 257)
    deeper = Image.fromarray(colours[..., 0].astype(np.int32) * 257)
    as_grey = colours[..., :1].repeat(3, 2)
    kinds = [
        (plain, colours),
        (plain.convert("CMYK"), colours),
        (palette, np.asarray(palette.convert("RGB"))),
        (see_through, white),
        (turned, colours),
        (grey, as_grey),
        (deep, as_grey),
        (deeper, as_grey),
    ]
    images = one_by_one(*(image for image, _ in kinds), tmp_path=tmp_path)
    (view,) = images.train.plain()
    pixels = (view.inputs * 255).round().byte().permute(0, 2, 3, 1).numpy()
    for found, (image, wanted) in zip(pixels, kinds, strict=True):
        assert (found == wanted).all(), image.mode
    assert (images.mean, images.std) == (
        tuple((pixels / 255).mean((0, 1, 2)).round(4)),
        tuple((pixels / 255).std((0, 1, 2)).round(4)),
    )
    grey_images = one_by_one(plain, deep, plain, deep, tmp_path=tmp_path, channels=1)
    (view,) = grey_images.train.plain()
    assert view.inputs.shape == (4, 1, 2, 3)
    assert ((view.inputs[1] * 255).round().byte().numpy() == colours[..., 0]).all()


def test_pixels_of_an_unknown_range_are_refused(tmp_path: Path) -> None:
    images = [Image.fromarray(np.ones((3, 3), np.float32))] * 4
    with pytest.raises(kdzoo.DataError, match=r"image 0: cannot be read as an image: .*"):
        one_by_one(*images, tmp_path=tmp_path)


@pytest.mark.parametrize("shape", [(40, 30), (30, 41), (17, 64), (28, 28), (9, 5)])
def test_images_are_scaled_and_cut_as_torchvision_does(shape: tuple[int, int]) -> None:
    image = picture(np.random.default_rng(0), 1, *shape)
    for cover, size in ((28, 28), (32, 28), (27, 24)):
        wanted = v2.Compose([v2.Resize(cover), v2.CenterCrop(size)])(image)
        assert centre(image, cover, cover, size, size).tobytes() == wanted.tobytes()
    assert centre(image, 20, 10, 20, 10).size == (10, 20)


def test_nothing_is_kept_of_images_without_a_version(tmp_path: Path) -> None:
    images = one_by_one(*[Image.new("RGB", (4, 4), "red")] * 4, tmp_path=tmp_path)
    assert (images.mean, images.std) == ((1, 0, 0), (1, 1, 1))  # by nothing they are divided
    assert not (tmp_path / "none").exists()


def test_an_answer_of_another_kind_is_refused() -> None:
    message = r"load\(\) answered dict, not kdzoo.ImageData or kdzoo.ImageFiles"
    with pytest.raises(kdzoo.DataError, match=message):
        load_images("own", {}, torch.device("cpu"), cache=Path("unused"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"channels": 4}, "channels is 4; it must be 3 (colour) or 1 (grey)"),
        ({"size": (0, 3)}, "size is (0, 3); it must be (height, width), each above 0"),
        ({"mean": (0.5,)}, "mean has 1 numbers for 3 channels"),
        ({"mean": 0.5}, "mean is 0.5; it must be a number for each channel, as a tuple"),
        (
            {"mean": (127.0, 127.0, 127.0)},
            "mean is (127.0, 127.0, 127.0); it must be in units of [0, 1], not of [0, 255]",
        ),
        ({"memory_gb": 0.0, "std": (0.5, 0.5, 0.0)}, "std has a number that is not above 0"),
    ],
)
def test_contradictions_are_named(tmp_path: Path, fields: Any, message: str) -> None:
    image = Image.new("RGB", (4, 4), "red")
    with pytest.raises(kdzoo.DataError) as raised:
        one_by_one(*[image] * 4, tmp_path=tmp_path, **fields)
    assert str(raised.value) == f'data "own": {message}'
