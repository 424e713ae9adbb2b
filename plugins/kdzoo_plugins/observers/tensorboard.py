"""Writes TensorBoard event files into the run directory."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

import kdzoo

__all__ = ["TensorBoard", "heat_map"]

Floats = npt.NDArray[np.float64]

_CELL = 12  # pixels a class, and at most so many an epoch
_MAX_WIDTH = 480  # of all epochs together
_BLUE, _WHITE, _RED = (33, 102, 172), (247, 247, 247), (178, 24, 43)
_GREY = (128, 128, 128)
_PICTURES = 20  # of each heat map in a run; TensorBoard shows ten of them
_NATS = 2.0  # the greatest divergence that is told apart


class TensorBoard(kdzoo.Observer):
    """Losses, learning rate, accuracies, per-class curves as heat maps, the spec as text.

    Every point is at the number of steps done. A heat map has a row for each class and a column
    for each epoch; it is drawn up to twenty times in a run, the last time at its end. White is 0
    and red is 1 (for the gap to the baseline blue is -0.5, red +0.5; for the policy's state white
    is warm-up, then taught, suspect and, in red, untaught).
    """

    name = "tensorboard"

    _writer: Any = None

    def start(self, run: kdzoo.RunInfo, state: Mapping[str, Any] | None) -> None:
        """See :meth:`kdzoo.Observer.start`."""
        from torch.utils.tensorboard import SummaryWriter

        # TensorBoard reads a run's files in the order of their names, which begin with the second
        # of their making: of two made in one second it may never read the later one.
        while any(run.directory.glob(f"events.out.tfevents.{int(time.time()):010d}.*")):
            time.sleep(0.02)
        # Points after the checkpoint belong to steps that will be done again: TensorBoard drops
        # them at every session start after the first, so that one must be written too.
        purge = 0 if state is None else run.step + 1
        self._writer = SummaryWriter(str(run.directory), purge_step=purge)
        if state is None:
            self._writer.add_text("spec", "    " + run.spec.replace("\n", "\n    "), 0)

    def steps(
        self, run: kdzoo.RunInfo, first: int, values: Mapping[str, npt.NDArray[np.float32]]
    ) -> None:
        """See :meth:`kdzoo.Observer.steps`."""
        for name, series in values.items():
            last = first + len(series) - 1
            self._writer.add_scalar(name, float(series.mean(dtype=np.float64)), last)

    def epoch(self, run: kdzoo.RunInfo, record: kdzoo.EpochRecord) -> None:
        """See :meth:`kdzoo.Observer.epoch`."""
        for name, value in record.scalars.items():
            self._writer.add_scalar(name, value, record.step)
        self._writer.add_scalar("loader/share", record.loader_share, record.step)
        curves = record.curves
        if np.isfinite(curves.teacher).any():
            untaught = [run.classes[c] for c in curves.untaught]
            self._writer.add_scalar("policy/untaught", len(untaught), record.step)
            self._writer.add_text("policy/untaught", ", ".join(untaught) or "none", record.step)
        # Each shows all epochs so far, and all of them take as long as thirty steps on a GPU.
        if record.epoch % math.ceil(run.epochs / _PICTURES) == 0 or record.epoch == run.epochs:
            self._draw(run, record)

    def _draw(self, run: kdzoo.RunInfo, record: kdzoo.EpochRecord) -> None:
        curves = record.curves
        maps = _maps(curves)
        if curves.validation is not None:
            validation = _maps(curves.validation)
            maps |= {f"{name}, validation": drawn for name, drawn in validation.items()}
        if np.isfinite(curves.teacher).any():
            maps["taught"] = (np.minimum(curves.teacher_weight, 1), 0, 1)
            if curves.state is not None:
                maps["state"] = (curves.state, 0, 3)
        for name, (values, low, high) in maps.items():
            picture = heat_map(values, run.classes, run.epochs, low, high)
            self._writer.add_image(f"classes/{name}", picture, record.step, dataformats="HWC")

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`kdzoo.Observer.state_dict`."""
        self._writer.flush()
        return {}

    def end(self, run: kdzoo.RunInfo, error: BaseException | None) -> None:
        """See :meth:`kdzoo.Observer.end`."""
        if self._writer is not None:
            self._writer.close()


def _maps(curves: kdzoo.TeachingCurves) -> dict[str, tuple[Floats, float, float]]:
    """What can be drawn of some images' curves: values, and the least and the greatest of the
    scale. All that a policy may decide by is among it."""
    maps: dict[str, tuple[Floats, float, float]] = {"student": (curves.student, 0, 1)}
    if np.isfinite(curves.teacher).any():
        maps["teacher"] = (curves.teacher, 0, 1)
        maps["agreement"] = (curves.agreement, 0, 1)
        maps["divergence"] = (curves.divergence, 0, _NATS)
    if curves.similarity is not None:
        maps["similarity"] = (curves.similarity, 0, 1)
    if curves.baseline is not None:
        maps["gap to baseline"] = (curves.student - curves.baseline, -0.5, 0.5)
    return maps


def heat_map(
    values: Floats, classes: tuple[str, ...], epochs: int, low: float, high: float
) -> npt.NDArray[np.uint8]:
    """A picture of one number a class and epoch.

    Args:
        values: (E, C); NaN is drawn grey.
        classes: the C class names, written beside the rows.
        epochs: how many columns the picture has in the end; later epochs are left black.
        low: the value drawn blue, or white where it is 0.
        high: the value drawn red.

    Returns:
        (height, width, 3).
    """
    span = (np.clip(values.T, low, high) - low) / (high - low)
    start = _WHITE if low == 0 else _BLUE
    stops = np.array([start, _WHITE, _RED] if low else [start, _RED], dtype=np.float64)
    place = np.nan_to_num(span) * (len(stops) - 1)
    left = np.minimum(place.astype(int), len(stops) - 2)
    colour = stops[left] + (place - left)[..., None] * (stops[left + 1] - stops[left])
    colour[np.isnan(span)] = _GREY
    canvas = np.zeros((len(classes), epochs, 3), dtype=np.uint8)
    canvas[:, : len(values)] = colour.round().astype(np.uint8)
    width = int(np.clip(_MAX_WIDTH // epochs, 1, _CELL))
    cells = np.kron(canvas, np.ones((_CELL, width, 1), dtype=np.uint8))
    return np.concatenate([_labels(classes), cells], axis=1)


@functools.lru_cache(maxsize=1)
def _labels(classes: tuple[str, ...]) -> npt.NDArray[np.uint8]:
    short = [name if len(name) <= 16 else f"{name[:15]}~" for name in classes]
    image = Image.new("RGB", (8 + 6 * max(map(len, short)), _CELL * len(classes)), "white")
    draw = ImageDraw.Draw(image)
    for row, name in enumerate(short):
        draw.text((3, row * _CELL), name, fill="black")
    return np.asarray(image)


@kdzoo.hookimpl
def kdzoo_observers() -> list[type[kdzoo.Observer]]:
    """See :mod:`kdzoo.extend.hookspecs`."""
    return [TensorBoard]
