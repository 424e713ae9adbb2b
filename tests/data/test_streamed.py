"""Images that are read while the network trains: the same views, whoever reads them, and when."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from pictures import spec, write_pictures
from PIL import Image
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter
from torchvision.transforms import v2

import kdzoo
from kdzoo.data.decode import cores
from kdzoo.data.images import Images
from kdzoo.data.load import load_images
from kdzoo.extend.bases import DataSource
from kdzoo.extend.registry import registry
from kdzoo.training.loop import Trainer

EXACT = ("student.safetensors", "classes.csv", "metrics.jsonl", "report.json")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("streamed") / "pictures")


def answer(root: Path) -> kdzoo.ImageFiles:
    params = {"root": str(root), "size": 12, "memory_gb": 0}
    return registry().make(DataSource.kind, "image-folder", params).load()


def streamed(root: Path, workers: int, augment_seed: int = 3, **options: Any) -> Images:
    at_once = load_images(
        "pictures", answer(root), torch.device("cpu"), cache=Path("unused"), workers=workers
    )
    return at_once.prepare(validation=0.25, split_seed=0, augment_seed=augment_seed, **options)


def views(images: Images, epoch: int = 1, batch_size: int = 4, seed: int = 0) -> torch.Tensor:
    """All training views by index, (rows, channels, height, width); NaN for those held out."""
    seen = torch.full((images.rows, *images.input_shape), torch.nan)
    for view in images.epoch(epoch, batch_size, seed):
        assert view.inputs.is_contiguous(memory_format=torch.channels_last)
        seen[view.indices] = view.inputs
    return seen


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one.nan_to_num(-1), other.nan_to_num(-1))


OTHERS: set[psutil.Process] = set()


@pytest.fixture(autouse=True)
def other_tests_processes() -> None:
    """Those that are there before a test belong to fixtures of other files."""
    OTHERS.clear()
    OTHERS.update(children())


def children() -> list[psutil.Process]:
    return [p for p in psutil.Process().children(recursive=True) if p not in OTHERS]


@pytest.mark.parametrize(
    ("workers", "batch_size", "seed"), [(0, 4, 9), (0, 18, 0), (1, 7, 1), (2, 5, 2)]
)
def test_views_do_not_depend_on_workers_batches_or_order(
    root: Path, workers: int, batch_size: int, seed: int
) -> None:
    torch.manual_seed(workers)
    state = torch.get_rng_state()
    found = views(streamed(root, workers), batch_size=batch_size, seed=seed)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(123)
    assert same(found, views(streamed(root, 0)))
    assert not children()


def test_more_readers_than_cores_are_no_news(root: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(views(streamed(root, cores() + 1), batch_size=1))


def test_views_are_a_function_of_epoch_index_and_seed(root: Path) -> None:
    images = streamed(root, 0)
    one = views(images)
    assert same(one, views(images))
    for other in (views(images, epoch=2), views(streamed(root, 0, augment_seed=4))):
        assert not (one == other).flatten(1).all(1).any()
    # Two rows with the same file: each is cut in its own way.
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8))
    targets = torch.arange(4) % 2
    listed = kdzoo.ImageList(lambda row: image, str, targets, "")
    files = kdzoo.ImageFiles(listed, listed, ("a", "b"), memory_gb=0)
    at_once = load_images("one", files, torch.device("cpu"), cache=Path("unused"), workers=0)
    images = at_once.prepare(validation=0, split_seed=0, augment_seed=0)
    assert not list(images.validation.plain())
    seen = views(images)
    assert len(seen.flatten(1).unique(dim=0)) == 4


def test_without_augmentation_training_images_are_plain_ones(root: Path) -> None:
    images = streamed(root, 0, crop=0, flip=False)
    files = answer(root).train
    plain = torch.full((images.rows, *images.input_shape), torch.nan)
    for view in images.train.plain(5):
        assert len(view.targets) <= 5
        plain[view.indices] = view.inputs
        for pixels, index, target in zip(view.inputs, view.indices, view.targets, strict=True):
            image = v2.Compose([v2.Resize(12 * 256 // 224), v2.CenterCrop(12)])(files.read(index))
            assert torch.equal(pixels, v2.functional.pil_to_tensor(image) / 255)
            assert target == files.targets[index]
    assert same(plain, views(images))
    sample = images.train.sample(3)
    for view in sample.plain():
        assert torch.equal(view.inputs, plain[sample.indices])
    mirrored = views(streamed(root, 0, crop=0, flip=True))
    straight = (mirrored == plain).flatten(1).all(1)
    turned = (mirrored == plain.flip(3)).flatten(1).all(1)
    assert straight.any()
    assert turned.any()
    assert int((straight | turned).sum()) == len(images.train)


def test_random_views_are_crops_of_many_sizes(tmp_path: Path) -> None:
    """What is left of two ramps tells place and size of each crop."""
    ramp = np.zeros((200, 200, 3), np.uint8)
    ramp[..., 0] = np.arange(200)
    ramp[..., 1] = np.arange(200)[:, None]
    image = Image.fromarray(ramp)
    listed = kdzoo.ImageList(lambda row: image, str, torch.arange(300) % 2, "")
    files = kdzoo.ImageFiles(listed, listed, ("a", "b"), size=(10, 10), memory_gb=0, flip=True)
    at_once = load_images("one", files, torch.device("cpu"), cache=tmp_path, workers=0)
    seen = views(at_once.prepare(validation=0, split_seed=0, augment_seed=0)) * 255
    widths = (seen[:, 0, 5, -1] - seen[:, 0, 5, 0]) / 0.9
    heights = (seen[:, 1, -1, 5] - seen[:, 1, 0, 5]) / 0.9
    assert 0.4 < (widths < 0).float().mean() < 0.6  # mirrored
    area = widths.abs() * heights / 200**2
    assert 0.07 < area.min() < 0.15
    assert 0.9 < area.max() < 1.05
    assert 0.4 < area.mean() < 0.55
    shape = widths.abs() / heights
    assert 0.7 < shape.min() < 0.8
    assert 1.25 < shape.max() < 1.4


def test_whole_runs_do_not_depend_on_the_process_that_reads(
    root: Path, tmp_path: Path, kdzoo_command: Callable[..., Any]
) -> None:
    """Workers and all in a process of its own, and none here; there is one run for both."""
    wanted = spec(root, memory_gb=0)
    (tmp_path / "pictures.yaml").write_text(json.dumps(wanted))
    done = kdzoo_command("run", "pictures.yaml", "--set", "data.workers=2", "--runs", "there")
    assert done.returncode == 0, done.stderr
    wanted["data"]["workers"] = 0
    here = kdzoo.run(wanted, runs=tmp_path / "here").directory
    for name in EXACT:
        assert (tmp_path / "there" / here.name / name).read_bytes() == (here / name).read_bytes()


def test_a_run_that_was_cut_off_goes_on_exactly(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = spec(root, memory_gb=0, workers=1)
    wanted["train"]["epochs"] = 3
    whole = kdzoo.run(wanted, runs=tmp_path / "whole").directory

    class Cut(BaseException):
        pass

    original = Images.epoch

    def cut(self: Images, number: int, *arguments: Any) -> Any:
        for step, view in enumerate(original(self, number, *arguments)):
            if (number, step) == (1, 1):
                raise Cut
            yield view

    with monkeypatch.context() as patch:
        patch.setattr(Images, "epoch", cut)
        with pytest.raises(Cut):
            kdzoo.run(wanted, runs=tmp_path / "cut")
    again = kdzoo.run({**wanted, "data": {**wanted["data"], "workers": 0}}, runs=tmp_path / "cut")
    for name in EXACT:
        assert (again.directory / name).read_bytes() == (whole / name).read_bytes()


def test_a_run_that_fails_leaves_no_process_behind(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even while somebody keeps the error, and with it the names of all that was going on."""
    wanted = spec(root, memory_gb=0, workers=2)
    wanted["train"]["batch_size"] = 2
    seen = []

    def fail(self: Trainer, *arguments: Any) -> None:
        seen.extend(children())
        raise ZeroDivisionError

    monkeypatch.setattr(Trainer, "_log", fail)
    wanted["log_every"] = 1
    with pytest.raises(ZeroDivisionError) as kept:
        kdzoo.run(wanted, runs=tmp_path)
    assert len(seen) == 2
    assert not children()
    assert kept.value is not None
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    (copy / "train" / "red" / "0.png").write_bytes(b"")
    with pytest.raises(kdzoo.DataError) as kept:
        list(streamed(copy, 2).epoch(0, 2, 0))
    assert not children()
    assert kept.value is not None


def test_a_killed_run_leaves_no_process_behind(root: Path, tmp_path: Path) -> None:
    wanted = spec(root, memory_gb=0, workers=2)
    wanted["train"] |= {"epochs": 100_000, "batch_size": 2}
    main = multiprocessing.get_context("fork").Process(
        target=kdzoo.run, args=(wanted,), kwargs={"runs": tmp_path}
    )
    main.start()
    workers: list[psutil.Process] = []
    deadline = time.monotonic() + 60
    while len(workers) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
        workers = psutil.Process(main.pid).children(recursive=True)
    main.kill()
    main.join()
    assert len(workers) == 2
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive


_at_fork: list[signal.Signals] = []  # sent to this process when it forks the next time
os.register_at_fork(before=lambda: [os.kill(os.getpid(), _at_fork.pop()) for _ in _at_fork[:1]])


@pytest.mark.parametrize("moment", ["begin", "end"])
def test_an_interrupt_is_not_lost_while_processes_begin_or_end(
    root: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python calls back there, and throws away what is raised then."""
    images = streamed(root, 1)
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    if moment == "begin":
        _at_fork.append(signal.SIGINT)
    else:
        end = _MultiProcessingDataLoaderIter._shutdown_workers

        def interrupted(self: Any) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            end(self)

        monkeypatch.setattr(_MultiProcessingDataLoaderIter, "_shutdown_workers", interrupted)
    with pytest.raises(KeyboardInterrupt):
        views(images)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert not children()


def test_a_reading_process_that_is_killed_fails_where_images_are_awaited(root: Path) -> None:
    """And not in whatever is computed at that moment."""
    pass_ = streamed(root, 1).epoch(0, 2, 0)
    next(pass_)
    (worker,) = children()
    worker.kill()
    for _ in range(50):  # a signal handler runs between two of these
        time.sleep(0.01)
    with pytest.raises(kdzoo.RunError, match=r"a process that reads images .*--shm-size"):
        list(pass_)


def test_a_reading_process_that_is_killed_leaves_no_directory(root: Path, tmp_path: Path) -> None:
    """Nor fails to remove one while it ends, as one of its own that is still sending does."""
    code = f"""
from pathlib import Path
from test_streamed import children, streamed
pass_ = streamed(Path({str(root)!r}), 1).epoch(0, 2, 0)
next(pass_)
(worker,) = children()
worker.kill()
"""
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert not list(tmp_path.iterdir())


def test_a_reading_process_that_dies_is_explained() -> None:
    parent = os.getpid()

    def read(row: int) -> Image.Image:
        if os.getpid() != parent:
            os._exit(3)
        return Image.new("RGB", (4, 4))

    listed = kdzoo.ImageList(read, str, torch.arange(4) % 2, "")
    files = kdzoo.ImageFiles(listed, listed, ("a", "b"), memory_gb=0)
    at_once = load_images("dies", files, torch.device("cpu"), cache=Path("unused"), workers=1)
    images = at_once.prepare(validation=0, split_seed=0, augment_seed=0)
    with pytest.raises(kdzoo.RunError, match=r"a process that reads images .*--shm-size"):
        list(images.test.plain())
