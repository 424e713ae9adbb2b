"""Whether images that are read while the network trains keep it waiting.

    python benchmarks/streaming.py

Writes a folder of JPEGs as large as ImageNet's (500x375 pixels), trains on them with
``memory_gb: 0`` at 224x224 pixels and one thread, and says for each number of processes that read:
images a second, the share of an epoch's time in which the steps waited for their images, as
observers are told it, and how many cores were busy. The median over epochs, least and greatest; the
first epoch is not counted.
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from result import Result, add_output, paired, share, spread

import kdzoo
from kdzoo.extend.registry import registry

MODELS = ["shufflenet_v2_x0_5", "resnet18"]
_MEASURED: list[tuple[float, float, float]] = []  # an epoch's end, loader share, CPU seconds


class ShareWatch(kdzoo.Observer):
    """Keeps what it is told of the loader."""

    name = "share-watch"

    def epoch(self, run: kdzoo.RunInfo, record: kdzoo.EpochRecord) -> None:
        """See :meth:`kdzoo.Observer.epoch`."""
        times = os.times()  # those of the processes that read, too, which have ended by now
        _MEASURED.append((time.perf_counter(), record.loader_share, sum(times[:4])))


def write_photographs(root: Path, count: int) -> None:
    """Smooth noise, as many bytes as a photograph: ``root/train`` and ``root/test``."""
    draw = np.random.default_rng(0)
    for part, number in (("train", count), ("test", 4)):
        for label in range(2):
            folder = root / part / str(label)
            folder.mkdir(parents=True)
            for index in range(number // 2):
                small = draw.integers(0, 256, (94, 125, 3), np.uint8)
                picture = Image.fromarray(small).resize((500, 375), Image.Resampling.BICUBIC)
                picture.save(folder / f"{index}.jpg", quality=90)


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description="Streamed images beside the training step.")
    parser.add_argument("--models", nargs="+", default=MODELS, help="of torchvision")
    parser.add_argument("--images", type=int, default=384, help="in an epoch (%(default)s)")
    parser.add_argument("--epochs", type=int, default=3, help="one not counted (%(default)s)")
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[0, 1, 2], help="that read (0 1 2)"
    )
    parser.add_argument("--size", type=int, default=224, help="pixels a side (%(default)s)")
    add_output(parser, "streaming")
    args = parser.parse_args()
    result = Result(args, "1 thread")
    result.table("streamed images", "images a second", "of it waiting", "cores busy")
    with tempfile.TemporaryDirectory() as folder, registry().lent(ShareWatch):
        root = Path(folder) / "photographs"
        write_photographs(root, args.images)
        for model in args.models:
            for workers in args.workers:
                data = {"use": "image-folder", "root": str(root), "size": args.size}
                _MEASURED.clear()
                kdzoo.run(
                    {
                        "name": "streaming",
                        "data": {**data, "memory_gb": 0, "workers": workers, "validation": 0},
                        "student": {"use": "torchvision", "model": model},
                        "train": {"epochs": args.epochs, "batch_size": 32},
                        "observers": ["share-watch"],
                        "threads": 1,
                    },
                    runs=Path(folder) / f"{model}-{workers}",
                )
                ends, waited, cpu = zip(*_MEASURED, strict=True)
                took = [later - before for before, later in itertools.pairwise(ends)]
                worked = [later - before for before, later in itertools.pairwise(cpu)]
                result.row(
                    f"{model}, {workers} readers",
                    spread((args.images / seconds for seconds in took), 1),
                    share(waited[1:]),
                    paired(worked, took),
                )


if __name__ == "__main__":
    main()
