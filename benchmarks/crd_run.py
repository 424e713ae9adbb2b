"""A whole run with CRD's banks of ImageNet's size: how much memory, how long, does it learn.

    python benchmarks/crd_run.py

As many images as ImageNet has, in as many classes, 16,384 negatives, and 128 dimensions; but the
images are noise of 8x8 pixels and the networks one convolution, so that what is measured is CRD and
the engine: the teacher's epoch, the student's with crd beside the cross entropy, checkpoints, the
evaluation and the report. Memory is the process's greatest resident set, Python and torch in it.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time

import torch
from result import Cell, Result, add_output
from torch import nn

import kdzoo

TESTED = 2000  # images of the test set


class Noise(kdzoo.DataSource):
    """Noise of 8x8 pixels."""

    name = "crd-run-noise"

    class Params(kdzoo.Params):
        """What can be set."""

        samples: int = kdzoo.Field(ge=1, description="Training images.")
        classes: int = kdzoo.Field(ge=2, description="Classes.")

    def load(self) -> kdzoo.ImageData:
        """See :meth:`kdzoo.DataSource.load`."""
        generator = torch.Generator().manual_seed(0)
        shape = (self.params.samples + TESTED, 3, 8, 8)
        images = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
        targets = torch.arange(len(images)) % self.params.classes
        return kdzoo.ImageData(
            images[TESTED:],
            targets[TESTED:],
            images[:TESTED],
            targets[:TESTED],
            tuple(map(str, range(self.params.classes))),
            mean=(0.5, 0.5, 0.5),
            std=(0.29, 0.29, 0.29),
        )


class OneConvolution(kdzoo.ModelSource):
    """A network whose own work is next to nothing."""

    name = "crd-run-network"

    def build(self, input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        """See :meth:`kdzoo.ModelSource.build`."""
        convolution = nn.Conv2d(input_shape[0], 64, input_shape[1:])
        return nn.Sequential(convolution, nn.Flatten(), nn.ReLU(), nn.Linear(64, num_classes))

    def layers(self) -> kdzoo.Layers:
        """See :meth:`kdzoo.ModelSource.layers`."""
        return kdzoo.Layers(penultimate="2")


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description="A whole run with CRD's banks of ImageNet's size.")
    add = parser.add_argument
    add("--samples", type=int, default=1_281_167, help="training images (%(default)s)")
    add("--classes", type=int, default=1000, help="of the images (%(default)s)")
    add("--negatives", type=int, default=16_384, help="an image (%(default)s)")
    add("--batch", type=int, default=256, help="images a step (%(default)s)")
    add("--threads", type=int, default=1, help="torch's threads (%(default)s)")
    add_output(parser, "crd_run")
    args = parser.parse_args()
    result = Result(args, f"{args.threads} threads")
    kdzoo.register(Noise, OneConvolution)
    optimizer = {"use": "sgd", "lr": 0.01}
    spec = {
        "name": "crd-run",
        "data": {
            "use": Noise.name,
            "samples": args.samples,
            "classes": args.classes,
            "validation": 0,
        },
        "teacher": {
            "use": OneConvolution.name,
            "seed": 1,
            "train": {"epochs": 1, "batch_size": 4096, "optimizer": optimizer},
        },
        "student": OneConvolution.name,
        "losses": ["ce", {"use": "crd", "negatives": args.negatives}],
        "train": {"epochs": 1, "batch_size": args.batch, "optimizer": optimizer},
        "observers": ["progress", "jsonl"],
        "threads": args.threads,
        "device": "cpu",
    }
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as runs:
        kdzoo.run(spec, runs=runs)
    minutes = (time.perf_counter() - begun) / 60
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    result.table("a whole run with crd", "GB at peak", "minutes")
    cells = [Cell(f"{value:.2f}", (value,)) for value in (highest, minutes)]
    result.row(f"{args.samples:,} images", *cells)


if __name__ == "__main__":
    main()
